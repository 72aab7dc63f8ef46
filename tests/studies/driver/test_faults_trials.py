"""Trials that run out of memory, stand still, leak or fail alike; what a study does about it."""

from __future__ import annotations

from pathlib import Path

import driver_study as helpers
import pytest
from agreement import assert_records_agree

from memarch.studies.driver import events
from memarch.studies.driver.sessions import resume_study
from memarch.studies.records.store import StudyFolder

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def faulty(local_ray, storage, tmp_path_factory) -> tuple[events.StudyResult, str]:
    """One worker, six trials, four of them bad; and the notices."""
    plan = {"largest_batch": {"1": 8, "5": 0}, "pause": [2], "eat": [3], "leak": {"4": 300}}
    file = helpers.write_study(
        tmp_path_factory.mktemp("files"),
        name="faulty",
        question=plan,
        budget="{trials: 7}",
        stall_limit="8s",
        on_failure="{out_of_memory: {times: 2}}",
        memory="800MiB",
    )
    notices: list[str] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.Notice):
            notices.append(event.message)

    return helpers.run(file, storage, on_event=listen), "\n".join(notices)


def pids(storage: Path, number: int) -> list[str]:
    return (StudyFolder(storage, "faulty").trial(number).path / "pids").read_text().split()


def test_records_agree_whatever_went_wrong(faulty, storage):
    assert [trial["state"] for trial in faulty[0].trials] == [
        "complete", "complete", "complete", "failed", "complete", "failed", "complete",
    ]  # fmt: skip
    assert_records_agree(storage, "faulty")


def test_out_of_memory_is_tried_again_with_half_the_batch(faulty, storage):
    result, notices = faulty
    folder = StudyFolder(storage, "faulty").trial(1)
    assert folder.record["failures"] == {"out_of_memory": 2}
    assert folder.record["changes"] == {"train.batch_size": 8, "train.accumulate": 4}
    train = result.trials[1]["spec"]["train"]
    assert (train["batch_size"], train["accumulate"]) == (8, 4)
    assert result.trials[1]["failure"] is None
    assert (
        "trial 1: out of memory: no room for 32 samples; it goes on with batches of 16" in notices
    )
    assert (folder.path / "result.1.json").exists()


def test_out_of_memory_at_its_smallest_batch_is_a_failure(faulty):
    trial = faulty[0].trials[5]
    assert (trial["failure"], trial["attempts"]) == ("out_of_memory", 3)
    assert trial["reason"] == "out of memory: no room for 8 samples (3 times)"


def test_a_trial_that_stands_still_is_ended_and_goes_on(faulty):
    result, notices = faulty
    assert (result.trials[2]["attempts"], result.trials[2]["metrics"]["train/begun"]) == (2, 1.0)
    assert "trial 2: stalled: no training step and no evaluation for 8 s; it goes on" in notices


def test_a_trial_beyond_its_memory_is_ended_alone(faulty):
    trial = faulty[0].trials[3]
    assert trial["failure"] == "out_of_memory"
    assert "MiB, and resources.memory is 800 MiB" in trial["reason"]


def test_a_worker_that_leaks_is_replaced(faulty, storage):
    assert pids(storage, 5)[0] != pids(storage, 4)[-1]
    assert pids(storage, 6) == pids(storage, 5)[-1:]


def test_errors_of_one_kind_stop_the_study_which_resumes(storage, tmp_path):
    file = helpers.write_study(
        tmp_path,
        name="alike",
        question={"fail": [1, 2, 3, 4]},
        budget="{trials: 6}",
        on_failure="{error: {stop_after: 2}}",
    )
    result = helpers.run(file, storage)
    assert (result.state, len(result.trials)) == ("failed", 3)
    reason = StudyFolder(storage, "alike").info["reason"]
    assert reason.startswith("2 trials failed alike (error, ValueError at driver_trials.py:")
    assert "ValueError: trial 2 was told to fail" in reason
    assert_records_agree(storage, "alike")
    again = resume_study("alike", storage=storage, overrides=["study.on_failure.error=fail"])
    assert again.state == "complete"
    assert [t["state"] for t in again.trials] == ["complete", *["failed"] * 4, "complete"]
    assert_records_agree(storage, "alike")
