"""Whose turn it is: the next trial's variant, values and seed, as far as the sampler leaves them.

    grid, all    the points in their order, all with one seed and then with the next
    search       a point's other seeds; then the first points of the file; then a trial of every
                 variant; then what the sampler draws, or, where it begins to repeat itself, a new
                 point of the variant tried least

What the next trial is follows from the trials asked and told before it, so that a study cut off and
resumed runs what an uninterrupted one would have run.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memarch.components.errors import SpecError
from memarch.studies.records.store import Json
from memarch.studies.search.racing import Entrant, Race
from memarch.studies.search.sampling import (
    Draws,
    Point,
    Space,
    grid_points,
    grid_size,
    one_of_each,
    seed_of,
    with_seeds,
)

MOST_POINTS = 100_000
"""Larger spaces are not listed to find a new point."""


@dataclass(frozen=True)
class Turn:
    """What is fixed about the next trial."""

    seed: int
    variant: str | None = None
    """None: the sampler's."""
    draws: Draws = field(default_factory=dict)
    """What is not here is the sampler's."""


class Turns:
    """The order of a study's trials."""

    def __init__(
        self,
        settings: Json,
        spaces: Mapping[str, Space],
        *,
        first: Sequence[tuple[str, Draws]] = (),
        more_seeds: Sequence[Json] = (),
        race: Race | None = None,
    ) -> None:
        self._spaces, self._first, self.race = spaces, list(first), race
        model, self._search_seed = settings["seeds"]["model"], settings["seeds"]["search"]
        self.seeds: list[int] = list(model) if isinstance(model, list) else [model]
        self._repeat = bool(settings.get("repeat"))
        self._more: dict[str, list[int]] = {}
        for row in more_seeds:
            key = Point(row["variant"], row["params"]).key
            known = [*self.seeds, *self._more.get(key, [])]
            new = [seed for seed in row["seeds"] if seed not in known]
            self._more.setdefault(key, []).extend(new)
        plan = self._plan(settings)
        self._left = None if plan is None else deque(plan)
        self.planned = None if plan is None else len(plan) + sum(map(len, self._more.values()))
        self._points: dict[str, Point] = {}
        self._numbers: dict[str, dict[int, int]] = {}
        """Trials by point and seed."""
        self._open: dict[str, Point] = {}
        """Points that may have further seeds, in their order."""
        self._noted: set[int] = set()
        self._begun = 0
        self._repeats = False

    def _plan(self, settings: Json) -> list[Point] | None:
        """All points of the study in their order, where the design names them; else None."""
        design = settings["design"]
        if design == "grid":
            return with_seeds(grid_points(self._spaces), self.seeds)
        if design in ("all", "ablation"):
            return with_seeds(one_of_each(self._spaces, self._search_seed), self.seeds)
        if settings["sampler"]["type"] == "grid":
            points = grid_points(self._spaces, shuffle=self._search_seed)
            if settings.get("racing"):
                return with_seeds(points, self.seeds)
            return [Point(p.variant, p.draws, seed) for p in points for seed in self.seeds]
        return None

    def note(self, number: int, point: Point) -> None:
        """A trial was asked."""
        if number in self._noted:
            return
        self._noted.add(number)
        key = point.key
        if point.seed == self.seeds[0]:
            self._begun += 1
            self._repeats = key in self._points
        self._points.setdefault(key, Point(point.variant, point.draws))
        self._numbers.setdefault(key, {}).setdefault(point.seed, number)
        if self._left is None or key in self._more:
            self._open[key] = self._points[key]

    def next(self, records: Mapping[int, Json]) -> Turn | None:
        """The next trial; None where there is none, or none before a running one has ended."""
        self._take_note(records)
        if self._left is not None:
            return self._next_planned(self._left, records) or self._next_seed(records)
        return self._next_seed(records) or self._next_point()

    def any(self) -> Turn:
        """A trial more than there is reason for: the sampler's."""
        return Turn(self.seeds[0])

    def _take_note(self, records: Mapping[int, Json]) -> None:
        if len(self._noted) < len(records):
            for number in sorted(records.keys() - self._noted):
                record = records[number]
                self.note(number, Point(record["variant"], record["params"], record["seed"]))

    def _next_planned(self, left: deque[Point], records: Mapping[int, Json]) -> Turn | None:
        later: list[Point] = []
        found = None
        while left and found is None:
            point = left[0]
            if point.seed in self._numbers.get(point.key, {}):
                left.popleft()
                continue
            decision = self._decide(point, records)
            if decision == "go":
                found = Turn(point.seed, point.variant, point.draws)
                break
            left.popleft()
            if decision == "wait":
                later.append(point)
        left.extendleft(reversed(later))
        return found

    def _next_seed(self, records: Mapping[int, Json]) -> Turn | None:
        """One more seed of the first point that lacks one."""
        found, over = None, []
        for key, point in self._open.items():
            missing = [seed for seed in self._seeds_of(key) if seed not in self._numbers[key]]
            decision = self._decide(point, records) if missing else "drop"
            if decision == "go":
                found = Turn(missing[0], point.variant, point.draws)
                break
            if decision == "drop":
                over.append(key)
        for key in over:
            del self._open[key]
        return found

    def _next_point(self) -> Turn:
        seed = self.seeds[0]
        if self._begun < len(self._first):
            return Turn(seed, *self._first[self._begun])
        if list(self._spaces) != [""]:
            tried = {point.variant for point in self._points.values()}
            for variant in self._spaces:
                if variant not in tried:
                    return Turn(seed, variant)
        if self._repeats and not self._repeat:
            return self._untried()
        return Turn(seed)

    def _untried(self) -> Turn:
        """A new point of the variant that has the fewest."""
        tried = Counter(point.variant for point in self._points.values())
        for variant in sorted(self._spaces, key=lambda name: tried[name]):
            space = {variant: self._spaces[variant]}
            try:
                few = grid_size(space) <= MOST_POINTS
            except SpecError:  # a range without end: whatever the sampler draws will be new
                few = False
            if not few:
                return Turn(self.seeds[0], variant)
            for point in grid_points(space, shuffle=seed_of(self._search_seed, len(self._noted))):
                if point.key not in self._points:
                    return Turn(self.seeds[0], variant, point.draws)
        return Turn(self.seeds[0])

    # Seeds

    def _seeds_of(self, key: str) -> list[int]:
        return [*self.seeds, *self._more.get(key, [])]

    def _decide(self, point: Point, records: Mapping[int, Json]) -> str:
        key = point.key
        if self.race is None or key not in self._numbers:
            return "go"
        return self.race.decide(self._entrant(key, records), self._field(records))

    def _field(self, records: Mapping[int, Json]) -> Iterator[Entrant]:
        return (self._entrant(key, records) for key in self._points)

    def _entrant(self, key: str, records: Mapping[int, Json]) -> Entrant:
        found: list[Any] = [records[n] for n in self._numbers[key].values() if n in records]
        return Entrant(self._points[key], len(self._seeds_of(key)), found)
