"""The axes of a report's pictures: scores, costs, and whatever was searched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from memarch.studies.report.charts import (
    CHARACTER,
    Axis,
    Canvas,
    Scale,
    decade_ticks,
    element,
    nice_ticks,
    power_ticks,
    tick_text,
    words,
)
from memarch.studies.report.records import Records
from memarch.studies.results import leaderboard as board

Position = Callable[[Any], float]

MOST_CATEGORIES = 12
"""More different numbers than these stand on a continuous axis."""


def score_axis(
    canvas: Canvas, values: Sequence[float], title: str, *, floors: Sequence[float] = ()
) -> Scale:
    """The vertical axis: 0 to 1 for shares, else what the values and the floors need."""
    everything = [*values, *floors]
    low, high = min(everything), max(everything)
    share = low >= 0 and high <= 1 and (high > 0.1 or low == 0)
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1.0] if share else nice_ticks(low, high)
    base = canvas.height - canvas.bottom
    scale = Scale(ticks[0], ticks[-1], base - 6, canvas.top)
    canvas.y_axis(scale, ticks, title)
    canvas.axes["y"] = Axis("", scale)
    return scale


def cost_axis(canvas: Canvas, name: str, values: Sequence[float]) -> Position:
    """The horizontal axis of a cost: logarithmic, with a place for none at its left."""
    positive = [value for value in values if value > 0]
    some_without = len(positive) < len(values)
    start = canvas.left + (96 if some_without else 24)
    end = canvas.width - canvas.right - 24
    powers = power_ticks if name.endswith("_bytes") else decade_ticks
    ticks = powers(min(positive), max(positive)) if positive else []
    scale = Scale(ticks[0], ticks[-1], start, end, log=True) if ticks else None
    none = canvas.left + 26.0
    labels = [(none, "none")] if some_without else []
    labels += [(scale(tick), amount(name, tick)) for tick in ticks] if scale else []
    canvas.x_axis(labels, f"{heading(name)} (logarithmic)")
    canvas.axes["x"] = Axis(name, scale, labels[:1] if some_without else [])

    def position(value: float) -> float:
        return scale(value) if scale and value > 0 else none

    return position


def plain_axis(canvas: Canvas, name: str, values: Sequence[float]) -> Position:
    """The horizontal axis of a score."""
    ticks = nice_ticks(min(values), max(values))
    scale = Scale(ticks[0], ticks[-1], canvas.left + 12, canvas.width - canvas.right - 12)
    canvas.x_axis([(scale(tick), tick_text(tick)) for tick in ticks], name)
    canvas.axes["x"] = Axis("", scale)
    return scale


def amount(name: str, value: float | None) -> str:
    """A cost in its own unit."""
    return board.cost({"metrics": {name: value}}, name)


def heading(name: str) -> str:
    """A metric's name for an axis or a column."""
    known = {"cost/state_bytes": "state per sample", "cost/wall_seconds": "wall time"}
    if name in known:
        return known[name]
    return board.COSTS.get(name) or name.removeprefix("cost/").replace("_", " ")


@dataclass(frozen=True)
class Values:
    """The values of one searched parameter: categories, or numbers on a continuous axis."""

    name: str
    categories: tuple[Any, ...] = ()
    log: bool = False
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, records: Records, name: str, values: Sequence[Any]) -> Values:
        """As the values are: few different ones are categories, in their order."""
        distinct = {str(value): value for value in values}
        numbers = [value for value in values if is_number(value)]
        if len(numbers) < len(values) or len(distinct) <= MOST_CATEGORIES:
            ordered = sorted(distinct.values(), key=_order)
            return cls(name, tuple(ordered))
        log = any(getattr(space.get(name), "log", False) for space in records.ranges.values())
        return cls(name, log=log, low=min(numbers), high=max(numbers))

    def binned(self, count: int = 6) -> list[tuple[float, float]]:
        """The borders of `count` equal parts of a continuous axis."""
        bent = math.log10 if self.log else float
        straight = (lambda x: 10.0**x) if self.log else float
        low, high = bent(self.low), bent(self.high)
        edges = [straight(low + (high - low) * i / count) for i in range(count + 1)]
        return list(pairwise(edges))

    def cells(self) -> list[str]:
        """What a row or column of a heat map is called."""
        if self.categories:
            return [short(value) for value in self.categories]
        return [f"{board.number(low, digits=2)}…" for low, _ in self.binned()]

    def cell(self, value: Any) -> int:
        """The row or column that a value belongs to."""
        if self.categories:
            return [str(known) for known in self.categories].index(str(value))
        parts = self.binned()
        return next((i for i, (_, high) in enumerate(parts) if value < high), len(parts) - 1)

    def axis(self, canvas: Canvas) -> Position:
        """Draw it; where a value stands."""
        start, end = canvas.left + 8, canvas.width - canvas.right - 8
        if self.categories:
            return self._bands(canvas, start, end)
        ticks = (
            decade_ticks(self.low, self.high, 5) if self.log else nice_ticks(self.low, self.high, 4)
        )
        scale = Scale(ticks[0], ticks[-1], start, end, log=self.log)
        canvas.x_axis([(scale(tick), board.number(float(tick))) for tick in ticks], self.name)
        canvas.axes["x"] = Axis("", scale)
        return scale

    def _bands(self, canvas: Canvas, start: float, end: float) -> Position:
        width = (end - start) / len(self.categories)
        places = {str(value): start + width * (i + 0.5) for i, value in enumerate(self.categories)}
        room = max(3, int(width / CHARACTER))
        labels = [
            (at, _cut(short(value), room))
            for value, at in zip(self.categories, places.values(), strict=True)
        ]
        canvas.x_axis(labels, self.name)
        canvas.axes["x"] = Axis("", places=labels)
        return lambda value: places[str(value)]

    @property
    def jitter(self) -> bool:
        """Whether marks of equal value need to be moved apart."""
        return bool(self.categories)


def draw_floors(
    canvas: Canvas, floors: Mapping[str, float], y: Scale, *, named: bool = True
) -> None:
    """Dashed lines; the words of the highest stand above its line, those of the others below."""
    x0, x1 = canvas.left, canvas.width - canvas.right
    ordered = sorted(floors.items(), key=lambda item: item[1])
    for index, (name, value) in enumerate(ordered):
        at = y(value)
        canvas.draw(element("line", x1=x0, x2=x1, y1=at, y2=at, class_="floor"))
        canvas.taken.append((x0, at - 1, x1, at + 1))
        if named:
            text = f"floor: {name.replace('_', ' ')} {value:.2f}"
            base = at - 5 if index == len(ordered) - 1 else at + 14
            canvas.around(x1, at, words(0, base - at, text, anchor="end"), class_="side")
            canvas.taken.append((x1 - CHARACTER * len(text), base - 11, x1, base + 3))


def short(value: Any) -> str:
    """A value for a place with little room: a subset as `0+2`."""
    if isinstance(value, list | tuple):
        return "+".join(board.number(one) for one in value) or "-"
    return board.number(value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if is_number(value) else (1, 0.0, str(value))


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"
