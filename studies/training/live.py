"""A trial that is asked and not told: it waits for a worker, or runs on one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import optuna

from memarch.studies.cluster.mailbox import Key
from memarch.studies.cluster.resources import Size
from memarch.studies.driver.judging import Verdict
from memarch.studies.records.store import Json


@dataclass
class LiveTrial:
    """What the driver knows about it beside its record."""

    record: Json
    optuna: optuna.Trial
    spec: Json
    attempt: int = 0
    started: float | None = None
    """When its worker began, which had to be made and to import before."""
    alive: float = 0.0
    """When the last sign of life came."""
    stop_at: float | None = None
    """When the trial was told to stop for a reason of the driver's own."""
    verdict: Verdict | None = None
    """What the driver says of the trial, whatever its worker says."""
    metrics: Json = field(default_factory=dict)
    """The last that it reported."""
    evaluating: bool = False
    """It has trained, and `resources.eval` makes its evaluation a job of its own."""

    @property
    def size(self) -> Size:
        return Size.of_evaluation(self.spec) if self.evaluating else Size.of(self.spec)

    @property
    def number(self) -> int:
        return int(self.record["number"])

    @property
    def key(self) -> Key:
        return self.number, self.attempt

    def begin_attempt(self) -> None:
        """It is dealt, anew or for the first time."""
        self.record["attempts"] += not self.evaluating
        self.attempt = self.record["attempts"]
        self.record["state"] = "running"
        self.started = self.stop_at = self.verdict = None
        self.metrics = {}

    def is_alive(self) -> None:
        """A message of its worker came."""
        self.alive = time.monotonic()
        self.started = self.started or self.alive

    def stop(self, verdict: Verdict | None = None) -> None:
        """It is to stop; the driver may know already what it is then."""
        self.verdict = self.verdict or verdict
        self.stop_at = self.stop_at or time.monotonic()


def new_record(number: int, variant: str, draws: Json, seed: int, run_name: str) -> Json:
    """The record of a trial that was asked just now."""
    return {
        "number": number,
        "variant": variant,
        "state": "waiting",
        "params": draws,
        "metrics": {},
        "reason": "",
        "failure": None,
        "failures": {},
        "changes": {},
        "attempts": 0,
        "seed": seed,
        "hash": "",
        "mechanism": "",
        "copy_of": None,
        "run_name": run_name,
    }
