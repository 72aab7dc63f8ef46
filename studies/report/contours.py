"""Filled contours of the objective over two searched numbers, with what was measured on top.

Between measured settings the objective is interpolated: linearly in each triangle of their Delaunay
triangulation, on the axes as drawn. Beyond the outermost settings nothing is drawn.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import chain, combinations, pairwise

from memarch.studies.report.axes import Values, is_number
from memarch.studies.report.charts import (
    HEAT,
    Canvas,
    Scale,
    decade_ticks,
    element,
    marker,
    nice_ticks,
    tick_text,
    words,
)
from memarch.studies.results import leaderboard as board

FEWEST = 3
"""Different numbers that an axis of contours has at least."""

CHIP = (40, 18)
"""A measured setting, where there is room for its value."""

SLIVER = 0.5
"""Triangles of a smaller area, in square units of the picture, are left out."""

Setting = tuple[float, float]
Corner = tuple[float, float, float]
"""Position and objective."""
Side = tuple[Corner, Corner]


def spans(values: Sequence[object]) -> bool:
    """Whether these values of a parameter can be an axis of contours."""
    return all(is_number(value) for value in values) and len(set(values)) >= FEWEST


def contours(
    axes: Sequence[Values],
    measured: Mapping[Setting, tuple[float, str]],
    limits: tuple[float, float],
    title: str,
) -> Canvas | None:
    """A map of the settings' objectives, each with the numbers of its trials, in the shades of
    `limits`; none where the settings do not span an area."""
    found = [[setting[i] for setting in measured] for i in (0, 1)]
    if not all(map(spans, [*found, *(axis.categories for axis in axes if axis.categories)])):
        return None
    canvas = Canvas(448, 288, left=64, right=64, top=30, bottom=48)
    x, y = _axes(canvas, axes)
    corners = [(x(a), y(b), value) for (a, b), (value, _) in measured.items()]
    triangles = _triangles(corners)
    if not triangles:
        return None
    canvas.text(canvas.left, 16, title, class_="ink strong")
    edges = _borders(*limits)
    for index, level in enumerate(edges[:-1]):
        sides = _outline([_above(triangle, level) for triangle in triangles])
        canvas.add(element("path", d=_loops(sides), class_=_shade(index, edges)) if sides else "")
        line = "".join(f"M{_at(a)}L{_at(b)}" for a, b in sides if index and a[2] == b[2] == level)
        canvas.add(element("path", d=line, class_="contour") if line else "")
    canvas.add(element("path", d=_loops(_outline(triangles)), class_="void"))
    roomy = _apart(corners)
    for corner, (value, numbers) in zip(corners, measured.values(), strict=True):
        canvas.add(_chip(corner, value, edges, numbers) if roomy else _dot(corner, numbers))
    _key(canvas, edges)
    return canvas


def _borders(low: float, high: float) -> list[float]:
    """Round values between the bands, of which there are at most as many as shades."""
    found = (nice_ticks(low, high, count) for count in range(HEAT, 0, -1))
    return next(ticks for ticks in found if len(ticks) <= HEAT + 1)


def _axes(canvas: Canvas, axes: Sequence[Values]) -> list[Scale]:
    """Both axes, with a tick at each value where these are few."""
    right, base = canvas.width - canvas.right, canvas.height - canvas.bottom
    ends = [(canvas.left + 24.0, right - 24.0), (base - 14.0, canvas.top + 14.0)]
    scales, ticks = [], []
    for index, axis in enumerate(axes):
        known = list(axis.categories or (axis.low, axis.high))
        log = axis.log or _even_in_ratio(known)
        scale = Scale(known[0], known[-1], *ends[index], log=log)
        if not axis.categories:
            ticked = decade_ticks if log and axis.high >= 10 * axis.low else nice_ticks
            known = [tick for tick in ticked(*known) if scale.low <= tick <= scale.high]
        scales.append(scale)
        ticks.append([(scale(tick), board.number(tick)) for tick in known])
    canvas.x_axis(ticks[0], axes[0].name)
    for at, label in ticks[1]:
        canvas.text(canvas.left - 8, at + 4, label, anchor="end")
    middle = (canvas.top + base) / 2
    turned = f"rotate(-90 14 {middle:.0f})"
    canvas.text(14, middle, axes[1].name, anchor="middle", transform=turned)
    return scales


def _even_in_ratio(known: Sequence[float]) -> bool:
    """Whether numbers stand more evenly on a logarithmic axis: 1, 2, 4 rather than 1, 2, 3."""
    if known[0] <= 0:
        return False
    steps = [b - a for a, b in pairwise(known)]
    ratios = [math.log(b / a) for a, b in pairwise(known)]
    return max(ratios) / min(ratios) < max(steps) / min(steps)


def _triangles(corners: Sequence[Corner]) -> list[list[Corner]]:
    """The triangles between settings, all turning the same way; none where all are in a line."""
    from scipy.spatial import Delaunay, QhullError

    try:
        found = Delaunay([corner[:2] for corner in corners]).simplices.tolist()
    except QhullError:
        return []
    made = [[corners[index] for index in indices] for indices in found]
    return [triangle for triangle in made if _area(*triangle) > SLIVER]


def _area(a: Corner, b: Corner, c: Corner) -> float:
    return abs((b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])) / 2


def _above(triangle: Sequence[Corner], level: float) -> list[Corner]:
    """The part of a triangle where the objective is at least `level`."""
    kept = []
    for a, b in pairwise([*triangle, triangle[0]]):
        if a[2] >= level:
            kept.append(a)
        if (a[2] >= level) != (b[2] >= level):
            kept.append(_crossing(min(a, b), max(a, b), level))
    return list(dict.fromkeys(kept))


def _crossing(a: Corner, b: Corner, level: float) -> Corner:
    if level in (a[2], b[2]):
        return a if a[2] == level else b
    share = (level - a[2]) / (b[2] - a[2])
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]), level


def _outline(polygons: Sequence[Sequence[Corner]]) -> list[Side]:
    """The sides of polygons that no two of them share."""
    found = [pairwise([*polygon, polygon[0]]) for polygon in polygons if len(polygon) > 2]
    sides = dict.fromkeys(chain.from_iterable(found))
    return [(a, b) for a, b in sides if (b, a) not in sides]


def _loops(sides: Sequence[Side]) -> str:
    """A path along the sides, one loop after another."""
    following: dict[Corner, list[Corner]] = {}
    for a, b in sides:
        following.setdefault(a, []).append(b)
    path = ""
    while following:
        here = next(iter(following))
        path += f"M{_at(here)}"
        while here in following:
            there = following[here].pop()
            if not following[here]:
                del following[here]
            here = there
            path += f"L{_at(here)}"
        path += "Z"
    return path


def _at(corner: Corner) -> str:
    return f"{corner[0]:.1f},{corner[1]:.1f}"


def _shade(band: int, edges: Sequence[float]) -> str:
    last = max(1, len(edges) - 2)
    return f"h{round(band * (HEAT - 1) / last)}"


def _band(value: float, edges: Sequence[float]) -> int:
    return min(len(edges) - 2, max(0, bisect_right(edges, value) - 1))


def _apart(corners: Sequence[Corner]) -> bool:
    """Whether the values of all settings can be written where they stand."""
    return all(
        abs(a[0] - b[0]) >= CHIP[0] or abs(a[1] - b[1]) >= CHIP[1]
        for a, b in combinations(corners, 2)
    )


def _chip(corner: Corner, value: float, edges: Sequence[float], numbers: str) -> str:
    """A setting as its value, on the shade of its band."""
    shade = _shade(_band(value, edges), edges)
    wide, tall = CHIP
    box = {"x": corner[0] - wide / 2, "y": corner[1] - tall / 2, "width": wide, "height": tall}
    look = "on" if int(shade[1:]) >= 0.55 * HEAT else "ink"
    text = words(corner[0], corner[1] + 4, f"{value:.3g}", anchor="middle", class_=look)
    return element("g", element("rect", **box, rx=9, class_=f"chip {shade}") + text, data_t=numbers)


def _dot(corner: Corner, numbers: str) -> str:
    return marker(0, corner[0], corner[1], 3.4, class_="mark dark", data_t=numbers)


def _key(canvas: Canvas, edges: Sequence[float]) -> None:
    """The bands and their borders, beside the map."""
    left = canvas.width - canvas.right + 12
    y = Scale(edges[0], edges[-1], canvas.height - canvas.bottom, canvas.top)
    for index, (low, high) in enumerate(pairwise(edges)):
        box = {"x": left, "y": y(high), "width": 10, "height": y(low) - y(high)}
        canvas.add(element("rect", **box, class_=_shade(index, edges)))
    for edge in edges:
        canvas.text(left + 16, y(edge) + 4, tick_text(edge))
