"""The same study, the same numbers: cut off and resumed, trained again, exported and loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memarch import studies_commands
from memarch.cli import run as command
from memarch.components.errors import SpecError
from memarch.studies.driver import events
from memarch.studies.driver.sessions import resume_study, run_study
from memarch.studies.records.store import StudyFolder, find_study, read_json, write_json
from memarch.studies.training.exporting import export
from memarch.studies.training.reproducing import TIMINGS
from memarch.train import train_trial

STUDY = """
study:
  objective: {eval/kv/exact_match: maximize}
  budget: {trials: 3}
  seeds: {model: 4, data: 5, search: 6}
  finalists: 0
vars: {lr: {float: [1e-3, 1e-2], log: true}}
variants:
  rmt: {model.memory.main: {type: rmt, num_tokens: 2}}
  deltanet: {model.memory.main: {type: deltanet, heads: {choice: [1, 2]}}}
task: {type: kv_retrieval, pairs: 2, format: compact, alphabet: 4}
model:
  backbone: {type: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}
  segment_length: 4
train: {budget: {steps: 6}, batch_size: 4, lr: $lr, eval_every: 2, checkpoint_every: 1}
eval: {kv: {task: same, size: 16, batch_size: 16}}
resources: {cpus: 2}
"""

pytestmark = pytest.mark.usefixtures("local_ray", "module_without_mlflow")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(local_ray, module_without_mlflow, shared, tmp_path_factory) -> events.StudyResult:
    file = tmp_path_factory.mktemp("files") / "whole.yaml"
    file.write_text(STUDY)
    return run_study(file, storage=shared)


def numbers(result: events.StudyResult) -> list[Any]:
    return [
        (t["variant"], t["params"], {k: v for k, v in t["metrics"].items() if k not in TIMINGS})
        for t in result.trials
    ]


def test_a_study_cut_off_in_a_trial_and_between_trials_gives_the_same_numbers(
    whole, shared, tmp_path
):
    file = tmp_path / "cut.yaml"
    file.write_text(STUDY)
    killed = []

    def kill_once(event: events.Event) -> None:
        if isinstance(event, events.TrialProgress) and event.number == 1 and not killed:
            folder = StudyFolder(shared, "cut").trial(1).path
            killed.append(read_json(folder / "worker.json")["pid"])
            os.kill(killed[0], signal.SIGKILL)

    run_study(file, storage=shared, overrides=["study.budget.trials=2"], on_event=kill_once)
    result = resume_study("cut", storage=shared, overrides=["study.budget.trials=3"])
    assert killed
    assert [trial["attempts"] for trial in result.trials] in ([1, 2, 1], [1, 1, 1])
    assert [trial["state"] for trial in whole.trials] == ["complete"] * 3
    assert all(trial["metrics"]["train/flops"] > 0 for trial in whole.trials)  # budgets count it
    assert numbers(result) == numbers(whole)
    hashes = {
        name: [_result(shared, name, n)["data"] for n in range(3)] for name in ("whole", "cut")
    }
    assert hashes["whole"] == hashes["cut"]


def _result(storage: Path, name: str, number: int) -> Any:
    return find_study(storage, name).trial(number).result


def test_a_trial_is_trained_again_by_its_record(whole, shared, capsys):
    document = train_trial("whole/1", shared, ())
    assert document["reproduced"] == {"equal": True, "differs": [], "changed": []}
    assert "bit for bit" in capsys.readouterr().err
    path = StudyFolder(shared, "whole").trial(1).path / "result.json"
    result = read_json(path)
    assert result["threads"] == 2
    assert result["device"] == "cpu"
    changed = json.loads(json.dumps(result))
    changed["versions"]["torch"] = "0.1"
    changed["data"] = "another"
    changed["threads"] = 1
    changed["metrics"]["eval/kv/loss"] += 1e-9
    write_json(path, changed)
    told = train_trial("whole/1", shared, ())["reproduced"]
    write_json(path, result)
    assert not told["equal"]
    assert "eval/kv/loss" in {row["metric"] for row in told["differs"]}
    assert any(line.startswith("torch was 0.1") for line in told["changed"])
    assert any(line.startswith("data was another") for line in told["changed"])


def test_a_trial_shows_where_its_values_come_from(whole, shared):
    shown = studies_commands.show_trial("whole/1", shared)
    settings = {row["key"]: (row["value"], row["origin"]) for row in shown["settings"]}
    assert settings["train.lr"] == (shown["params"]["lr"], "draw")
    assert settings["train.clip"] == (1.0, "default")
    value, origin = settings["train.batch_size"]
    assert value == 4
    assert origin.endswith("whole.yaml:15")
    assert settings["model.memory.main.type"][1] == "variant deltanet"
    assert shown["made_with"]["threads"] == 2


def test_a_trial_becomes_a_folder_that_transformers_loads(whole, shared, tmp_path, capfd):
    folder = tmp_path / "exported"
    assert command(["export", "whole/1", str(folder), "--storage", str(shared), "--json"]) == 0
    files = json.loads(capfd.readouterr().out)["files"]
    assert {"README.md", "config.json", "model.safetensors", "memarch.json"} <= set(files)
    card = (folder / "README.md").read_text()
    for said in (
        "- deltanet\n",
        "variant deltanet, `deltanet` on",
        "eval/kv/exact_match",
        "memarch.load",
        "Licence",
        "whole/1",
        "lr:",
    ):
        assert said in card
    program = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(model(input_ids=torch.tensor([[1, 2, 3, 4, 5]])).logits.double().sum().item())\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    import torch

    import memarch

    model = memarch.load(folder)
    logits = model(input_ids=torch.tensor([[1, 2, 3, 4, 5]])).logits
    assert logits.double().sum().item() == pytest.approx(float(done.stdout.split()[-1]), rel=1e-6)
    with pytest.raises(SpecError, match="not empty"):
        export(find_study(shared, "whole").trial(1), "whole/1", folder)
