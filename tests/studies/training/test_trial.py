"""A trial in its folder: a result that says what happened, whatever happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_spec import EVALUATION, make_spec

from memarch.components.errors import SpecError
from memarch.studies.tasks.base import build_task
from memarch.studies.training import points, training, trial
from memarch.studies.training.trial import evaluate_saved, run_trial, train_spec

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def spec() -> dict[str, Any]:
    """A small resolved spec with RMT."""
    return make_spec({"main": {"type": "rmt", "num_tokens": 2}}, budget={"steps": 4}, eval_every=2)


def ignore(step: int, metrics: dict[str, float]) -> bool:
    return False


def test_a_complete_trial(spec, tmp_path):
    reports: list[int] = []
    result = run_trial(spec, tmp_path, lambda step, metrics: reports.append(step) or False)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result["state"] == "complete"
    assert result["reason"] is None
    assert result["attempts"] == 1
    assert result["threads"] == 1
    assert result["stages"] == [{"name": "main", "start": 0, "end": 4, "reason": "budget"}]
    assert result["schedule"]["schedule"] == "sequential"
    assert result["versions"]["torch"] == torch.__version__
    assert result["metrics"]["eval/kv/exact_match"] >= 0
    assert result["metrics"]["cost/state_bytes"] == 2 * 16 * 4
    assert reports == [2, 4]
    assert not (tmp_path / "checkpoints").exists()


def test_a_folder_with_a_result_is_not_run_again(spec, tmp_path):
    (tmp_path / "result.json").write_text('{"state": "complete", "metrics": {}}')
    assert run_trial(spec, tmp_path, ignore) == {"state": "complete", "metrics": {}}
    assert not (tmp_path / "model").exists()


def test_a_pruned_trial(spec, tmp_path):
    result = run_trial(spec, tmp_path, lambda step, metrics: True)
    assert (result["state"], result["reason"]) == ("pruned", "stopped by the pruner")
    assert result["metrics"]["train/steps"] == 2
    assert not (tmp_path / "model").exists()


def test_a_loss_that_is_no_number(spec, tmp_path):
    spec["train"] |= {"lr": 1e30, "clip": None, "budget": {"steps": 50}}
    result = run_trial(spec, tmp_path, ignore)
    assert result["state"] == "failed"
    assert result["reason"].split(" at step ")[0] in ("NaN loss", "infinite loss")
    assert "NotFiniteError" in (tmp_path / "error.txt").read_text()
    assert json.loads((tmp_path / "result.json").read_text()) == result


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memo"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "out of memory: Def"),
        (MemoryError(), "out of memory"),
        (ZeroDivisionError("division\nby zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_whatever_fails_is_a_reason(error, reason, spec, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(training, "train", fail)
    result = run_trial(spec, tmp_path, ignore)
    assert result["state"] == "failed"
    assert result["reason"].startswith(reason)
    assert "\n" not in result["reason"]
    assert type(error).__name__ in (tmp_path / "error.txt").read_text()


def test_a_wrong_spec_is_a_failed_trial_but_an_error_of_train_spec(spec, tmp_path):
    spec["model"]["memory"]["main"]["num_tokens"] = 0
    result = run_trial(spec, tmp_path / "trial", ignore)
    assert result["state"] == "failed"
    assert result["reason"].startswith("model.memory.main.num_tokens:")
    with pytest.raises(SpecError, match="num_tokens"):
        train_spec(spec, tmp_path / "train", ignore)


def test_an_interrupt_is_not_a_result(spec, tmp_path):
    def interrupt(step: int, metrics: dict[str, float]) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(spec, tmp_path, interrupt)
    assert not (tmp_path / "result.json").exists()
    result = run_trial(spec, tmp_path, ignore)
    assert (result["state"], result["attempts"]) == ("complete", 2)


def test_train_spec_keeps_its_progress(spec, tmp_path):
    result = train_spec(spec, tmp_path, ignore)
    rows = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [(row["attempt"], row["step"]) for row in rows] == [(1, 2), (1, 4)]
    assert rows[-1]["metrics"] == result["metrics"]
    assert Path(result["path"]).is_dir()
    assert not (tmp_path / "result.json").exists()


def test_the_test_split_is_scored_by_the_saved_model(spec, tmp_path):
    model = json.loads(json.dumps(spec["model"]))
    model["memory"]["main"]["write"] = {"type": "forward", "steps": 3}
    spec["eval"]["kv"]["points"] = [{"name": "steps-3", "spec": {"model": model}}]
    result = run_trial(spec, tmp_path, ignore)
    test = trial.test_trial(spec, tmp_path)
    assert {"test/kv/exact_match", "test/kv/steps-3/exact_match"} <= set(test)
    assert test["test/kv/loss"] != result["metrics"]["eval/kv/loss"]
    again = evaluate_saved(tmp_path / "model", spec)
    for name in ("eval/kv/loss", "eval/kv/steps-3/loss"):
        assert again[name] == result["metrics"][name]


def test_a_saved_model_by_another_files_evaluations(spec, tmp_path):
    """The task is the file's; the model keeps its own settings, but for what a sweep changes."""
    run_trial(spec, tmp_path, ignore)
    other = json.loads(json.dumps(spec))
    other["task"]["pairs"] = 4
    other["model"]["segment_length"] = 64
    changed = other["model"] | {"segment_length": 2}
    other["eval"] = {
        "long": EVALUATION | {"points": [{"name": "short", "spec": {"model": changed}}]}
    }
    metrics = evaluate_saved(tmp_path / "model", other)
    own = json.loads(json.dumps(spec))
    own["task"]["pairs"] = 4
    own["eval"] = {"long": EVALUATION}
    assert metrics["eval/long/loss"] == evaluate_saved(tmp_path / "model", own)["eval/long/loss"]
    assert metrics["eval/long/short/loss"] != metrics["eval/long/loss"]


