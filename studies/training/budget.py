"""Budgets: how much a training run may spend, counted in steps, tokens, FLOPs or hours.

Schedules of the learning rate and the rhythm of evaluation follow the share of the budget that is
spent, so that they mean the same in every unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class Spent:
    """What a run has used so far; part of every checkpoint."""

    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    """Training alone, without evaluation."""
    wall: float = 0.0
    """Everything, summed over the attempts."""


@dataclass(frozen=True)
class Budget:
    """A limit in one unit."""

    unit: str
    amount: float

    @classmethod
    def parse(cls, settings: Mapping[str, float | None]) -> Budget:
        """`{steps: 1500}`; the units that are None do not count."""
        unit, amount = next((unit, amount) for unit, amount in settings.items() if amount)
        return cls(unit, amount)

    def share(self, spent: Spent) -> float:
        """The part of the budget that is used: 1.0 or more when the run is over."""
        used = spent.seconds / 3600 if self.unit == "hours" else getattr(spent, self.unit)
        return float(used) / self.amount

    def learning_rate_factor(self, schedule: str, warmup: float, spent: Spent) -> float:
        """What the base rate is multiplied by in the next step.

        Warm-up: (share after the step) / warmup. Then constant 1, linear 1 - x, or cosine
        (1 + cos(pi x)) / 2, where x runs from 0 after the warm-up to 1 at the end of the budget.
        A warm-up below 1 is a share of the budget; from 1 on it counts steps.
        """
        share = self.share(spent)
        if warmup >= 1:
            rise = (spent.steps + 1) / warmup
            warmup *= 1 / self.amount if self.unit == "steps" else share / max(spent.steps, 1)
        else:
            first = 1 / self.amount if self.unit == "steps" else share / max(spent.steps, 1)
            rise = (share + first) / warmup if warmup else 1.0
        if rise < 1:
            return rise
        x = min(1.0, max(0.0, (share - warmup) / max(1e-12, 1 - warmup)))
        if schedule == "linear":
            return 1 - x
        if schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * x))
        return 1.0
