"""What a killed driver leaves half done, in Optuna and in MLflow: mended by the next one, and told.

No trial runs here, and no Ray: drivers are taken up to where their loop would begin.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import driver_study as helpers
import pytest

from memarch.studies.driver import events
from memarch.studies.driver.driver import Driver
from memarch.studies.driver.sessions import resume_study
from memarch.studies.driver.zombies import without_zombies
from memarch.studies.records.mirror import Mirror
from memarch.studies.records.store import StudyFolder, write_json

METRICS = {"eval/kv/exact_match": 0.5}
DONE = {"state": "complete", "metrics": METRICS}


@pytest.fixture
def half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    """A study of six trials whose driver went away at a different point of each."""
    monkeypatch.setattr(Driver, "run", lambda self, notes: self)
    file = helpers.write_study(tmp_path, name="half", budget="{trials: 9}")
    driver: Any = helpers.run(file, tmp_path / "runs")
    driver._prepare()
    asked = [driver.asking.ask() for _ in range(6)]
    for one in asked:
        driver._admit(one)
    folder: StudyFolder = driver.folder

    def write(number: int, **changes: Any) -> dict[str, Any]:
        record = driver.records[number] | {"attempts": 1} | changes
        folder.trial(number).write_record(record)
        return dict(record)

    write(0, **DONE)  # before Optuna was told
    write(1, state="running")  # before the worker's result was read
    write_json(folder.trial(1).path / "result.json", DONE)
    write(2, state="running")  # in the middle of training
    shutil.rmtree(folder.trial(3).path)  # before the record was written
    driver.asking.tell(asked[4].trial, write(4, **DONE), None)
    write(4, state="failed")  # what no order of events gives
    driver.asking.tell(asked[5].trial, write(5, **DONE), None)
    driver.asking.close()
    return folder


def test_resume_tells_what_it_mends(half_done: StudyFolder) -> None:
    told: list[str] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.Notice):
            told.append(event.message)

    driver: Any = resume_study("half", storage=half_done.storage, on_event=listen)
    driver._prepare()
    assert told == [
        "resumed: trial 0 is complete, and Optuna had it running",
        "resumed: trial 1 had ended, and was not recorded",
        "resumed: trial 2 was cut off: it goes on from its checkpoint",
        "resumed: trial 3 was drawn and not recorded: it runs now",
        "resumed: trial 4 is failed, and Optuna has it as complete, for good: the record counts",
    ]
    assert [trial.number for trial in driver.waiting] == [2, 3]
    driver.asking.close()
    states = {number: record["state"] for number, record in half_done.records().items()}
    assert states == {
        0: "complete",
        1: "complete",
        2: "running",
        3: "waiting",
        4: "failed",
        5: "complete",
    }
    told.clear()
    again: Any = resume_study("half", storage=half_done.storage, on_event=listen)
    again._prepare()
    assert [line for line in told if "trial 4" not in line] == [
        "resumed: trial 2 was cut off: it goes on from its checkpoint"
    ]
    again.asking.close()


def test_mlflow_keeps_one_run_a_trial_and_the_next_session_tells(half_done: StudyFolder) -> None:
    mirror = Mirror(half_done)
    assert mirror.connect() == []
    for number in (0, 1, 5):
        mirror.sync(number)
    half_done.trial(1).write_record(half_done.trial(1).record | DONE)
    client, experiment = mirror._api, mirror._experiment

    def another(number: int, start: int, status: str = "RUNNING") -> str:
        tags = {"memarch.id": mirror._id, "memarch.trial": str(number), "memarch.kind": "trial"}
        run = client.create_run(experiment, start_time=start, tags=tags).info.run_id
        if status != "RUNNING":
            client.set_terminated(run, status)
        return str(run)

    second = another(5, start=1)  # begun before the finished one, and not finished
    orphan = another(40, start=2, status="FINISHED")
    earlier, later = another(2, start=3), another(2, start=4)
    told = Mirror(half_done).connect()
    assert sorted(told) == [
        f"MLflow had a run of it without a record: trial 40, run {orphan}, deleted there",
        f"MLflow had a second run of it: trial 2, run {later}, deleted there",
        f"MLflow had a second run of it: trial 5, run {second}, deleted there",
        "MLflow was behind the records of trials 1: brought up to date",
    ]
    ends = {run: client.get_run(run).info for run in (second, orphan, later, earlier)}
    assert [ends[run].lifecycle_stage for run in (second, orphan, later)] == ["deleted"] * 3
    assert [ends[run].status for run in (second, orphan, later)] == ["KILLED", "FINISHED", "KILLED"]
    assert (ends[earlier].lifecycle_stage, ends[earlier].status) == ("active", "RUNNING")
    left = client.search_runs([experiment], "tags.`memarch.kind` = 'trial'")
    kept, nothing = without_zombies(client, left, range(6))
    assert (sorted(kept), nothing) == ([0, 1, 2, 5], [])
    assert kept[5].info.run_id == mirror._runs[5].id
