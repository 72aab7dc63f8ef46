"""The pool of workers: as many as the machine or cluster holds, each the size of its trials."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from memarch.components.errors import SpecError
from memarch.studies.cluster.jobs import Job
from memarch.studies.cluster.mailbox import Key
from memarch.studies.cluster.resources import Size
from memarch.studies.cluster.workers import Worker
from memarch.studies.driver.deaths import result_of_death
from memarch.studies.driver.failures import StudyStoppedError, result_of
from memarch.studies.records.store import Json

LEAK = 2**30
"""Bytes by which a worker may grow over its trials before another takes its place."""

PLACE_SECONDS = 15.0
"""After which a worker that has no place yet is given that of an idle one."""
READ_INTERVAL = 1.0
"""Seconds between looks at what the cluster has."""
ROUNDING = 1e-9
"""Fractions of GPUs do not add up exactly."""


@dataclass(eq=False)
class Seat:
    """A warm worker of one size, and the attempt that it is at."""

    actor: Any
    size: Size
    warmed: Any
    """The bytes that its process held before its first trial, to come."""
    here: Any = None
    """Answered once its process has a place on a node."""
    job: Job | None = None
    used: bool = False
    """Whether it has ended a job in order."""
    asked_at: float = field(default_factory=time.monotonic)
    """When its place was asked for, or was last made."""

    def has_no_place(self) -> bool:
        if self.here is None or time.monotonic() - self.asked_at < PLACE_SECONDS:
            return False
        return not ray.wait([self.here], timeout=0)[0]


class Pool:
    """As many workers as the machine or cluster holds, each the size that its trials ask for."""

    def __init__(
        self,
        mailbox: Any,
        trial_function: str,
        test_function: str,
        artifacts: str | None = None,
    ) -> None:
        self._mailbox, self._artifacts = mailbox, artifacts
        self._functions = (trial_function, test_function)
        self._seats: list[Seat] = []
        self._jobs: dict[Any, Seat] = {}
        self._used: Counter[str] = Counter()
        self._total: dict[str, float] = {}
        self._read_at = -READ_INTERVAL

    @property
    def refs(self) -> list[Any]:
        """Results to come."""
        return list(self._jobs)

    def fits(self, size: Size) -> bool:
        """Whether a trial of this size can start now. One always can when nothing runs."""
        if not self._jobs:
            return True
        if time.monotonic() - self._read_at > READ_INTERVAL:  # a cluster may grow
            self._total, self._read_at = ray.cluster_resources(), time.monotonic()
        return all(
            self._total.get(name, 0) - self._used[name] >= amount - ROUNDING
            for name, amount in size.needs().items()
        )

    def warm(self, size: Size, most: int | None) -> None:
        """Start all workers of this size, so that they import while the driver still prepares."""
        total = ray.cluster_resources()
        counts = [int(total.get(name, 0) // amount) for name, amount in size.needs().items()]
        for _ in range(max(1, min([*counts, most or sum(counts)]))):
            self._hire(size)

    def start(self, job: Job, size: Size, method: str = "run") -> None:
        """Give the job to an idle worker of its size, or to a new one."""
        seat = self._idle(size)
        seat.job = replace(job, memory=int(size.memory), artifacts=self._artifacts)
        self._jobs[getattr(seat.actor, method).remote(seat.job)] = seat
        self._used.update(size.needs())

    def finished(self, ref: Any) -> tuple[Key, Json]:
        """The attempt that this answer belongs to, and the answer: a failure if its worker died."""
        seat = self._jobs.pop(ref)
        self._used.subtract(seat.size.needs())
        job, seat.job = seat.job, None
        assert job is not None
        key, first = (job.number, job.attempt), not seat.used
        try:
            answer: Json = ray.get(ref)
        except ray.exceptions.RayTaskError as error:  # the worker itself: its disk is full
            result = result_of(error.cause)
            return key, {"result": result, "reports": []}
        except ray.exceptions.RayError as error:
            self._dismiss(seat)
            if "creation task" in str(error):
                raise StudyStoppedError(
                    f"workers cannot start: {str(error).splitlines()[-1]}"
                ) from None
            result = result_of_death(Path(job.folder), job.attempt, error)
            # A worker that died before it was given the trial is no fault of the trial.
            result["counts"] = result["begun"] or first
            return key, {"result": result, "reports": []}
        seat.used = True
        if answer.get("resident", 0) - ray.get(seat.warmed) > _allowed_growth(seat.size):
            self._dismiss(seat)
        return key, answer

    def make_way(self) -> None:
        """Idle workers go while one that has work finds no place: the cluster may have shrunk."""
        idle = [seat for seat in self._seats if seat.job is None]
        for seat in list(self._seats):
            if idle and seat.job is not None and seat.has_no_place():
                self._dismiss(idle.pop())
                seat.asked_at = time.monotonic()

    def kill(self, key: Key) -> None:
        """End the attempt at once, with its worker."""
        for ref, seat in list(self._jobs.items()):
            if seat.job is not None and (seat.job.number, seat.job.attempt) == key:
                del self._jobs[ref]
                self._used.subtract(seat.size.needs())
                self._dismiss(seat)

    def close(self) -> None:
        self._jobs.clear()
        self._used.clear()
        for seat in list(self._seats):
            self._dismiss(seat)

    def _idle(self, size: Size) -> Seat:
        idle = [seat for seat in self._seats if seat.job is None]
        own = next((seat for seat in idle if seat.size == size), None)
        if own is None or size.processes > 1:  # those processes are new each time
            for seat in idle:  # workers of another size make room
                if seat.size != size:
                    self._dismiss(seat)
        return own or self._hire(size)

    def _hire(self, size: Size) -> Seat:
        total = ray.cluster_resources()
        needs = size.each if size.processes == 1 else {}
        for name, amount in size.needs().items():
            if amount > total.get(name, 0) and (name != "CPU" or size.processes > 1):
                has = total.get(name, 0)
                raise SpecError(
                    f"a trial asks for {amount:g} {name}, and Ray has {has:g}: ask for less, or "
                    "join a cluster that has as much by --address",
                    path="resources",
                )
        options = {
            # A trial that asks for more cores than there are gets all there are.
            # Of a trial that spans processes, those hold the resources.
            "num_cpus": min(needs.pop("CPU", 0), total.get("CPU", 1)),
            "num_gpus": needs.pop("GPU", 0),
            "memory": needs.pop("memory", None),
            "resources": needs,
            "max_restarts": 0,
        }
        actor = ray.remote(Worker).options(**options)
        handle = actor.remote(self._mailbox, *self._functions, size)
        here = handle.here.remote()
        seat = Seat(handle, size, handle.warm.remote(), here)
        self._seats.append(seat)
        return seat

    def _dismiss(self, seat: Seat) -> None:
        self._seats.remove(seat)
        ray.kill(seat.actor, no_restart=True)


def _allowed_growth(size: Size) -> float:
    """How much more a worker may hold after a trial than before its first one."""
    return size.memory / 4 if size.memory else LEAK
