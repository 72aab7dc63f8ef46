"""deploy/slurm/study.sbatch with stand-ins for SLURM's commands, and two real Ray nodes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driver_study import write_study
from servers import free_port, wait_until

from memarch.studies.records.store import StudyFolder, show_study

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "deploy" / "slurm" / "study.sbatch"

Start = Callable[..., "subprocess.Popen[bytes]"]  # its `port` is that of the head


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the script as SLURM would, in a session of its own."""
    port = str(free_port())
    ray_folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets have short names
    environment = os.environ | {
        "PATH": f"{HERE / 'slurm'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "STAND_IN": str(tmp_path),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
        "RAY_PORT": port,
        "RAY_TMPDIR": ray_folder,
    }
    for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        environment.pop(name, None)
    started = []

    def begin(*arguments: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "job.log").open("ab") as log:
            job = subprocess.Popen(
                ["bash", str(SCRIPT), *arguments],
                env=environment,
                cwd=tmp_path,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started.append(job)
        return job

    begin.port = port  # type: ignore[attr-defined]
    yield begin
    for job in started:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    shutil.rmtree(ray_folder, ignore_errors=True)


def processes_of(folder: str) -> list[str]:
    """Command lines of this machine that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if folder in line:
            found.append(line)
    return found


def test_without_a_study_file_the_script_says_what_it_wants(start, tmp_path):
    assert start().wait(20) == 2
    assert "usage: sbatch study.sbatch FILE" in (tmp_path / "job.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_is_cut_off_is_queued_again_and_goes_on(start, tmp_path):
    storage, log = tmp_path / "runs", tmp_path / "job.log"
    file = write_study(
        tmp_path,
        name="queued",
        budget="{trials: 4}",
        cpus=1,
        question={"reports": 3, "pause": [1]},
    )
    job = start(str(file), "--storage", str(storage))
    paused = StudyFolder(storage, "queued").trial(1).path / "checkpoint"
    wait_until(
        lambda: paused.exists() or job.poll() is not None, "a checkpoint of the second trial", 240
    )
    assert job.poll() is None, log.read_text()
    time.sleep(1)
    job.send_signal(signal.SIGTERM)  # as `--signal=B:TERM@180` does
    job.wait(120)
    assert (tmp_path / "requeued").read_text() == "4711\n"
    assert show_study("queued", storage)["state"] == "interrupted"

    again = start(str(file), "--storage", str(storage))
    assert again.wait(240) == 0, log.read_text()
    shown = show_study("queued", storage)
    assert shown["state"] == "complete"
    assert [trial["state"] for trial in shown["trials"]] == ["complete"] * 4
    assert shown["trials"][1]["attempts"] == 2
    assert shown["trials"][1]["metrics"]["train/begun"] == 1
    assert (tmp_path / "requeued").read_text() == "4711\n"
    options = (tmp_path / "srun.log").read_text()
    assert {"--nodelist=node1", "--nodelist=node2"} <= set(options.split())
    assert "RAY_AUTH_TOKEN" not in options
    wait_until(lambda: not processes_of(f":{start.port}"), "the end of the Ray nodes", 30)
