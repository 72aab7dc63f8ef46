"""Between the workers and the driver: reports one way, orders the other.

A worker's reports go to the mailbox, at most one message a second, each with the attempt that it
belongs to; the answer says whether the trial is to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from memarch.studies.cluster.cluster import beside_the_driver
from memarch.studies.cluster.heartbeat import beat
from memarch.studies.records.store import Json, plain

MESSAGE_INTERVAL = 1.0
ANSWER_WAIT = 1.0
"""How long a reporting worker waits for the driver's decision before it trains on without it."""

Key = tuple[int, int]
"""A trial's number and its attempt."""


@dataclass(frozen=True)
class Message:
    """What a worker says about the attempt that it is at: it is alive, or it has come so far."""

    key: Key
    reports: list[Json] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Mailbox:
    """Between the workers and the driver: reports one way, stop flags the other."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._taken = self._answered = 0
        self._stops: set[Key] = set()
        self._halted = asyncio.Event()
        self._posted = asyncio.Event()
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        """Who waits for an answer, by ticket."""

    async def post(self, key: Key, reports: list[Json]) -> bool:
        """Hand in reports; the answer is whether to stop, as decided after reading them."""
        self._messages.append(Message(key, reports))
        self._posted.set()
        answered = asyncio.get_running_loop().create_future()
        self._waiting.append((self._taken + len(self._messages), answered))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(answered, ANSWER_WAIT)
        return key in self._stops

    async def watch(self, key: Key, moved: bool, notes: list[str], timeout: float) -> bool:
        """A sign of life, where the trial moved; the answer, late, is whether to save and stop."""
        if moved or notes:
            self._messages.append(Message(key, notes=notes))
            self._posted.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._halted.wait(), timeout)
        return self._halted.is_set()

    async def halt(self) -> None:
        """All trials are to save and to stop."""
        self._halted.set()

    async def take(self, timeout: float) -> tuple[int, list[Message]]:
        """New messages, waiting for the first, and the ticket with which to answer them."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._posted.wait(), timeout)
        self._posted.clear()
        messages, self._messages = self._messages, []
        self._taken += len(messages)
        return self._taken, messages

    async def answer(self, ticket: int, stops: set[Key]) -> None:
        """The driver has decided about all messages up to this ticket."""
        self._answered = max(self._answered, ticket)
        self._stops |= stops
        while self._waiting and self._waiting[0][0] <= self._answered:
            answered = self._waiting.popleft()[1]
            if not answered.done():
                answered.set_result(None)


class Reporter:
    """What a trial calls at each evaluation: `report(step, metrics) -> stop?`."""

    def __init__(self, key: Key, folder: Path, mailbox: Any) -> None:
        self._key, self._mailbox = key, mailbox
        self._path = folder / "progress.jsonl"
        self._sent = -MESSAGE_INTERVAL
        self.unsent: list[Json] = []
        self.stopped = False

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        report = plain(
            {"attempt": self._key[1], "step": step, "time": time.time(), "metrics": metrics}
        )
        beat()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(report) + "\n")
        self.unsent.append(report)
        if time.monotonic() - self._sent >= MESSAGE_INTERVAL:
            self.flush()
        return self.stopped

    def flush(self) -> None:
        """Hand in what is unsent."""
        reports, self.unsent = self.unsent, []
        # Where the driver is going down, what is in the folder will do.
        with contextlib.suppress(ray.exceptions.RayActorError):
            self.stopped |= ray.get(self._mailbox.post.remote(self._key, reports))
        self._sent = time.monotonic()


def open_mailbox() -> Any:
    """A mailbox on the driver's own machine: it is gone when the driver is, and not before."""
    place = beside_the_driver()
    options = {"num_cpus": 0, "max_concurrency": 10_000, "scheduling_strategy": place}
    return ray.remote(Mailbox).options(**options).remote()
