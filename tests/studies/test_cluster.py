"""Studies on a cluster of two nodes: the driver's code reaches both; a trial may span them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driver_study import write_study
from loopback import LoopbackCluster

from memarch.studies.driver import show_study
from memarch.studies.store import StudyFolder

HERE = Path(__file__).parent
PLUGIN = """
from memarch.components.memory import memories, Memory

@memories.register("mine")
class Mine(Memory):
    \"\"\"Nothing.\"\"\"
    answer = 42
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackCluster]:
    """The second node has an old memarch, of which little is left."""
    old = tmp_path_factory.mktemp("old")
    (old / "memarch").mkdir()
    (old / "memarch" / "__init__.py").write_text("__version__ = '0.0.1'\n")
    second = {"num_cpus": 1, "resources": {"second": 1}, "env_vars": {"PYTHONPATH": str(old)}}
    with LoopbackCluster([{"num_cpus": 1}, second]) as started:
        yield started


def drive(
    cluster: LoopbackCluster, file: Path, storage: Path, *overrides: str, **environment: str
) -> str:
    script = HERE / "cluster_study.py"
    done = subprocess.run(
        [sys.executable, str(script), cluster.address, str(file), str(storage), *overrides],
        env=cluster.environment | environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=storage.parent,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_node_without_the_drivers_memarch_gets_it(cluster, tmp_path):
    file = write_study(tmp_path, name="sent", budget="{trials: 2}", cpus=1)
    said = drive(cluster, file, tmp_path / "runs", "resources.custom.second=1")
    assert "the driver's is sent there as a wheel" in said
    assert [t["state"] for t in show_study("sent", tmp_path / "runs")["trials"]] == ["complete"] * 2
    assert not list((tmp_path / "runs").glob(".node-check-*"))


@pytest.mark.slow
def test_a_trial_spans_nodes_goes_on_after_a_loss_and_ends_at_its_time(cluster, tmp_path):
    file = write_study(
        tmp_path,
        name="spans",
        budget="{trials: 2}",
        question={"die": [0], "hang": [1]},
        trial_time_limit="60s",
    )
    trial = f"{HERE / 'spanning_trials.py'}:run"
    size = ["resources.cpus=1", "resources.nodes=2", "resources.cpus_per_node=1"]
    drive(cluster, file, tmp_path / "runs", *size, TRIAL=trial)
    lost, late = show_study("spans", tmp_path / "runs")["trials"]
    assert (lost["state"], lost["attempts"]) == ("complete", 2)
    assert lost["metrics"] == {"eval/kv/exact_match": 12.0, "train/begun": 2.0}
    assert (late["state"], late["attempts"]) == ("failed", 1)
    assert "longer than trial_time_limit" in late["reason"]
    for number, processes in ((0, 4), (1, 2)):
        found = list(StudyFolder(tmp_path / "runs", "spans").trial(number).path.glob("pid-*"))
        assert len(found) == processes
        assert len({file.read_text() for file in found}) == 2  # two ranks, a node for each
    pids = [int(path.name[4:]) for path in found]
    wait_for_end(pids)


def wait_for_end(pids: list[Any]) -> None:
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "a process of a trial that was ended lives on"
        time.sleep(0.2)
