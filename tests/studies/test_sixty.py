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

from memarch.studies.driver import show_study
from memarch.studies.store import FINISHED, StudyFolder

TRIALS = 60
DRIVER = Path(__file__).with_name("cluster_study.py")


def finished(folder: StudyFolder) -> int:
    return sum(record["state"] in FINISHED for record in folder.records().values())


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def busy_on(raylet: int, folder: StudyFolder) -> dict[int, int]:
    """Trials that run on a node now, and their processes."""
    found = {}
    for number, record in folder.records().items():
        about = folder.trial(number).path / "worker.json"
        if record["state"] != "running" or not about.exists():
            continue
        process = json.loads(about.read_text())
        try:
            if process.get("attempt") == record["attempts"] and parent(process["pid"]) == raylet:
                found[number] = process["pid"]
        except FileNotFoundError:
            continue
    return found


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
        question={"reports": 4, "seconds": 1.2},
    )
    folder = StudyFolder(storage, "sixty")
    killed: dict[str, list[int]] = {"workers": [], "node": []}
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

        def kill_one(after: int, node: int, whole: bool = False) -> None:
            """Of the trials that run on the node when so many are finished, or the node itself."""
            wait_until(lambda: finished(folder) >= after or driver.poll() is not None, "", 600)
            raylet = cluster.raylets[node]
            wait_until(lambda: bool(busy_on(raylet, folder)) or driver.poll() is not None, "", 120)
            assert driver.poll() is None, said()
            number, pid = next(iter(busy_on(raylet, folder).items()))
            killed["node" if whole else "workers"].append(number)
            if whole:
                cluster.kill(node)
            else:
                os.kill(pid, signal.SIGKILL)

        kill_one(8, node=0)
        kill_one(20, node=1)
        kill_one(32, node=2, whole=True)
        assert driver.wait(900) == 0, said()
    seconds = time.monotonic() - began

    trials = show_study("sixty", storage)["trials"]
    assert [trial["number"] for trial in trials] == list(range(TRIALS))
    assert {trial["state"] for trial in trials} == {"complete"}, said()
    again = {trial["number"] for trial in trials if trial["attempts"] > 1}
    assert set(killed["workers"]) | set(killed["node"]) <= again
    assert sum(trial["attempts"] for trial in trials) <= TRIALS + 5
    assert any(trial["metrics"]["train/begun"] > 0 for trial in trials)  # from a checkpoint
    assert_records_agree(storage, "sixty", optuna_url=sqlalchemy(url), mlflow_uri=mlflow_server.url)
    result = {
        "question": "Do 60 trials over 3 raylets survive two killed workers and a killed raylet?",
        "trials": dict(Counter(trial["state"] for trial in trials)),
        "attempts": sum(trial["attempts"] for trial in trials),
        "killed": killed,
        "run again": sorted(again),
        "records agree": True,
        "seconds": round(seconds, 1),
        "seconds a trial": 1.2,
        "nodes": "3 raylets of 1 CPU on one machine, one of them lost after 32 trials",
        "stores": "PostgreSQL for Optuna, an MLflow server, loopback",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("ray", "optuna", "mlflow", "psycopg")},
    }
    (tmp_path / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def sqlalchemy(url: str) -> Any:
    return url.replace("postgresql://", "postgresql+psycopg://")
