"""A disk that is full: while a trial writes, and while a checkpoint is saved."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import driver_study as helpers
import pytest
from agreement import assert_records_agree

from memarch.studies.cluster import heartbeat
from memarch.studies.driver import events
from memarch.studies.driver.failures import StudyStoppedError
from memarch.studies.driver.sessions import resume_study
from memarch.studies.records.store import StudyFolder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB in main memory; only root may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system can be made here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """A file that takes all space that is left."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 2**16)
        except OSError:
            pass
    return ballast


@pytest.mark.usefixtures("local_ray")
def test_a_full_disk_stops_the_study_which_resumes(small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMARCH_SERVER_WAIT", "2")  # MLflow's file is on the full disk, too
    filled: list[Path] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.TrialFinished) and not filled:
            filled.append(fill(small_disk))

    file = helpers.write_study(
        tmp_path, name="full", question={"reports": 4, "seconds": 2}, budget="{trials: 3}"
    )
    try:
        result = helpers.run(file, small_disk, on_event=listen)
        reason = StudyFolder(small_disk, "full").info["reason"]
        assert result.state == "failed"
    except StudyStoppedError as error:
        reason = str(error)
    assert "no space left for" in reason
    filled[0].unlink()
    again = resume_study("full", storage=small_disk)
    assert (again.state, [t["state"] for t in again.trials]) == ("complete", ["complete"] * 3)
    assert_records_agree(small_disk, "full")


def test_the_last_checkpoint_is_whole_when_the_next_has_no_space(small_disk):
    torch = pytest.importorskip("torch")
    from memarch.studies.training import checkpoints

    folder = small_disk / "checkpoints"
    checkpoints.save_checkpoint(folder, 1, {"weights": torch.ones(2**20)})
    ballast = fill(small_disk)
    with pytest.raises(checkpoints.NoSpaceError, match="no space left for"):
        checkpoints.save_checkpoint(folder, 2, {"weights": torch.zeros(2**20)})
    content = checkpoints.load_checkpoint(folder)
    assert content is not None
    assert content["weights"].sum() == 2**20
    assert [path.name for path in folder.iterdir()] == ["step-00000001.pt"]
    ballast.unlink()
    checkpoints.save_checkpoint(folder, 2, {"weights": torch.zeros(2**20)})
    assert [path.name for path in folder.iterdir()] == ["step-00000002.pt"]
    assert not heartbeat.note("nobody listens here")
