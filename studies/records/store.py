"""Where a study's files lie, how they are written so that any process may die, and who may write.

    STORAGE/optuna.db, mlflow.db, mlartifacts/     the trackers' databases, made by the driver
    STORAGE/studies/NAME/
        study.json        name, state, objective, design, counts, best: what `study list` reads
        study.yaml        the study file as it was given; resolved.json: its variants and ranges
        lease             who drives the study now
        report.html
        trials/007/
            record.json   number, variant, state, params, metrics, reason, attempts: `study show`
            spec.json     the concrete spec
            progress.jsonl  one line a report: attempt, step, time, metrics
            worker.json     the process that was last at it
            result.json   the worker's last act; test.json: scores on the test split
            checkpoints/, model/

Only JSON is read here, so that listing studies imports neither Optuna nor Ray nor MLflow.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memarch.components.errors import SpecError, did_you_mean

Json = dict[str, Any]

FINISHED = ("complete", "pruned", "failed", "infeasible")
"""States of a trial that will not change. The others are `running` and `waiting`."""

HEARTBEAT = 5.0
STALE_AFTER = 60.0
"""Seconds without a heartbeat after which a lease held on another machine counts as abandoned."""


def storage_folder(storage: str | Path | None = None) -> Path:
    """`--storage`, else `$MEMARCH_STORAGE`, else `./runs`; absolute, because workers need it so."""
    return Path(storage or os.environ.get("MEMARCH_STORAGE") or "runs").expanduser().absolute()


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write, sync, rename: a reader, or a process started after a crash, sees all of it or none.

    Without `sync` this holds for a crash of the process, not of the machine: for what can be made
    again, because syncing takes milliseconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Write JSON atomically. NaN and infinities, which JSON has not, become null."""
    write_text(path, _json(plain(value)) + "\n", sync=sync)


def _json(value: Any) -> str:
    """One key a line at the top: json's own indentation takes ten times as long."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, allow_nan=False)
    lines = (f" {json.dumps(key)}: {json.dumps(v, allow_nan=False)}" for key, v in value.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def read_json(path: Path, default: Any = None) -> Any:
    """What `write_json` wrote, or `default` where there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default


def plain(value: Any) -> Any:
    """The value in JSON's own types."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):  # scalars of numpy and torch
        return plain(value.item())
    return str(value)


def create_database(path: Path, create: Callable[[Path], None]) -> None:
    """Make a SQLite file that other processes see finished, or not at all; in write-ahead mode.

    Cut off in the middle of making its tables, a database would be of no use ever after.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        unfinished = path.with_name(f".{path.name}.new")
        for leftover in path.parent.glob(f"{unfinished.name}*"):
            leftover.unlink()
        create(unfinished)
        with sqlite3.connect(unfinished) as database:
            database.execute("PRAGMA journal_mode=WAL")
        database.close()  # the log is merged into the file
        os.replace(unfinished, path)