def test_evaluating_where_no_model_is(spec, tmp_path):
    with pytest.raises(SpecError, match="no saved model in"):
        evaluate_saved(tmp_path, spec)


def test_plugins_are_loaded_and_their_hash_recorded(spec, tmp_path):
    plugin = tmp_path / "my_task.py"
    plugin.write_text(
        "from typing import Literal\n"
        "from memarch.studies.tasks.base import tasks\n"
        "from memarch.studies.tasks.kv_retrieval import KeyValueRetrieval\n"
        "@tasks.register('my_task')\n"
        "class MyTask(KeyValueRetrieval):\n"
        "    class Settings(KeyValueRetrieval.Settings):\n"
        "        type: Literal['my_task'] = 'my_task'\n"
    )
    spec["plugins"] = [str(plugin)]
    spec["task"]["type"] = "my_task"
    result = run_trial(spec, tmp_path / "trial", ignore)
    assert result["state"] == "complete"
    assert len(result["plugins"][str(plugin)]) == 64


def test_the_official_test_questions_are_scored_whole(spec, tmp_path, monkeypatch):
    """`size` cuts validation, never a test split that somebody published."""
    babi = Path(__file__).parents[2] / "data" / "babi"
    spec["task"] = {"type": "babi", "task": "qa1", "set": "en", "data": str(babi)}
    spec["eval"] = {"kv": EVALUATION | {"size": 1}}
    assert run_trial(spec, tmp_path, ignore)["state"] == "complete"
    sizes: list[int] = []
    evaluate = points.evaluate

    def counting(model, task, dataset, **settings):
        sizes.append(len(dataset))
        return evaluate(model, task, dataset, **settings)

    monkeypatch.setattr(points, "evaluate", counting)
    trial.test_trial(spec, tmp_path)
    assert sizes == [len(build_task(spec["task"]).dataset("test", None, 0))] != [1]
