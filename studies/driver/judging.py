"""What a trial's numbers mean: complete, failed or infeasible, and how far it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from memarch.studies.records.store import Json

FIXED_COSTS = (
    "cost/parameters",
    "cost/state_bytes",
    "cost/state_floats",
    "cost/flops_write",
    "cost/flops_read",
    "cost/flops_per_token",
    "cost/flops_train_per_token",
    "cost/break_even_queries",
    "cost/peak_activation_bytes",
)
"""Metrics that do not change while a trial trains: any report decides constraints on them."""


class Verdict(NamedTuple):
    """What a trial came to."""

    state: str
    reason: str
    failure: str | None = None
    """The kind of failure, of a trial that failed."""


class Judge:
    """The objectives and constraints of a study."""

    def __init__(self, settings: Json) -> None:
        self.objective: dict[str, str] = dict(settings["objective"])
        self.constraints: dict[str, dict[str, float]] = settings.get("constraints") or {}

    def verdict(self, result: Json) -> Verdict:
        """Of what a worker wrote when a trial ended."""
        state, reason = result["state"], result.get("reason") or ""
        metrics = result.get("metrics") or {}
        if state == "failed":
            return Verdict(state, reason, result.get("failure") or "error")
        if state != "complete":
            return Verdict(state, reason)
        for name in [*self.objective, *self.constraints]:
            if name not in metrics and name == "cost/break_even_queries":
                return Verdict("infeasible", "no number of queries is cheaper than attending")
            if name not in metrics:
                known = ", ".join(sorted(metrics))
                return Verdict("failed", f"no metric {name!r}; there are: {known}", "error")
            if metrics[name] is None or not math.isfinite(metrics[name]):
                return Verdict("failed", f"{name} is not a finite number", "not_finite")
        return self.infeasible(metrics) or Verdict(state, reason)

    def early_verdict(self, metrics: Mapping[str, Any]) -> Verdict | None:
        """`infeasible` where a report shows it already."""
        return self.infeasible({name: metrics.get(name) for name in FIXED_COSTS})

    def infeasible(self, metrics: Mapping[str, Any]) -> Verdict | None:
        """Which constraints are broken, if any are."""
        broken = [
            f"{name} is {metrics[name]:g}, {side} {limit:g}"
            for name, side, limit, excess in self._checked(metrics)
            if excess > 0
        ]
        return Verdict("infeasible", "; ".join(broken)) if broken else None

    def violations(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Constraints as Optuna wants them: zero or less where one holds."""
        return {f"{name}/{side}": excess for name, side, _, excess in self._checked(metrics)}

    def told(self, record: Mapping[str, Any]) -> dict[str, float]:
        """The same of a finished trial; one that is infeasible by a failure breaks that alone."""
        broken = self.violations(record["metrics"])
        if record["state"] == "infeasible" and record.get("failure"):
            broken[record["failure"]] = 1.0
        return broken

    def _checked(self, metrics: Mapping[str, Any]) -> list[tuple[str, str, float, float]]:
        """Name, side, limit and excess of all constraints that have a value."""
        found = []
        for name, limits in self.constraints.items():
            value = metrics.get(name)
            for side, sign in (("max", 1), ("min", -1)):
                limit = limits.get(side)
                if value is not None and limit is not None:
                    found.append((name, side, limit, sign * (value - limit)))
        return found


def share_of_budget(spec: Json, step: int, metrics: Mapping[str, Any]) -> float | None:
    """How much of its training budget a trial has used, by a report."""
    budget = (spec.get("train") or {}).get("budget") or {}
    seconds = metrics.get("train/seconds")
    spent = {
        "steps": step,
        "tokens": metrics.get("train/tokens"),
        "flops": metrics.get("train/flops"),
        "hours": None if seconds is None else seconds / 3600,
    }
    for unit, used in spent.items():
        if budget.get(unit):
            return None if used is None else used / budget[unit]
    return None
