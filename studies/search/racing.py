"""Racing over seeds: a point that cannot win any more gets no further seeds.

Results over seeds are often bimodal, so no distribution is assumed and one bad seed decides
nothing. For each point and objective, let the seeds that it has not had yet give the worst value,
or the best value, that the study has seen: between these lie its median and its mean over all
seeds. A point is dropped when both, at their best, are below those of one other point at their
worst, by as many seeds of the other as it has had itself. Of three seeds that is possible after two
bad ones, of five after three, and close points stay. A failed seed counts as the worst value.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from memarch.studies.driver.judging import FIXED_COSTS
from memarch.studies.records.store import FINISHED, Json, read_json, write_json
from memarch.studies.search.sampling import Point

Decision = Literal["go", "wait", "drop"]
Centre = tuple[float, float]
"""Median and mean, turned so that more is better."""


@dataclass(frozen=True)
class Entrant:
    """A point in the race."""

    point: Point
    seeds: int
    """How many it may have in all."""
    records: Sequence[Json]
    """Of the seeds that it has had."""


class Race:
    """Who goes on. What is dropped stays so: `racing.json` in the study's folder keeps it."""

    def __init__(self, after: int, objective: Mapping[str, str], folder: Path) -> None:
        self.after, self.objective = after, dict(objective)
        self._path = folder / "racing.json"
        self.dropped: list[Json] = read_json(self._path, [])
        self._keys = {Point(row["variant"], row["params"]).key for row in self.dropped}
        self._notices: list[str] = []

    def decide(self, entrant: Entrant, field: Iterable[Entrant]) -> Decision:
        """Whether the point gets one more seed now. `wait`: what it has had is not finished."""
        if entrant.point.key in self._keys:
            return "drop"
        if len(entrant.records) < self.after:
            return "go"
        if any(record["state"] not in FINISHED for record in entrant.records):
            return "wait"
        field = list(field)
        ranges = self._seen(field)
        if ranges is None:
            return "go"
        for leader in field:
            reason = self._beaten(entrant, leader, ranges)
            if reason:
                self._drop(entrant, reason)
                return "drop"
        return "go"

    def notices(self) -> list[str]:
        """What was dropped since the last call."""
        told, self._notices = self._notices, []
        return told

    def _drop(self, entrant: Entrant, reason: str) -> None:
        point = entrant.point
        numbers = [record["number"] for record in entrant.records]
        self._keys.add(point.key)
        self.dropped.append(
            {
                "variant": point.variant,
                "params": point.draws,
                "trials": numbers,
                "seeds": entrant.seeds,
                "reason": reason,
            }
        )
        write_json(self._path, self.dropped)
        self._notices.append(
            f"racing: the point of trial {numbers[0]} gets no more seeds; {reason}"
        )

    def _seen(self, field: Iterable[Entrant]) -> dict[str, tuple[float, float]] | None:
        """The worst and the best value of each objective so far; None where there is none."""
        records = [record for entrant in field for record in entrant.records]
        ranges = {}
        for name in self.objective:
            values = [v for record in records if (v := self._value(record, name)) is not None]
            if not values:
                return None
            ranges[name] = (min(values), max(values))
        return ranges

    def _beaten(
        self, entrant: Entrant, leader: Entrant, ranges: Mapping[str, tuple[float, float]]
    ) -> str:
        """Why the entrant cannot reach the leader; empty where it still can."""
        better = ""
        leader = replace(leader, records=leader.records[: len(entrant.records)])
        for name, direction in self.objective.items():
            _, most = self._bounds(entrant, name, ranges[name])
            least, _ = self._bounds(leader, name, ranges[name])
            if most[0] > least[0] or most[1] > least[1]:
                return ""
            if most[0] < least[0] and most[1] < least[1] and not better:
                sign = 1 if direction == "maximize" else -1
                better = (
                    f"after {len(entrant.records)} of {entrant.seeds} seeds its median of {name} "
                    f"can reach {sign * most[0]:.4g} at best, and at worst "
                    f"{sign * least[0]:.4g} is that of trial {leader.records[0]['number']}"
                )
        return better

    def _bounds(
        self, entrant: Entrant, name: str, seen: tuple[float, float]
    ) -> tuple[Centre, Centre]:
        """Median and mean over all its seeds, at worst and at best."""
        known = []
        for record in entrant.records:
            value = self._value(record, name)
            if value is not None:
                known.append(value)
            elif record["state"] in ("failed", "infeasible"):
                known.append(seen[0])
        if name in FIXED_COSTS and known:
            seen = (known[0], known[0])
        missing = entrant.seeds - len(known)
        return _centre([*known, *[seen[0]] * missing]), _centre([*known, *[seen[1]] * missing])

    def _value(self, record: Json, name: str) -> float | None:
        """A result that counts, turned so that more is better."""
        value = record["metrics"].get(name) if record["state"] == "complete" else None
        if value is None or not math.isfinite(value):
            return None
        return float(value) if self.objective[name] == "maximize" else -float(value)


def _centre(values: Sequence[float]) -> Centre:
    return statistics.median(values), statistics.fmean(values)
