"""A driver in a process of its own, killed or interrupted in the middle of a study, and resumed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import driver_study as helpers
import pytest
from agreement import assert_records_agree
from processes import Driver, alive, wait_for

from memarch.studies.driver.sessions import resume_study
from memarch.studies.records.store import StudyFolder, show_study

pytestmark = pytest.mark.usefixtures("local_ray")


def results(storage: Path, name: str) -> dict[int, Any]:
    """What a trial is and gave, without what depends on when it was interrupted."""
    return {
        trial["number"]: (
            trial["variant"],
            trial["params"],
            trial["state"],
            trial["metrics"].get("eval/kv/exact_match"),
        )
        for trial in show_study(name, storage)["trials"]
    }


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kill") / "runs"


def settings(**changes: Any) -> dict[str, Any]:
    # One worker: what a trial's sampler knows does then not depend on timing.
    return {
        "sampler": "{type: tpe, n_startup_trials: 3}",
        "budget": "{trials: 8}",
        "finalists": 1,
    } | changes


def test_a_study_whose_driver_was_killed_ends_as_if_it_had_not_been(storage, tmp_path, monkeypatch):
    file = helpers.write_study(
        tmp_path, name="cut", **settings(question={"pause": [4], "reports": 3})
    )
    driver = Driver(file, storage, log=tmp_path / "log")
    folder = StudyFolder(storage, "cut")
    middle = folder.trial(4).path
    wait_for(lambda: (middle / "checkpoint").exists(), "the fifth trial")
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()

    workers = {int(pid) for pid in (middle / "pids").read_text().split()}
    wait_for(lambda: not any(map(alive, workers)), "the end of the workers", 30)
    assert not (middle / "result.json").exists()
    shown = show_study("cut", storage)
    assert (shown["state"], shown["trials"][4]["state"]) == ("interrupted", "waiting")
    before = results(storage, "cut")

    result = resume_study("cut", storage=storage)
    assert (result.state, len(result.trials)) == ("complete", 8)
    attempts = [trial["attempts"] for trial in result.trials]
    assert attempts == [1, 1, 1, 1, 2, 1, 1, 1]
    assert result.trials[4]["metrics"]["train/begun"] > 0
    after = results(storage, "cut")
    assert {n: after[n] for n in range(4)} == {n: before[n] for n in range(4)}

    assert_records_agree(storage, "cut")
    assert_mlflow_is_mended(storage)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    helpers.run(helpers.write_study(tmp_path, name="whole", **settings()), storage)
    assert after == results(storage, "whole")


def assert_mlflow_is_mended(storage: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("cut")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 9
    assert {run.info.status for run in runs} == {"FINISHED"}
    (again,) = [run for run in runs if run.data.tags.get("memarch.trial") == "4"]
    history = client.get_metric_history(again.info.run_id, "eval/kv/exact_match")
    steps = [point.step for point in history]
    assert steps == sorted(set(steps))


@pytest.fixture
def paused(storage, tmp_path, request) -> Any:
    """A driver whose third trial stands at a report, to be interrupted; its study's folder."""
    name = request.node.name.removeprefix("test_")
    plan = {"pause": [2], "reports": 3}
    file = helpers.write_study(tmp_path, name=name, **settings(question=plan, budget="{trials: 5}"))
    driver = Driver(file, storage, log=tmp_path / "log")
    folder = StudyFolder(storage, name)
    wait_for(lambda: (folder.trial(2).path / "checkpoint").exists(), "the third trial")
    yield driver, folder
    driver.kill()
    driver.wait()


def ends_with_resume(folder: StudyFolder, attempts: int) -> None:
    result = resume_study(folder.name, storage=folder.storage)
    assert [trial["state"] for trial in result.trials] == ["complete"] * 5
    assert result.trials[2]["attempts"] == attempts
    assert_records_agree(folder.storage, folder.name)


def test_ctrl_c_finishes_what_runs(paused):
    driver, folder = paused
    os.killpg(driver.pid, signal.SIGINT)
    wait_for(lambda: "is finished first" in driver.said, "the answer to Ctrl-C")
    (folder.path / "go_on").touch()
    assert driver.wait(timeout=200) == 0
    assert "Traceback" not in driver.said
    assert "stopping: 1 running trial is finished first; Ctrl-C again saves and" in driver.said
    assert "interrupted; `memarch study resume ctrl_c_finishes_what_runs` goes on" in driver.said
    shown = show_study(folder.name, folder.storage)
    assert shown["state"] == "interrupted"
    assert [trial["state"] for trial in shown["trials"]] == ["complete"] * 3
    assert (folder.path / "report.html").exists()
    assert_records_agree(folder.storage, folder.name)
    ends_with_resume(folder, attempts=1)


def stops_now(driver: Driver, folder: StudyFolder) -> None:
    began = time.monotonic()
    assert driver.wait(timeout=200) == 0
    assert time.monotonic() - began < 150
    assert "Traceback" not in driver.said
    shown = show_study(folder.name, folder.storage)
    assert [trial["state"] for trial in shown["trials"]] == ["complete", "complete", "waiting"]


def test_ctrl_c_twice_stops_now(paused):
    driver, folder = paused
    for _ in range(2):
        os.kill(driver.pid, signal.SIGINT)
        time.sleep(0.3)
    stops_now(driver, folder)
    assert_records_agree(folder.storage, folder.name)
    ends_with_resume(folder, attempts=2)


@pytest.mark.usefixtures("without_mlflow")
def test_sigterm_stops_now_too_like_ctrl_c_twice(paused):
    driver, folder = paused
    os.kill(driver.pid, signal.SIGTERM)
    stops_now(driver, folder)
