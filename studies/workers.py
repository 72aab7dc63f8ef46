"""Ray workers that run trials: warm processes, a mailbox for reports, and the pool that deals.

A worker imports torch and transformers once and then runs trial after trial. Its reports go to the
mailbox, at most one message a second, each with the attempt that it belongs to; the answer says
whether the trial is to stop. A worker may be killed at any moment: what counts is in the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from memarch.components.errors import SpecError
from memarch.studies.store import Json, plain, this_process, write_json, write_text

MESSAGE_INTERVAL = 1.0
ANSWER_WAIT = 1.0
"""How long a reporting worker waits for the driver's decision before it trains on without it."""

Key = tuple[int, int]
"""A trial's number and its attempt."""


@dataclass
class Job:
    """All that a worker needs to know about one attempt at a trial."""

    number: int
    attempt: int
    spec: Json
    folder: str
    plugins: dict[str, str] = field(default_factory=dict)
    """Text of the user's own files by file name."""


@dataclass(frozen=True)
class Size:
    """What one trial needs: `resources` of its spec."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: float = 0.0
    custom: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, spec: Json) -> Size:
        given = spec.get("resources") or {}
        custom = tuple(sorted((given.get("custom") or {}).items()))
        return cls(given.get("cpus") or 1, given.get("gpus") or 0, given.get("memory") or 0, custom)

    def needs(self) -> dict[str, float]:
        """By the names that Ray gives to resources."""
        fixed = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {name: amount for name, amount in [*fixed.items(), *self.custom] if amount}


class Mailbox:
    """Between the workers and the driver: reports one way, stop flags the other."""

    def __init__(self) -> None:
        self._messages: list[tuple[Key, list[Json]]] = []
        self._taken = self._answered = 0
        self._stops: set[Key] = set()
        self._changed = asyncio.Condition()

    async def post(self, key: Key, reports: list[Json]) -> bool:
        """Hand in reports; the answer is whether to stop, as decided after reading them."""
        async with self._changed:
            self._messages.append((key, reports))
            ticket = self._taken + len(self._messages)
            self._changed.notify_all()
            await self._wait(lambda: self._answered >= ticket, ANSWER_WAIT)
        return key in self._stops

    async def take(self, timeout: float) -> tuple[int, list[tuple[Key, list[Json]]]]:
        """New messages, waiting for the first, and the ticket with which to answer them."""
        async with self._changed:
            await self._wait(lambda: bool(self._messages), timeout)
            messages, self._messages = self._messages, []
            self._taken += len(messages)
            return self._taken, messages

    async def answer(self, ticket: int, stops: set[Key]) -> None:
        """The driver has decided about all messages up to this ticket."""
        async with self._changed:
            self._answered = max(self._answered, ticket)
            self._stops |= stops
            self._changed.notify_all()

    async def _wait(self, until: Callable[[], bool], timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait_for(until), timeout)


class Reporter:
    """What a trial calls at each evaluation: `report(step, metrics) -> stop?`."""

    def __init__(self, job: Job, mailbox: Any) -> None:
        self._key = (job.number, job.attempt)
        self._mailbox = mailbox
        self._path = Path(job.folder) / "progress.jsonl"
        self._sent = -MESSAGE_INTERVAL
        self.unsent: list[Json] = []
        self.stopped = False

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        report = plain(
            {"attempt": self._key[1], "step": step, "time": time.time(), "metrics": metrics}
        )
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(report) + "\n")
        self.unsent.append(report)
        if time.monotonic() - self._sent >= MESSAGE_INTERVAL:
            self._send()
        return self.stopped

    def _send(self) -> None:
        reports, self.unsent = self.unsent, []
        # Where the driver is going down, what is in the folder will do.
        with contextlib.suppress(ray.exceptions.RayActorError):
            self.stopped |= ray.get(self._mailbox.post.remote(self._key, reports))
        self._sent = time.monotonic()


class Worker:
    """One process that runs trials, one at a time."""

    def __init__(self, mailbox: Any, trial_function: str, test_function: str, cpus: float) -> None:
        self._mailbox = mailbox
        self._names = {"trial": trial_function, "test": test_function}
        self._cpus = max(1, int(cpus))

    def warm(self) -> int:
        """Import what trials need; the process id."""
        load_function(self._names["trial"])
        self._set_threads()
        return os.getpid()

    def run(self, job: Job) -> Json:
        """One attempt at a trial: its result, and the reports that were not sent on the way."""
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "worker.json", this_process())
        report = Reporter(job, self._mailbox)
        self._mailbox.post.remote((job.number, job.attempt), [])  # its time runs from now
        self._set_threads()
        try:
            spec = local_spec(job, folder)
            returned = load_function(self._names["trial"])(spec, folder, report)
            result = _read_result(folder) or _as_result(returned)
        except Exception as error:
            write_text(folder / "error.txt", traceback.format_exc())
            result = {"state": "failed", "reason": _reason(error), "metrics": {}}
        if not (folder / "result.json").exists():
            write_json(folder / "result.json", result)
        return {"result": result, "reports": report.unsent}

    def test(self, job: Job) -> Json:
        """Scores of a trained trial on the test split."""
        folder = Path(job.folder)
        self._set_threads()
        try:
            spec = local_spec(job, folder)
            metrics = plain(load_function(self._names["test"])(spec, folder))
            result: Json = {"metrics": metrics, "reason": None}
        except Exception as error:
            write_text(folder / "error.txt", traceback.format_exc())
            result = {"metrics": {}, "reason": _reason(error)}
        write_json(folder / "test.json", result)
        return result

    def _set_threads(self) -> None:
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self._cpus)


def load_function(name: str) -> Callable[..., Any]:
    """The function of `package.module:name` or `path/to/file.py:name`, imported once."""
    module_name, _, attribute = name.rpartition(":")
    if not module_name.endswith(".py"):
        return getattr(importlib.import_module(module_name), attribute)
    path = Path(module_name).absolute()
    known = f"memarch_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, path)
        if spec is None or spec.loader is None:
            raise SpecError(f"{module_name} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[known] = module
        spec.loader.exec_module(module)
    return getattr(sys.modules[known], attribute)


def local_spec(job: Job, folder: Path) -> Json:
    """The spec as this machine sees it: its environment, and the plugins written beside the trial.

    Whoever runs the spec loads them.
    """
    spec = job.spec
    if "$env." in json.dumps(spec):
        from memarch.search_spaces.study_file import resolve_env

        spec = resolve_env(spec)
    paths = [folder / "plugins" / name for name in job.plugins]
    for path, text in zip(paths, job.plugins.values(), strict=True):
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    return {**spec, "plugins": [str(path) for path in paths]}


def _read_result(folder: Path) -> Json | None:
    path = folder / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _as_result(returned: Any) -> Json:
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        returned = dataclasses.asdict(returned)
    if not isinstance(returned, Mapping):
        raise TypeError(f"a trial function returns a mapping, got {type(returned).__name__}")
    return {"state": "complete", "reason": None, "metrics": {}} | plain(returned)


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


@dataclass(eq=False)
class Seat:
    """A warm worker of one size, and the attempt that it is at."""

    actor: Any
    size: Size
    key: Key | None = None


class Pool:
    """As many workers as the machine or cluster holds, each the size that its trials ask for."""

    def __init__(self, mailbox: Any, trial_function: str, test_function: str) -> None:
        self._mailbox = mailbox
        self._functions = (trial_function, test_function)
        self._seats: list[Seat] = []
        self._jobs: dict[Any, Seat] = {}

    @property
    def refs(self) -> list[Any]:
        """Results to come."""
        return list(self._jobs)

    def fits(self, size: Size) -> bool:
        """Whether a trial of this size can start now. One always can when nothing runs."""
        if not self._jobs:
            return True
        free = dict(ray.cluster_resources())
        for seat in self._jobs.values():
            for name, amount in seat.size.needs().items():
                free[name] = free.get(name, 0) - amount
        return all(free.get(name, 0) >= amount for name, amount in size.needs().items())

    def warm(self, size: Size, most: int | None) -> None:
        """Start all workers of this size, so that they import while the driver still prepares."""
        total = ray.cluster_resources()
        counts = [int(total.get(name, 0) // amount) for name, amount in size.needs().items()]
        for _ in range(max(1, min([*counts, most or sum(counts)]))):
            self._hire(size)

    def start(self, job: Job, size: Size, method: str = "run") -> None:
        """Give the job to an idle worker of its size, or to a new one."""
        seat = self._idle(size)
        seat.key = (job.number, job.attempt)
        self._jobs[getattr(seat.actor, method).remote(job)] = seat

    def finished(self, ref: Any) -> tuple[Key, Json | None]:
        """The attempt that this result belongs to, and the result: None when its worker died."""
        seat = self._jobs.pop(ref)
        key, seat.key = seat.key, None
        assert key is not None
        try:
            return key, ray.get(ref)
        except (
            ray.exceptions.RayTaskError
        ) as error:  # the worker itself, not the trial: a full disk
            result = {"state": "failed", "reason": _reason(error.cause), "metrics": {}}
            return key, {"result": result, "reports": [], "metrics": {}, "reason": result["reason"]}
        except ray.exceptions.RayActorError as error:
            self._seats.remove(seat)
            if "creation task" in str(error):
                raise RuntimeError(f"workers cannot start: {str(error).splitlines()[-1]}") from None
            return key, None

    def kill(self, key: Key) -> None:
        """End the attempt at once, with its worker."""
        for ref, seat in list(self._jobs.items()):
            if seat.key == key:
                del self._jobs[ref]
                self._dismiss(seat)

    def close(self) -> None:
        self._jobs.clear()
        for seat in list(self._seats):
            self._dismiss(seat)

    def _idle(self, size: Size) -> Seat:
        idle = [seat for seat in self._seats if seat.key is None]
        for seat in idle:
            if seat.size == size:
                return seat
        for seat in idle:  # workers of another size make room
            self._dismiss(seat)
        return self._hire(size)

    def _hire(self, size: Size) -> Seat:
        total = ray.cluster_resources()
        needs = size.needs()
        for name, amount in needs.items():
            if name != "CPU" and amount > total.get(name, 0):
                has = total.get(name, 0)
                raise SpecError(
                    f"a trial asks for {amount:g} {name}, and Ray has {has:g}: ask for less, or "
                    "join a cluster that has as much by --address",
                    path="resources",
                )
        options = {
            # A trial that asks for more cores than there are gets all there are.
            "num_cpus": min(needs.pop("CPU"), total.get("CPU", 1)),
            "num_gpus": needs.pop("GPU", 0),
            "memory": needs.pop("memory", None),
            "resources": needs,
            "max_restarts": 0,
        }
        actor = ray.remote(Worker).options(**options)
        handle = actor.remote(self._mailbox, *self._functions, size.cpus)
        handle.warm.remote()
        seat = Seat(handle, size)
        self._seats.append(seat)
        return seat

    def _dismiss(self, seat: Seat) -> None:
        self._seats.remove(seat)
        ray.kill(seat.actor, no_restart=True)


def open_mailbox() -> Any:
    return ray.remote(Mailbox).options(num_cpus=0, max_concurrency=10_000).remote()


def _use_token() -> None:
    """Clusters are started with token authentication where the user has a token: join likewise."""
    with contextlib.suppress(ImportError):
        from ray._private.authentication import authentication_token_setup as setup

        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def start_ray(address: str | None) -> bool:
    """Join the cluster at this address, or start Ray here; whether this call started it."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray prints a worker's death to stdout, where a command's JSON goes; the driver says it itself.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    quiet: Json = {"logging_level": "error", "log_to_driver": False}
    if address:
        _use_token()
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ray.exceptions.RayError) as error:
            raise SpecError(
                f"cannot join a Ray cluster at {address}: {error}; does it run, and do "
                "RAY_AUTH_MODE and the token (~/.ray/auth_token) agree with it?",
                path="--address",
            ) from None
    else:
        ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            object_store_memory=100 * 2**20,  # only specs and scores travel
            **quiet,
        )
    return True
