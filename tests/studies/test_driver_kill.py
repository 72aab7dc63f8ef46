"""A driver in a process of its own, killed or interrupted in the middle of a study, and resumed."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memarch.studies.driver import resume_study, show_study
from memarch.studies.store import StudyFolder

SCRIPT = Path(__file__).with_name("driver_study.py")


def load_helpers() -> Any:
    spec = importlib.util.spec_from_file_location("driver_study", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


helpers = load_helpers()

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow]


def start_driver(file: Path, storage: Path) -> subprocess.Popen[str]:
    """A session of its own, as in a terminal: Ctrl-C reaches all its processes."""
    log = (storage.parent / "driver.log").open("w")
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(file), str(storage)],
        stdout=log,
        stderr=log,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 120) -> Any:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(f"{what} did not happen within {timeout} s")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


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


def test_a_study_whose_driver_was_killed_ends_as_if_it_had_not_been(storage, tmp_path):
    file = helpers.write_study(
        tmp_path, name="cut", **settings(question={"pause": [4], "reports": 3})
    )
    driver = start_driver(file, storage)
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

    helpers.run(helpers.write_study(tmp_path, name="whole", **settings()), storage)
    assert after == results(storage, "whole")
    assert_mlflow_is_mended(storage)


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


def test_ctrl_c_leaves_a_study_that_resumes(storage, tmp_path):
    file = helpers.write_study(
        tmp_path, name="stopped", **settings(question={"pause": [2], "reports": 3})
    )
    driver = start_driver(file, storage)
    folder = StudyFolder(storage, "stopped")
    wait_for(lambda: (folder.trial(2).path / "checkpoint").exists(), "the third trial")
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait(timeout=60) == 0
    log = (storage.parent / "driver.log").read_text()
    assert "state interrupted" in log
    assert "Traceback" not in log

    shown = show_study("stopped", storage)
    assert shown["state"] == "interrupted"
    states = [trial["state"] for trial in shown["trials"]]
    assert states == ["complete", "complete", "waiting"]
    result = resume_study("stopped", storage=storage)
    assert [trial["state"] for trial in result.trials] == ["complete"] * 8
    assert result.trials[2]["attempts"] == 2
