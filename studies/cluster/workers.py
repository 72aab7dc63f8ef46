"""Workers: warm processes that run trials, one at a time.

A worker imports torch and transformers once and then runs trial after trial. It may be killed at
any moment: what counts is in the folder.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from memarch.studies.cluster.heartbeat import HaltedError, Heartbeat, oom_kills, resident_bytes
from memarch.studies.cluster.jobs import Job, load_function, local_spec
from memarch.studies.cluster.mailbox import Reporter
from memarch.studies.cluster.resources import Size
from memarch.studies.driver.failures import DISK_FULL, reason_of, result_of
from memarch.studies.records.artifacts import fetch_model, kept_at
from memarch.studies.records.store import Json, plain, this_process, write_json, write_text
from memarch.studies.training.spanning import run_together


class Worker:
    """One process that runs trials, one at a time."""

    def __init__(self, mailbox: Any, trial_function: str, test_function: str, size: Size) -> None:
        self._mailbox = mailbox
        self._names = {"trial": trial_function, "test": test_function}
        self._size = size
        self._cpus = max(1, int(size.cpus))

    def here(self) -> None:
        """Its process runs."""

    def warm(self) -> int:
        """Import what trials need; the bytes that this process then holds."""
        if self._size.processes == 1:
            load_function(self._names["trial"])
        self._set_threads()
        return resident_bytes()

    def run(self, job: Job) -> Json:
        """One attempt at a trial: its result, and the reports that were not sent on the way.

        The result is None where the driver halted the trial, which then waits in its checkpoint.
        """
        folder, key = Path(job.folder), (job.number, job.attempt)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"attempt": job.attempt, "oom_kills": oom_kills()}
        write_json(folder / "worker.json", this_process() | about, sync=False)
        report = Reporter(key, folder, self._mailbox)
        self._set_threads()
        together = self._size.processes > 1  # then their leader gives the signs of life
        alive = nullcontext() if together else Heartbeat(key, folder, self._mailbox, job.memory)
        with alive, kept_at(job.artifacts, folder):
            try:
                result = self._result(job, folder, report)
            except HaltedError:
                result = None
        return {"result": result, "reports": report.unsent, "resident": resident_bytes()}

    def _result(self, job: Job, folder: Path, report: Reporter) -> Json:
        try:
            returned = self._trial(job, folder, report)
            result = _read_result(folder) or _as_result(returned)
        except Exception as error:
            result = result_of(error)
            write_text(folder / "error.txt", traceback.format_exc())
        whole = result["state"] != "trained" and result.get("failure") != DISK_FULL
        if whole and not (folder / "result.json").exists():
            write_json(folder / "result.json", result)
        return result

    def _trial(self, job: Job, folder: Path, report: Reporter) -> Any:
        if self._size.processes > 1:
            return run_together(job, self._size, self._names["trial"], self._mailbox)
        return load_function(self._names["trial"])(local_spec(job, folder), folder, report)

    def test(self, job: Job) -> Json:
        """Scores of a trained trial on the test split."""
        folder = Path(job.folder)
        self._set_threads()
        try:
            fetch_model(job.artifacts, folder)
            spec = local_spec(job, folder)
            metrics = plain(load_function(self._names["test"])(spec, folder))
            result: Json = {"metrics": metrics, "reason": None}
        except Exception as error:
            write_text(folder / "error.txt", traceback.format_exc())
            result = {"metrics": {}, "reason": reason_of(error)}
        write_json(folder / "test.json", result)
        return result

    def _set_threads(self) -> None:
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self._cpus)


def _read_result(folder: Path) -> Json | None:
    path = folder / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _as_result(returned: Any) -> Json:
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        returned = dataclasses.asdict(returned)
    if not isinstance(returned, Mapping):
        raise TypeError(f"a trial function returns a mapping, got {type(returned).__name__}")
    return {"state": "complete", "reason": None, "metrics": {}} | plain(returned)
