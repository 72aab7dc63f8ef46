"""Which trials are best: the winner of one objective, or the front of several."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from memarch.studies.records.store import Json


def groups(records: Iterable[Json]) -> list[list[Json]]:
    """Complete trials that differ in their seed only, together; copies are not counted twice."""
    found: dict[str, list[Json]] = {}
    for record in records:
        if record["state"] == "complete" and record.get("copy_of") is None:
            key = json.dumps([record["variant"], record["params"]], sort_keys=True)
            found.setdefault(key, []).append(record)
    return list(found.values())


def ranking(records: Iterable[Json], objective: Mapping[str, str]) -> tuple[list[int], list[int]]:
    """The best trials, and all others after them, each list by the first objective.

    Best is the winner of one objective, or the front of several. Replicates count by their mean,
    and are represented by the first of them.
    """
    rows: list[tuple[list[float], int]] = []
    for group in groups(records):
        values = [[record["metrics"].get(name) for record in group] for name in objective]
        if all(value is not None for column in values for value in column):
            means = [sum(column) / len(column) for column in values]
            signs = [1 if direction == "minimize" else -1 for direction in objective.values()]
            costs = [sign * mean for sign, mean in zip(signs, means, strict=True)]
            rows.append((costs, group[0]["number"]))
    rows.sort()
    if len(objective) == 1:
        numbers = [number for _, number in rows]
        return numbers[:1], numbers[1:]
    front: list[tuple[list[float], int]] = []
    others: list[int] = []
    for row in rows:  # what beats a row is sorted before it
        beaten = any(_dominates(other[0], row[0]) for other in front)
        others.append(row[1]) if beaten else front.append(row)
    return [number for _, number in front], others


def _dominates(one: list[float], other: list[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