@dataclass(frozen=True)
class TrialFolder:
    """One trial's files."""

    path: Path

    @property
    def record(self) -> Json:
        return read_json(self.path / "record.json", {})

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Synced when it will not change any more: before, the trial's other files tell as much."""
        write_json(self.path / "record.json", record, sync=record["state"] in FINISHED)

    @property
    def spec(self) -> Json | None:
        return read_json(self.path / "spec.json")

    @property
    def result(self) -> Json | None:
        return read_json(self.path / "result.json")

    @property
    def test(self) -> Json | None:
        """Scores on the test split."""
        return read_json(self.path / "test.json")

    def set_aside_result(self, attempt: int) -> None:
        """Keep the result of an attempt that failed, under a name of its own: there is another."""
        with suppress(FileNotFoundError):
            os.replace(self.path / "result.json", self.path / f"result.{attempt}.json")

    def progress(self) -> Iterator[Json]:
        """The reports, in order. A line cut off by a killed worker is skipped."""
        try:
            lines = (self.path / "progress.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


@dataclass(frozen=True)
class StudyFolder:
    """One study's files."""

    storage: Path
    name: str

    @property
    def path(self) -> Path:
        return self.storage / "studies" / self.name

    @property
    def info(self) -> Json:
        return read_json(self.path / "study.json", {})

    def write_info(self, info: Mapping[str, Any]) -> None:
        write_json(self.path / "study.json", info)

    def exists(self) -> bool:
        return (self.path / "study.json").exists()

    def trial(self, number: int) -> TrialFolder:
        return TrialFolder(self.path / "trials" / f"{number:03d}")

    def trials(self) -> list[TrialFolder]:
        """The folders of all trials that have a record, by number."""
        found = (self.path / "trials").glob("*/record.json")
        return [TrialFolder(path.parent) for path in sorted(found, key=_number)]

    def records(self) -> dict[int, Json]:
        return {record["number"]: record for t in self.trials() if (record := t.record)}


def _number(record: Path) -> int:
    return int(record.parent.name)


def find_study(storage: str | Path | None, name: str) -> StudyFolder:
    """The study of that name, or an error that names the nearest one."""
    folder = StudyFolder(storage_folder(storage), name)
    if not folder.exists():
        known = [path.parent.name for path in folder.storage.glob("studies/*/study.json")]
        raise SpecError(f"no study {name!r} in {folder.storage}; {did_you_mean(name, known)}")
    return folder


def find_spec(storage: str | Path | None, name: str, trial: int | str = "best") -> Json:
    """The spec of a trial of a study, by number or `best`."""
    folder = find_study(storage, name)
    best = folder.info.get("best") or []
    if trial == "best" and not best:
        raise SpecError(f"study {name!r} has no best trial yet")
    spec = folder.trial(best[0] if trial == "best" else int(trial)).spec
    if spec is None:
        numbers = [str(number) for number in folder.records()]
        raise SpecError(f"study {name!r} has no trial {trial}; {did_you_mean(str(trial), numbers)}")
    return spec


def list_studies(storage: str | Path | None = None) -> list[Json]:
    """One row a study: name, state, design, objective, trials by state, best, created, path."""
    root = storage_folder(storage)
    paths = sorted(root.glob("studies/*/study.json"))
    return [_summary(StudyFolder(root, path.parent.name)) for path in paths]


def show_study(name: str, storage: str | Path | None = None) -> Json:
    """The study with all its trials: the document of `memarch study show NAME --json`."""
    folder = find_study(storage, name)
    info, alive = folder.info, lease_holder(folder.path) is not None
    rows = []
    for trial in folder.trials():
        record = trial.record
        # Without a driver nothing runs: such a trial waits for `resume`.
        state = "waiting" if record["state"] == "running" and not alive else record["state"]
        rows.append(
            {
                "number": record["number"],
                "variant": record["variant"],
                "state": state,
                "params": record["params"],
                "solved": record.get("solved") or {},
                "metrics": record["metrics"],
                "spec": trial.spec,
                "reason": record["reason"],
                "copy_of": record.get("copy_of"),
                "attempts": record["attempts"],
                "seed": record.get("seed"),
                "converged": record.get("converged"),
                "failure": record.get("failure"),
            }
        )
    shown = {
        "name": name,
        "state": _state(info, alive),
        "design": info.get("design"),
        "objective": info["objective"],
        "ablation": info.get("ablation"),
        "sizes": info.get("sizes") or [],
        "trials": rows,
        "best": info.get("best", []),
    }
    if info.get("reason"):
        shown["reason"] = info["reason"]
    return shown | _beside_trials(folder.path)


def _beside_trials(folder: Path) -> Json:
    """Points that racing dropped, and trials of earlier studies that the sampler knew."""
    found: Json = {"racing": read_json(folder / "racing.json", [])}
    taken = read_json(folder / "warm_start.json", {}).get("trials", [])
    found["warm_start"] = [{"study": row["study"], "number": row["number"]} for row in taken]
    return {name: rows for name, rows in found.items() if rows}


def _state(info: Json, alive: bool) -> str:
    return "interrupted" if info["state"] == "running" and not alive else str(info["state"])


def _summary(folder: StudyFolder) -> Json:
    info = folder.info
    return {
        "name": folder.name,
        "state": _state(info, lease_holder(folder.path) is not None),
        "design": info.get("design"),
        "objective": info["objective"],
        "trials": info.get("counts", {}),
        "best": info.get("best", []),
        "best_values": info.get("best_values", {}),
        "created": info.get("created"),
        "path": str(folder.path),
    }


def lease_holder(folder: Path) -> Json | None:
    """Who drives the study in this folder now, or None where nobody does."""
    path = folder / "lease"
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        age = time.time() - path.stat().st_mtime
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if holder["host"] != socket.gethostname():
        return holder if age < STALE_AFTER else None
    return holder if lives_here(holder) else None


def this_process() -> Json:
    """What tells this process from all others, on all machines."""
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "started": _started(pid)}


def lives_here(process: Json) -> bool:
    """Whether a process, by what `this_process` said in it, runs on this machine now."""
    if process["host"] != socket.gethostname():
        return False
    started = _started(process["pid"])
    return started is not None and started == process["started"]


def _started(pid: int) -> str | None:
    """When a process of this machine started, in the system's own clock; None when it is gone.

    A number alone would do until the system gives it to another process.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return _answers(pid)
    return None if state[0] in "ZX" else state[19]


def _answers(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


@contextmanager
def lease(folder: Path) -> Iterator[None]:
    """Be the study's one driver, with a heartbeat, for as long as the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lease"
    mine = this_process() | {"token": uuid.uuid4().hex}
    with (folder / ".lease.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        holder = lease_holder(folder)
        if holder is not None:
            raise SpecError(
                f"study {folder.name!r} is being run by process {holder['pid']} on "
                f"{holder['host']}; wait for it, or stop it and resume"
            )
        write_json(path, mine)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT):
            if _held(path, mine["token"]):
                os.utime(path)

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if _held(path, mine["token"]):
            path.unlink(missing_ok=True)


def _held(path: Path, token: str) -> bool:
    try:
        return bool(read_json(path, {}).get("token") == token)
    except json.JSONDecodeError:
        return False
