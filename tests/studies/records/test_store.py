"""The study's folder: atomic files, the lease, and listing without heavy imports."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memarch.components.errors import SpecError
from memarch.studies.records import store


def study(root: Path, name: str = "one", **info: object) -> store.StudyFolder:
    folder = store.StudyFolder(root, name)
    folder.write_info(
        {"state": "running", "objective": {"eval/kv/loss": "minimize"}, "best": []} | info
    )
    return folder


def record(number: int, state: str) -> store.Json:
    return {
        "number": number,
        "variant": "rmt",
        "state": state,
        "params": {"num_tokens": 2},
        "metrics": {"eval/kv/loss": 0.5},
        "reason": "",
        "attempts": 1,
    }


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_lease(folder: Path, pid: int, host: str, started: str | None, age: float = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lease"
    path.write_text(json.dumps({"pid": pid, "host": host, "started": started, "token": "x"}))
    os.utime(path, (time.time() - age, time.time() - age))


def test_json_is_written_whole_and_without_nan(tmp_path):
    path = tmp_path / "deep" / "file.json"
    store.write_json(path, {"a": float("nan"), "b": (1, 2), "c": Path("x"), "d": float("inf")})
    assert store.read_json(path) == {"a": None, "b": [1, 2], "c": "x", "d": None}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    assert store.read_json(tmp_path / "none", 7) == 7


def test_a_line_cut_off_in_the_middle_is_skipped(tmp_path):
    (tmp_path / "progress.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert list(store.TrialFolder(tmp_path).progress()) == [{"step": 1}, {"step": 2}]


def test_storage_is_the_argument_then_the_environment_then_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMARCH_STORAGE", raising=False)
    assert store.storage_folder() == tmp_path / "runs"
    monkeypatch.setenv("MEMARCH_STORAGE", str(tmp_path / "there"))
    assert store.storage_folder() == tmp_path / "there"
    assert store.storage_folder("here") == tmp_path / "here"


def test_one_driver_a_study(tmp_path):
    with store.lease(tmp_path):
        assert store.lease_holder(tmp_path)["pid"] == os.getpid()
        with pytest.raises(SpecError, match=f"is being run by process {os.getpid()}"):
            store.lease(tmp_path).__enter__()
    assert store.lease_holder(tmp_path) is None


@pytest.mark.parametrize(
    ("pid", "host", "age", "held"),
    [
        ("dead", None, 0, False),
        ("reused", None, 0, False),
        ("any", "elsewhere", 5, True),
        ("any", "elsewhere", 3600, False),
    ],
)
def test_an_abandoned_lease_is_taken_over(tmp_path, pid, host, age, held):
    # A number that now belongs to another process is told by its start time.
    number = {"dead": dead_process, "reused": os.getpid, "any": lambda: 1}[pid]()
    write_lease(tmp_path, number, host or socket.gethostname(), "0", age)
    assert (store.lease_holder(tmp_path) is not None) == held
    if not held:
        with store.lease(tmp_path):
            assert store.lease_holder(tmp_path)["pid"] == os.getpid()


def test_show_has_the_documented_shape(tmp_path):
    folder = study(tmp_path, state="complete", best=[0])
    folder.trial(0).write_record(record(0, "complete") | {"seed": 1, "converged": True})
    store.write_json(folder.trial(0).path / "spec.json", {"model": {}})
    assert store.show_study("one", tmp_path) == {
        "name": "one",
        "state": "complete",
        "design": None,
        "objective": {"eval/kv/loss": "minimize"},
        "ablation": None,
        "trials": [
            record(0, "complete")
            | {"spec": {"model": {}}, "seed": 1, "converged": True, "failure": None, "solved": {}}
            | {"copy_of": None}
        ],
        "sizes": [],
        "best": [0],
    }


def test_without_a_driver_running_trials_wait(tmp_path):
    folder = study(tmp_path)
    folder.trial(0).write_record(record(0, "running"))
    shown = store.show_study("one", tmp_path)
    assert (shown["state"], shown["trials"][0]["state"]) == ("interrupted", "waiting")
    with store.lease(folder.path):
        shown = store.show_study("one", tmp_path)
    assert (shown["state"], shown["trials"][0]["state"]) == ("running", "running")


def test_trials_are_ordered_by_number_beyond_a_thousand(tmp_path):
    folder = study(tmp_path)
    for number in (1000, 2, 999):
        folder.trial(number).write_record(record(number, "complete"))
    numbers = [trial["number"] for trial in store.show_study("one", tmp_path)["trials"]]
    assert numbers == [2, 999, 1000]


def test_an_unknown_study_is_an_error_that_names_the_nearest(tmp_path):
    study(tmp_path, "quickstart")
    with pytest.raises(SpecError, match="did you mean 'quickstart'"):
        store.show_study("quikstart", tmp_path)


def test_a_trial_is_found_by_number_or_as_best(tmp_path):
    folder = study(tmp_path, best=[1])
    store.write_json(folder.trial(1).path / "spec.json", {"which": 1})
    assert store.find_spec(tmp_path, "one", "best") == store.find_spec(tmp_path, "one", 1)
    with pytest.raises(SpecError, match="no trial 5"):
        store.find_spec(tmp_path, "one", 5)


def test_listing_needs_no_heavy_import(tmp_path):
    study(tmp_path)
    code = (
        "import sys; from memarch.studies.records.store import list_studies, show_study\n"
        f"print([s['name'] for s in list_studies({str(tmp_path)!r})])\n"
        f"show_study('one', {str(tmp_path)!r})\n"
        "assert not {'optuna', 'ray', 'mlflow', 'torch', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "['one']\n"), done.stderr
