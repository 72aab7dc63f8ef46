"""The study driver, with real Ray, Optuna and MLflow; the trials are quick functions."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from agreement import assert_records_agree
from driver_study import Log, run, write_study

import memarch
from memarch.components.errors import SpecError
from memarch.studies.driver import events
from memarch.studies.driver.sessions import resume_study
from memarch.studies.records.store import StudyFolder, list_studies, show_study

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage for studies of different names, as on a user's machine."""
    return tmp_path_factory.mktemp("runs")


def optuna_trials(storage: Path, name: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{storage}/optuna.db").trials


def mlflow_runs(storage: Path, name: str) -> tuple[Any, dict[int, Any]]:
    """The parent run, and the child runs by trial number."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    children = {
        int(r.data.tags["memarch.trial"]): r for r in runs if "memarch.trial" in r.data.tags
    }
    (parent,) = [r for r in runs if "memarch.trial" not in r.data.tags]
    return parent, children


def states(result: events.StudyResult) -> list[str]:
    return [trial["state"] for trial in result.trials]


@pytest.fixture(scope="session")
def searched(local_ray, shared, tmp_path_factory) -> tuple[events.StudyResult, Log]:
    file = write_study(
        tmp_path_factory.mktemp("files"),
        name="searched",
        cpus=1,
        sampler="tpe",
        budget="{trials: 14}",
        finalists=2,
    )
    log = Log()
    return run(file, shared, on_event=log), log


def test_a_search_runs_to_its_end(searched, shared):
    result, log = searched
    assert (result.state, len(result.trials), result.objective) == (
        "complete",
        14,
        {"eval/kv/exact_match": "maximize"},
    )
    assert [trial["variant"] for trial in result.trials][:3] == ["none", "rmt", "deltanet"]
    scores = {t["number"]: t["metrics"]["eval/kv/exact_match"] for t in result.trials}
    assert result.best == [max(scores, key=scores.__getitem__)]
    assert {s["name"]: s["state"] for s in list_studies(shared)}["searched"] == "complete"
    started, finished = log.of(events.StudyStarted), log.of(events.StudyFinished)
    assert (started[0].trials, started[0].finished, finished[0].result) == (14, 0, result)
    assert {e.number for e in log.of(events.TrialStarted)} == set(range(14))
    assert {e.record["number"] for e in log.of(events.TrialFinished)} == set(range(14))


def test_show_tells_what_was_drawn_and_what_came_out(searched, shared):
    shown = show_study("searched", shared)
    assert list(shown) == [
        "name", "state", "design", "objective", "ablation", "sizes", "trials", "best",
    ]  # fmt: skip
    for trial in shown["trials"]:
        assert list(trial) == [
            "number", "variant", "state", "params", "solved", "metrics", "spec", "reason",
            "copy_of", "attempts", "seed", "converged", "failure",
        ]  # fmt: skip
        assert trial["spec"]["train"]["lr"] == trial["params"]["lr"]
        assert (trial["attempts"], trial["reason"]) == (1, "")
        assert ("segment_length" in trial["params"]) == (trial["variant"] != "none")


def test_results_are_there_for_python(searched, shared):
    results = memarch.study_results("searched", storage=shared)
    assert results.state == "complete"
    assert results.best_trial["number"] == results.best[0]
    assert len(results.frame()) == len(results.trials)


def test_only_finalists_are_tested_and_only_once(searched, shared):
    result, _ = searched
    ranked = sorted(result.trials, key=lambda trial: -trial["metrics"]["eval/kv/exact_match"])
    tested = [t["number"] for t in result.trials if "test/kv/exact_match" in t["metrics"]]
    assert sorted(tested) == sorted(t["number"] for t in ranked[:2])
    again = resume_study("searched", storage=shared)
    assert again.trials == result.trials
    for number in tested:
        folder = StudyFolder(shared, "searched").trial(number).path
        assert (folder / "tested").read_text() == "once\n"


def test_mlflow_agrees_with_optuna_run_by_run(searched, shared):
    result, _ = searched
    parent, children = mlflow_runs(shared, "searched")
    trials = optuna_trials(shared, "searched")
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "searched")
    assert "| rank | trial | variant |" in parent.data.tags["mlflow.note.content"]
    assert len(children) == len(trials) == 14
    for trial, row in zip(trials, result.trials, strict=True):
        child = children[trial.number]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert trial.values == [row["metrics"]["eval/kv/exact_match"]]
        assert child.data.metrics == row["metrics"]
        assert child.data.params == {"variant": trial.params["variant"]} | {
            name: str(value) for name, value in row["params"].items()
        }
        assert child.info.status == "FINISHED"
        assert {"state", "seed", "hash", "mechanism"} <= child.data.tags.keys()
        assert child.info.run_name.startswith(f"{trial.number:03d} {row['variant']}")
        assert child.info.artifact_uri.startswith(f"file://{shared}/mlartifacts/")


def test_metrics_are_kept_over_steps(searched, shared):
    from mlflow import MlflowClient

    _, children = mlflow_runs(shared, "searched")
    client = MlflowClient(tracking_uri=f"sqlite:///{shared}/mlflow.db")
    history = client.get_metric_history(children[3].info.run_id, "eval/kv/exact_match")
    assert [point.step for point in history] == [50, 100]
    names = {item.path for item in client.list_artifacts(children[3].info.run_id)}
    assert names == {"spec.json", "result.json"}


def test_the_result_is_a_table(searched):
    frame = searched[0].frame()
    assert len(frame) == 14
    assert {"variant", "state", "lr", "segment_length", "eval/kv/exact_match"} <= set(frame.columns)


@pytest.mark.usefixtures("without_mlflow")
def test_a_name_is_used_once(searched, shared, tmp_path):
    file = write_study(tmp_path, name="searched")
    with pytest.raises(SpecError, match=r"memarch study resume searched.*--as NAME2"):
        run(file, shared)
    # As another name it is another study.
    assert run(file, shared, name="other", overrides=["study.budget.trials=1"]).name == "other"


def test_a_study_that_asks_for_more_than_there_is_has_not_begun(shared, tmp_path):
    file = write_study(tmp_path, name="greedy", budget="{trials: 1}")
    with pytest.raises(SpecError, match=r"asks for 1000 GPU, and Ray has .* ask for less"):
        run(file, shared, overrides=["resources.gpus=1000"])
    assert "greedy" not in {study["name"] for study in list_studies(shared)}
    assert run(file, shared).state == "complete"
    assert list(mlflow_runs(shared, "greedy")[1]) == [0]


@pytest.mark.usefixtures("without_mlflow")
def test_a_study_whose_folder_was_deleted_starts_anew(shared, tmp_path):
    file = write_study(tmp_path, name="deleted", budget="{trials: 3}", sampler="tpe")
    first = run(file, shared)
    shutil.rmtree(first.path)
    second = run(file, shared)
    assert [t["params"] for t in second.trials] == [t["params"] for t in first.trials]
    assert states(resume_study("deleted", storage=shared)) == ["complete"] * 3


@pytest.mark.usefixtures("without_mlflow")
def test_a_study_has_one_driver_may_grow_and_does_not_change_with_its_file(shared, tmp_path):
    seen: list[str] = []

    def intrude(event: events.Event) -> None:
        if isinstance(event, events.TrialStarted):
            with pytest.raises(SpecError, match="is being run by process"):
                resume_study("grown", storage=shared)
            seen.append(show_study("grown", shared)["state"])

    run(write_study(tmp_path, name="grown", budget="{trials: 2}"), shared, on_event=intrude)
    assert seen == ["running"] * 2
    write_study(tmp_path, name="grown", lr="{float: [1, 2]}")
    result = resume_study("grown", storage=shared, overrides=["study.budget.trials=4"])
    assert states(result) == ["complete"] * 4
    assert all(trial["params"]["lr"] < 1 for trial in result.trials)


def test_what_goes_wrong_is_recorded_with_its_reason_and_the_study_goes_on(
    shared, tmp_path, monkeypatch
):
    monkeypatch.setattr("memarch.studies.driver.driver.GRACE", 1.0)
    wrong = {"fail": [1], "nan": [2], "silent": [3], "hang": [4], "die": {"5": 9}, "reports": 9}
    file = write_study(
        tmp_path, name="failing", question=wrong, budget="{trials: 7}", trial_time_limit="2s"
    )
    result = run(file, shared)
    assert states(result) == [
        "complete", "failed", "infeasible", "failed", "failed", "failed", "complete",
    ]  # fmt: skip
    assert [trial["failure"] for trial in result.trials] == [
        None, "error", "not_finite", "error", "time_limit", "worker_lost", None,
    ]  # fmt: skip
    reasons = [trial["reason"] for trial in result.trials]
    assert reasons[1] == "ValueError: trial 1 was told to fail"
    assert reasons[2] == "eval/kv/exact_match is not a finite number"
    assert reasons[3].startswith("no metric 'eval/kv/exact_match'; there are: cost/state_bytes")
    assert reasons[4] == "stopped: it ran longer than trial_time_limit, 2 s"
    assert reasons[5] == "its worker died (4 times)"
    assert [trial["attempts"] for trial in result.trials] == [1, 1, 1, 1, 1, 4, 1]
    folder = StudyFolder(shared, "failing")
    assert "told to fail" in (folder.trial(1).path / "error.txt").read_text()
    _, children = mlflow_runs(shared, "failing")
    assert [children[n].data.tags["reason"] for n in range(1, 6)] == reasons[1:6]
    told = optuna_trials(shared, "failing")
    assert [trial.state.name for trial in told] == [
        "COMPLETE", "FAIL", "PRUNED", "FAIL", "FAIL", "FAIL", "COMPLETE",
    ]  # fmt: skip
    assert told[2].constraints == {"not_finite": 1.0}
    assert_records_agree(shared, "failing")


@pytest.mark.usefixtures("without_mlflow")
def test_infeasible_trials_are_told_with_their_violation(shared, tmp_path):
    file = write_study(
        tmp_path,
        name="bounded",
        constraints="{cost/state_bytes: {max: 3000}}",
        budget="{trials: 9}",
    )
    result = run(file, shared)
    assert set(states(result)) == {"complete", "infeasible"}
    for trial, told in zip(result.trials, optuna_trials(shared, "bounded"), strict=True):
        state_bytes = trial["metrics"]["cost/state_bytes"]
        assert (trial["state"] == "infeasible") == (state_bytes > 3000)
        assert told.state.name == ("PRUNED" if state_bytes > 3000 else "COMPLETE")
        assert list(told.constraints.values()) == [state_bytes - 3000]
        if state_bytes > 3000:
            assert trial["reason"] == "cost/state_bytes is 4096, max 3000"
    assert result.best[0] not in [t["number"] for t in result.trials if t["state"] != "complete"]


def test_points_that_break_a_constraint_as_they_stand_cost_no_worker(shared, tmp_path):
    file = write_study(
        tmp_path,
        name="weighed",
        question={"weighed": True},
        constraints="{cost/state_bytes: {max: 3000}, cost/train_flops: {max: 1e9}}",
        budget="{trials: 6}",
    )
    result = run(file, shared)
    ran = [trial for trial in result.trials if trial["attempts"]]
    spared = [trial for trial in result.trials if not trial["attempts"]]
    assert (len(ran), {t["state"] for t in ran}) == (6, {"complete"})
    assert {(t["state"], t["reason"]) for t in spared} == {
        ("infeasible", "cost/state_bytes is 4096, max 3000")
    }
    told = {trial.number: trial for trial in optuna_trials(shared, "weighed")}
    for trial in spared:
        assert told[trial["number"]].state.name == "PRUNED"
        assert told[trial["number"]].constraints == {"cost/state_bytes/max": 1096.0}
        folder = StudyFolder(shared, "weighed").trial(trial["number"]).path
        assert not (folder / "worker.json").exists()
    assert_records_agree(shared, "weighed")


@pytest.mark.usefixtures("without_mlflow")
def test_a_space_without_a_feasible_point_ends(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("memarch.studies.search.asking.MOST_INFEASIBLE", 10)
    file = write_study(
        tmp_path,
        name="hopeless",
        question={"weighed": True},
        constraints="{cost/state_bytes: {max: 3}}",
        budget="{trials: 6}",
    )
    result = run(file, shared)
    assert (result.state, states(result)) == ("complete", ["infeasible"] * 10)


@pytest.mark.usefixtures("without_mlflow")
def test_a_grid_runs_every_point_and_equal_specs_once(shared, tmp_path):
    file = write_study(
        tmp_path,
        name="crossed",
        design="grid",
        lr="{choice: [0.001, 0.003]}",
        budget="{}",
        seeds="{model: [1, 2]}",
    )
    result = run(file, shared)
    assert len(result.trials) == 2 * (2 + 6 + 6)
    points = {
        (t["variant"], *t["params"].values(), t["spec"]["study"]["seeds"]["model"])
        for t in result.trials
    }
    assert len(points) == 28
    assert set(states(result)) == {"complete"}


@pytest.mark.usefixtures("without_mlflow")
def test_equal_specs_are_run_once(shared, tmp_path):
    # Without ranges in what a variant uses, every further draw of it is the same spec.
    file = write_study(
        tmp_path, name="repeated", lr="{choice: [0.001, 0.003]}", budget="{trials: 99}"
    )
    result = run(file, shared)
    copies = [trial for trial in result.trials if trial["reason"].startswith("equal to trial")]
    first = [trial for trial in result.trials if trial not in copies]
    assert len(first) == 14  # the whole space, and then the search ends
    by_number = {trial["number"]: trial for trial in result.trials}
    for copy in copies:
        original = by_number[int(copy["reason"].split()[3].rstrip(","))]
        assert (copy["spec"]["train"], copy["spec"]["model"]) == (
            original["spec"]["train"],
            original["spec"]["model"],
        )
        assert (copy["metrics"], copy["attempts"]) == (original["metrics"], 0)
    log = Log()
    resume_study("repeated", storage=shared, on_event=log)
    assert [event.finished for event in log.of(events.StudyStarted)] == [14]


@pytest.mark.usefixtures("without_mlflow")
def test_all_runs_each_variant_once_a_seed(shared, tmp_path):
    file = write_study(tmp_path, name="every", design="all", budget="{}", seeds="{model: [5, 6]}")
    result = run(file, shared)
    assert [t["variant"] for t in result.trials] == ["none", "rmt", "deltanet"] * 2
    assert len({t["params"]["lr"] for t in result.trials}) == 1
    seeds = [trial["spec"]["study"]["seeds"]["model"] for trial in result.trials]
    assert seeds == [5, 5, 5, 6, 6, 6]


@pytest.mark.usefixtures("without_mlflow")
def test_replicates_of_a_search_differ_in_their_seed_only(shared, tmp_path):
    file = write_study(
        tmp_path,
        name="replicates",
        seeds="{model: [1, 2, 3]}",
        budget="{trials: 9}",
        finalists=1,
    )
    result = run(file, shared)
    for first in (0, 3, 6):
        group = result.trials[first : first + 3]
        assert [t["spec"]["study"]["seeds"]["model"] for t in group] == [1, 2, 3]
        assert len({json.dumps([t["variant"], t["params"]]) for t in group}) == 1
    (best,) = result.best
    assert best in (0, 3, 6)
    tested = [t for t in result.trials if "test/kv/exact_match" in t["metrics"]]
    assert [trial["number"] for trial in tested] == [best, best + 1, best + 2]


@pytest.mark.usefixtures("without_mlflow")
def test_the_grid_sampler_ends_a_search_by_itself(shared, tmp_path):
    file = write_study(
        tmp_path, name="shuffled", sampler="grid", budget="{}", lr="{choice: [0.001, 0.003]}"
    )
    result = run(file, shared)
    assert len(result.trials) == 14
    assert [trial["variant"] for trial in result.trials[:2]] != ["none", "none"]


def test_pruning_under_two_objectives(shared, tmp_path):
    file = write_study(
        tmp_path,
        name="pruned",
        design="grid",
        variants={"rmt": {"model.memory.main": {"type": "rmt", "num_tokens": 2}}},
        objective="{eval/kv/exact_match: maximize, cost/state_bytes: minimize}",
        pruner="{type: median, on: eval/kv/exact_match, n_startup_trials: 1, after: 20%}",
        question={"reports": 6, "seconds": 2.4},
        lr="{choice: [0.003, 0.1]}",
        budget="{}",
    )
    log = Log()
    result = run(file, shared, overrides=["vars.segment_length=16"], on_event=log)
    assert states(result) == ["complete", "pruned"]
    assert result.best == [0]
    last = max(e.share for e in log.of(events.TrialProgress) if e.number == 1)
    assert 0.2 <= last < 1
    assert [t.state.name for t in optuna_trials(shared, "pruned")] == ["COMPLETE", "PRUNED"]
    _, children = mlflow_runs(shared, "pruned")
    assert children[1].data.tags["state"] == "pruned"


def test_a_killed_worker_costs_no_trial(shared, tmp_path, capfd):
    """kill -9 from outside, while the trial reports: it goes on from its checkpoint."""
    killed: list[int] = []

    def kill(event: events.Event) -> None:
        log(event)
        if (
            isinstance(event, events.TrialProgress)
            and event.number == 1
            and event.step >= 50
            and not killed
        ):
            pids = StudyFolder(shared, "killed").trial(1).path / "pids"
            killed.append(int(pids.read_text().split()[-1]))
            os.kill(killed[0], signal.SIGKILL)

    log = Log()
    file = write_study(
        tmp_path, name="killed", question={"reports": 4, "seconds": 2}, budget="{trials: 3}"
    )
    result = run(file, shared, on_event=kill)
    assert killed
    assert states(result) == ["complete"] * 3
    assert [trial["attempts"] for trial in result.trials] == [1, 2, 1]
    assert result.trials[1]["metrics"]["train/begun"] > 0
    assert "trial 1: its worker died; it goes on from its checkpoint" in log.notices()
    assert_records_agree(shared, "killed")
    assert capfd.readouterr().out == ""
    _, children = mlflow_runs(shared, "killed")
    assert len(children) == 3
    assert children[1].info.status == "FINISHED"


PLUGIN = """
from typing import Literal

from memarch.components.memory import Memory, MemorySettings, memories


@memories.register("answering")
class Answering(Memory):
    site = "segment"
    answer = {answer}

    class Settings(MemorySettings):
        type: Literal["answering"]

    def __init__(self, settings, context):
        super().__init__()

    def init_state(self, batch, like):
        return {{}}

    def step(self, state, x, inner, segment):
        return inner(x), state
"""


@pytest.mark.usefixtures("without_mlflow")
def test_a_users_own_code_reaches_the_workers_and_stays_as_it_was(shared, tmp_path):
    own = tmp_path / "answering.py"
    own.write_text(PLUGIN.format(answer=0.42))
    file = write_study(
        tmp_path,
        name="own",
        variants={
            "rmt": {"model.memory.main": {"type": "rmt", "num_tokens": 2}},
            "mine": {"model.memory.main": {"type": "answering"}},
        },
        plugins="[answering.py]",
        budget="{trials: 2}",
    )
    run(file, shared)
    own.write_text(PLUGIN.format(answer=0.1))
    result = resume_study("own", storage=shared, overrides=["study.budget.trials=4"])
    scores = {t["variant"]: t["metrics"].get("eval/kv/exact_match") for t in result.trials}
    assert scores["mine"] == 0.42
    assert result.trials[1]["spec"]["plugins"]


@pytest.mark.usefixtures("without_mlflow")
def test_values_that_do_not_fit_together_fail_their_trial_alone(shared, tmp_path):
    """Each value is fine with the others' first ones, which is what `validate` can see."""
    length = "=16 * (one + two - 2) * (one + two - 2)"
    file = write_study(
        tmp_path,
        name="misfits",
        design="grid",
        variants={"none": {"model.memory": {}, "model.segment_length": length}},
        lr="0.003, one: {choice: [0, 1, 3]}, two: {choice: [0, 1, 3]}",
        budget="{}",
    )
    result = run(file, shared)
    failed = [trial for trial in result.trials if trial["state"] == "failed"]
    assert [trial["params"] for trial in failed] == [{"one": 1, "two": 1}]
    assert "segment_length" in failed[0]["reason"]
    assert states(result).count("complete") == 8


@pytest.mark.usefixtures("without_mlflow")
def test_a_trial_that_breaks_a_constraint_stops_at_its_first_report(shared, tmp_path):
    file = write_study(
        tmp_path,
        name="early",
        design="all",
        budget="{}",
        lr="0.003",
        variants={"rmt": {"model.memory.main": {"type": "rmt", "num_tokens": 2}}},
        constraints="{cost/state_bytes: {max: 10}}",
        question={"reports": 20, "seconds": 20},
    )
    log = Log()
    result = run(file, shared, on_event=log)
    assert states(result) == ["infeasible"]
    assert result.trials[0]["metrics"]["cost/state_bytes"] > 10
    assert max(event.step for event in log.of(events.TrialProgress)) < 100


def test_a_folder_as_mlflow_store_is_refused_at_once(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    with pytest.raises(SpecError, match=r"MLFLOW_TRACKING_URI.*is a folder"):
        run(write_study(tmp_path, name="filestore"), shared)


def test_without_its_mlflow_server_a_study_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MEMARCH_SERVER_WAIT", "1")
    log = Log()
    result = run(
        write_study(tmp_path, name="alone", budget="{trials: 2}"), tmp_path / "runs", on_event=log
    )
    assert states(result) == ["complete"] * 2
    assert "MLflow: " in log.notices()
    assert "resuming the study logs what is missing" in log.notices()
    # Back at a store of its own, the study is there after `resume`.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    resume_study("alone", storage=tmp_path / "runs")
    _, children = mlflow_runs(tmp_path / "runs", "alone")
    assert [children[n].info.status for n in range(2)] == ["FINISHED"] * 2
    assert children[0].data.metrics == result.trials[0]["metrics"]
    assert_records_agree(tmp_path / "runs", "alone")


@pytest.mark.usefixtures("without_mlflow")
def test_a_study_may_extend_the_best_trial_of_another(searched, shared, tmp_path):
    best = searched[0].best[0]
    file = tmp_path / "next.yaml"
    file.write_text("extends: {study: searched, trial: best}\nstudy: {design: all}\n")
    result = run(file, shared)
    trained = result.trials[0]["spec"]["train"]
    assert trained == searched[0].trials[best]["spec"]["train"]


def test_a_search_without_an_end_is_an_error(shared, tmp_path):
    with pytest.raises(SpecError, match="is required for a search"):
        run(write_study(tmp_path, name="endless", budget="{}"), shared)
    assert not StudyFolder(shared, "endless").exists()
