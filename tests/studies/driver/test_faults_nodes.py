"""A node of the cluster is lost while trials run on it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import driver_study as helpers
import pytest
from agreement import assert_records_agree
from processes import Driver, wait_for

from memarch.studies.records.store import StudyFolder


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch):
    """Two raylets with a core each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()


def kill_raylet(node) -> None:
    """As when a machine is gone: no farewell."""
    (raylet,) = node.all_processes["raylet"]
    os.kill(raylet.process.pid, signal.SIGKILL)


def test_a_lost_node_costs_no_trial(cluster, tmp_path: Path):
    storage = tmp_path / "runs"
    file = helpers.write_study(
        tmp_path,
        name="lost",
        question={"pause": [0, 1], "reports": 3},
        budget="{trials: 5}",
        cpus=1,
    )
    driver = Driver(file, storage, cluster.address, log=tmp_path / "log")
    folder = StudyFolder(storage, "lost")
    places = [folder.trial(number).path / "checkpoint" for number in (0, 1)]
    wait_for(lambda: all(place.exists() for place in places), "both trials")
    (worker,) = cluster.worker_nodes
    kill_raylet(worker)
    wait_for(lambda: "its machine was lost" in driver.said, "the notice of the loss")
    (folder.path / "go_on").touch()
    assert driver.wait(timeout=200) == 0
    assert "state complete" in driver.said
    records = folder.records()
    assert [record["state"] for record in records.values()] == ["complete"] * 5
    assert sorted(record["attempts"] for record in records.values()) == [1, 1, 1, 1, 2]
    (lost,) = [record for record in records.values() if record["attempts"] == 2]
    assert lost["failures"] == {"worker_lost": 1}
    assert lost["metrics"]["train/begun"] > 0
    assert_records_agree(storage, "lost")
