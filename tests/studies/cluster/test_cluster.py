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

from memarch.studies.records.store import StudyFolder, show_study

HERE = Path(__file__).parents[1]
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
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_without_the_drivers_memarch_gets_it(cluster, tmp_path):
    file = write_study(tmp_path, name="sent", budget="{trials: 2}", cpus=1)
    said = drive(cluster, file, tmp_path / "runs", "resources.custom.second=1")
    assert "the driver's is sent there as a wheel" in said
    assert [t["state"] for t in show_study("sent", tmp_path / "runs")["trials"]] == ["complete"] * 2
    assert not list((tmp_path / "runs").glob(".node-check-*"))


def spanning(cluster: LoopbackCluster, folder: Path, **question: list[int]) -> tuple[Any, Any]:
    """A study of one trial over two nodes: how it ended, and what each process wrote of itself."""
    file = write_study(
        folder, name="spans", budget="{trials: 1}", question=question, trial_time_limit="20s"
    )
    trial = f"{HERE / 'spanning_trials.py'}:run"
    size = ["resources.cpus=1", "resources.nodes=2", "resources.cpus_per_node=1"]
    drive(cluster, file, folder / "runs", *size, TRIAL=trial)
    (row,) = show_study("spans", folder / "runs")["trials"]
    path = StudyFolder(folder / "runs", "spans").trial(0).path
    return row, {int(file.name[4:]): file.read_text() for file in path.glob("pid-*")}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_over_two_nodes_goes_on_after_the_loss_of_a_process(cluster, tmp_path):
    trial, processes = spanning(cluster, tmp_path, die=[0], hang=[])
    assert (trial["state"], trial["attempts"]) == ("complete", 2)
    assert trial["metrics"] == {"eval/kv/exact_match": 12.0, "train/begun": 2.0}
    assert len(processes) == 4
    nodes = {text.split()[1] for text in processes.values()}
    assert len(nodes) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_over_two_nodes_ends_at_its_time_with_all_processes(cluster, tmp_path):
    trial, processes = spanning(cluster, tmp_path, die=[], hang=[0])
    assert (trial["state"], trial["attempts"]) == ("failed", 1)
    assert "longer than trial_time_limit" in trial["reason"]
    assert len(processes) == 2
    wait_for_end(list(processes))


def wait_for_end(pids: list[Any]) -> None:
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "a process of a trial that was ended lives on"
        time.sleep(0.2)
