"""What a trial's numbers mean: complete, failed or infeasible, and how far it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from memarch.studies.store import Json

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

Verdict = tuple[str, str]
"""A state and its reason."""


class Judge:
    """The objectives and constraints of a study."""

    def __init__(self, settings: Json) -> None:
        self.objective: dict[str, str] = dict(settings["objective"])
        self.constraints: dict[str, dict[str, float]] = settings.get("constraints") or {}

    def verdict(self, result: Json) -> Verdict:
        """Of what a worker wrote when a trial ended."""
        state, reason = result["state"], result.get("reason") or ""
        metrics = result.get("metrics") or {}
        if state != "complete":
            return state, reason
        for name in [*self.objective, *self.constraints]:
            if name not in metrics:
                return "failed", f"no metric {name!r}; there are: {', '.join(sorted(metrics))}"
            if metrics[name] is None or not math.isfinite(metrics[name]):
                return "failed", f"{name} is not a finite number"
        return self.infeasible(metrics) or (state, reason)

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
        return ("infeasible", "; ".join(broken)) if broken else None

    def violations(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Constraints as Optuna wants them: zero or less where one holds."""
        return {f"{name}/{side}": excess for name, side, _, excess in self._checked(metrics)}

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


def failed(reason: str) -> Json:
    """A result in a worker's stead."""
    return {"state": "failed", "reason": reason, "metrics": {}}
