"""Early stopping by domination: for several objectives, where no single number decides.

At a report, from `after` of its budget on, a trial stops when at least `by` trials of its variant
dominate it at the same share of their budgets: none of their objectives is worse, and one is
better. Of the trial itself its best value so far counts, of the others the last they had reported
by that share; a trial that has not come so far says nothing. Objectives that do not change while a
trial trains (state, parameters, FLOPs per token) stand in its first report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

AT_THE_END = (
    "cost/tokens_per_second",
    "cost/wall_seconds",
    "cost/peak_memory_bytes",
    "cost/train_flops",
)
"""Metrics that no report on the way has."""

Curve = list[tuple[float, dict[str, float]]]
"""Shares of the budget, and what was known of the objectives by then; more is better."""


class Domination:
    """Decides for each report whether the trial stops."""

    kind = "domination"

    def __init__(self, after: float, by: int, objective: Mapping[str, str]) -> None:
        self.after, self.by = after, by
        self._signs = {name: 1 if way == "maximize" else -1 for name, way in objective.items()}
        self._curves: dict[str, dict[int, Curve]] = {}

    def report(self, variant: str, number: int, share: float, metrics: Mapping[str, Any]) -> bool:
        """Whether the trial, now at this share of its budget, is to stop."""
        curve = self._curves.setdefault(variant, {}).setdefault(number, [])
        if curve and share <= curve[-1][0]:
            return False  # an attempt that repeats itself
        known = dict(curve[-1][1]) if curve else {}
        curve.append((share, known | self._values(metrics)))
        if not self.after <= share < 1:
            return False
        best = self._best(curve)
        others = (
            self._at(other, share) for n, other in self._curves[variant].items() if n != number
        )
        dominating = sum(self._dominates(other, best) for other in others)
        return dominating >= self.by

    def finish(self, number: int, *, pruned: bool) -> None:
        """What a trial reported stays known."""

    def _values(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        return {
            name: sign * float(value)
            for name, sign in self._signs.items()
            if (value := metrics.get(name)) is not None and math.isfinite(value)
        }

    def _best(self, curve: Curve) -> dict[str, float]:
        return {
            name: max(values[name] for _, values in curve if name in values)
            for name in curve[-1][1]
        }

    def _at(self, curve: Curve, share: float) -> dict[str, float]:
        """What a trial had by a share of its budget; nothing where it has not come so far."""
        if not curve or curve[-1][0] < share:
            return {}
        return next((values for at, values in reversed(curve) if at <= share), {})

    def _dominates(self, other: Mapping[str, float], mine: Mapping[str, float]) -> bool:
        if not (self._signs.keys() <= other.keys() and self._signs.keys() <= mine.keys()):
            return False
        gains = [other[name] - mine[name] for name in self._signs]
        return min(gains) >= 0 and max(gains) > 0
