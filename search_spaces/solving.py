"""Which of finitely many values bring a cost nearest to a target.

Along one range the cost is taken to rise (or fall) and its crossing is found by bisection, which
looks at some ten values; where what it sees contradicts that, every value is looked at. Of several
ranges the longest is gone along, for every combination of the others.

Of equally near assignments the one wins that leaves its ranges' first values least: the least sum
of positions, each as a share of its range; then the one whose earlier ranges stand lower.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memarch.components.errors import SpecError

Values = Mapping[str, Any]
Cost = Callable[[Values], float | None]
"""The cost of an assignment; None where there is no such model."""

FEW = 8
"""Ranges of so few values are looked at whole."""
MOST = 2048
"""Assignments that are looked at one by one, at most."""


@dataclass(frozen=True)
class Found:
    """An assignment and what it costs."""

    values: dict[str, Any]
    cost: float


@dataclass(frozen=True)
class Nearest:
    """The best assignment, and the nearest costs on both sides of the target."""

    best: Found
    below: Found | None
    """At most the target."""
    above: Found | None
    """At least the target."""


def nearest(ranges: Mapping[str, Sequence[Any]], cost: Cost, target: float) -> Nearest | None:
    """The assignment of one value of each range whose cost is nearest; None where none is valid."""
    along = max(ranges, key=lambda name: len(ranges[name]))
    others = {name: values for name, values in ranges.items() if name != along}
    if math.prod(map(len, others.values())) > MOST:
        raise SpecError(
            f"{', '.join(ranges)} have more than {MOST} combinations to try: give shorter ranges, "
            "or a `step`"
        )
    found: dict[tuple[int, ...], Found] = {}
    for combination in itertools.product(*(range(len(values)) for values in others.values())):
        places = dict(zip(others, combination, strict=True))
        fixed = {name: others[name][place] for name, place in places.items()}

        def at(place: int, fixed: Values = fixed) -> float | None:
            return cost({**fixed, along: ranges[along][place]})

        for place, value in _candidates(at, len(ranges[along]), target):
            all_places = {**places, along: place}
            values = {name: ranges[name][all_places[name]] for name in ranges}
            found[tuple(all_places[name] for name in ranges)] = Found(values, value)
    if not found:
        return None
    lengths = [len(values) for values in ranges.values()]

    def rank(place: tuple[int, ...]) -> tuple[float, float, tuple[int, ...]]:
        moved = sum(p / max(1, n - 1) for p, n in zip(place, lengths, strict=True))
        return abs(found[place].cost - target), round(moved, 9), place

    def first(wanted: Callable[[float], bool]) -> Found | None:
        places = [place for place in found if wanted(found[place].cost)]
        return found[min(places, key=rank)] if places else None

    best = first(lambda _: True)
    assert best is not None
    return Nearest(best, first(lambda c: c <= target), first(lambda c: c >= target))


def _candidates(
    cost: Callable[[int], float | None], count: int, target: float
) -> Iterator[tuple[int, float]]:
    """The places next to the target along one range, the first of equal ones."""
    if count > FEW:
        try:
            yield from _bisected(cost, count, target)
            return
        except _NotMonotoneError:
            pass
    if count > MOST:
        raise SpecError(
            f"the cost neither only rises nor only falls over {count} values, too many to try: "
            "give a shorter range, or a `step`"
        )
    for place in range(count):
        value = cost(place)
        if value is not None:
            yield place, value


class _NotMonotoneError(Exception):
    """The cost does not only rise, or there are values without a model."""


def _bisected(
    cost: Callable[[int], float | None], count: int, target: float
) -> Iterator[tuple[int, float]]:
    seen: dict[int, float] = {}

    def at(place: int) -> float:
        if place not in seen:
            value = cost(place)
            if value is None:
                raise _NotMonotoneError
            seen[place] = value
            costs = [seen[p] for p in sorted(seen)]
            if costs not in (sorted(costs), sorted(costs, reverse=True)):
                raise _NotMonotoneError
        return seen[place]

    last = count - 1
    sign = -1 if at(0) > at(last) else 1

    def reaches(value: float) -> int:
        """The first place whose cost is the value or beyond; `count` where there is none."""
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if sign * at(middle) >= sign * value:
                high = middle
            else:
                low = middle + 1
        return low

    place = reaches(target)
    near = [place] if place < count else []
    if place > 0:
        near.append(reaches(at(place - 1)))
    for one in near:
        yield one, at(one)
