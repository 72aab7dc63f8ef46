"""Sixty trials over three raylets, with PostgreSQL and an MLflow server, while workers die."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from agreement import assert_records_agree
from driver_study import write_study
from loopback import LoopbackCluster
from servers import wait_until

from memarch.studies.records.store import StudyFolder, show_study

TRIALS = 60
SECONDS = 1.2
"""A trial's time; those below wait for minutes, in their first attempt, after a checkpoint."""
FIRST, LATER = 9, (33, 34)
DRIVER = Path(__file__).parents[1] / "cluster_study.py"


def paused(folder: StudyFolder, number: int) -> int | None:
    """The process of a trial that waits after its first checkpoint."""
    trial = folder.trial(number).path
    if not (trial / "checkpoint").exists():
        return None
    return int(json.loads((trial / "worker.json").read_text())["pid"])


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_sixty_trials_survive_two_workers_and_a_node(postgres, mlflow_server, tmp_path):
    storage, url = tmp_path / "runs", postgres.new_database()
    file = write_study(
        tmp_path,
        name="sixty",
        budget=f"{{trials: {TRIALS}}}",
        cpus=1,
        finalists=2,
        sampler="{type: tpe, n_startup_trials: 10}",
        question={"reports": 4, "seconds": SECONDS, "pause": [FIRST, *LATER]},
    )
    folder = StudyFolder(storage, "sixty")
    began = time.monotonic()
    with LoopbackCluster([{"num_cpus": 1}] * 3) as cluster:
        log = (tmp_path / "driver.log").open("w")
        driver = subprocess.Popen(
            [sys.executable, str(DRIVER), cluster.address, str(file), str(storage)],
            env=cluster.environment | {"MLFLOW_TRACKING_URI": mlflow_server.url, "DATABASE": url},
            stdout=log,
            stderr=log,
            cwd=tmp_path,
        )
        said = (tmp_path / "driver.log").read_text

        def process_of(number: int) -> int:
            wait_until(lambda: bool(paused(folder, number)) or driver.poll() is not None, "", 600)
            pid = paused(folder, number)
            assert driver.poll() is None, said()
            assert pid is not None
            return pid

        os.kill(process_of(FIRST), signal.SIGKILL)
        both = {number: process_of(number) for number in LATER}
        nodes = {number: parent(pid) for number, pid in both.items()}
        # Not the head's, whose loss is that of the cluster.
        lost = next(n for n, raylet in nodes.items() if raylet != cluster.raylets[0])
        cluster.kill(cluster.raylets.index(nodes[lost]))
        (other,) = set(LATER) - {lost}
        os.kill(both[other], signal.SIGKILL)
        assert driver.wait(900) == 0, said()
    seconds = time.monotonic() - began

    trials = show_study("sixty", storage)["trials"]
    assert [trial["number"] for trial in trials] == list(range(TRIALS))
    assert {trial["state"] for trial in trials} == {"complete"}, said()
    again = {trial["number"] for trial in trials if trial["attempts"] > 1}
    assert again == {FIRST, *LATER}
    assert {t["number"] for t in trials if t["metrics"]["train/begun"] > 0} == again  # went on
    assert sum(trial["attempts"] for trial in trials) == TRIALS + 3
    assert_records_agree(storage, "sixty", optuna_url=sqlalchemy(url), mlflow_uri=mlflow_server.url)
    result = {
        "question": "Do 60 trials over 3 raylets survive two killed workers and a killed raylet?",
        "trials": dict(Counter(trial["state"] for trial in trials)),
        "attempts": sum(trial["attempts"] for trial in trials),
        "killed": {"workers, at trials": [FIRST, other], "raylet, at trial": lost},
        "records agree": True,
        "seconds": round(seconds, 1),
        "seconds a trial": SECONDS,
        "nodes": "3 raylets of 1 CPU on one machine",
        "stores": "PostgreSQL for Optuna, an MLflow server, loopback",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("ray", "optuna", "mlflow", "psycopg")},
    }
    (tmp_path / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def sqlalchemy(url: str) -> Any:
    return url.replace("postgresql://", "postgresql+psycopg://")
