"""Which settings are best: the winner of one objective, or the front of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean

from memarch.studies.results.leaderboard import Trial, grouped

Setting = list[Trial]
"""Complete trials that differ in their seed only, by number."""


def ranking(
    records: Iterable[Trial], objective: Mapping[str, str]
) -> tuple[list[Setting], list[Setting]]:
    """The best settings, and all others after them, each list by the first objective.

    Best is the winner of one objective, or the front of several. Seeds count by their mean; of
    equals the smaller state is first.
    """
    rows: list[tuple[list[float], float, int, Setting]] = []
    for setting in grouped(record for record in records if record["state"] == "complete"):
        values = [[record["metrics"].get(name) for record in setting] for name in objective]
        if all(value is not None for column in values for value in column):
            signs = [1 if direction == "minimize" else -1 for direction in objective.values()]
            costs = [sign * fmean(column) for sign, column in zip(signs, values, strict=True)]
            state = setting[0]["metrics"].get("cost/state_bytes") or 0.0
            rows.append((costs, state, setting[0]["number"], setting))
    rows.sort()
    if len(objective) == 1:
        settings = [setting for *_, setting in rows]
        return settings[:1], settings[1:]
    front: list[tuple[list[float], Setting]] = []
    others: list[Setting] = []
    for costs, *_, setting in rows:  # what beats a row is sorted before it
        beaten = any(_dominates(other, costs) for other, _ in front)
        others.append(setting) if beaten else front.append((costs, setting))
    return [setting for _, setting in front], others


def _dominates(one: list[float], other: list[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
