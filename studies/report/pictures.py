"""The pictures of scores: against a cost with the front and the floors, and over training.

Every mark says which trial (`data-t`) and which variant (a class) it belongs to: the page's script
shows all values of what the pointer is on, and shows and hides variants by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from statistics import median

from memarch.studies.report.axes import (
    amount,
    cost_axis,
    draw_floors,
    heading,
    plain_axis,
    score_axis,
)
from memarch.studies.report.charts import (
    Axis,
    Canvas,
    Scale,
    element,
    marker,
    nice_ticks,
    tick_text,
)
from memarch.studies.report.records import AXES, Records, Trial, label, score_of
from memarch.studies.results import leaderboard as board

COSTS = ("cost/state_bytes", "cost/flops_per_token", "cost/parameters", "cost/wall_seconds")
"""What the main objective is drawn against, where it differs between trials."""


@dataclass(frozen=True)
class Mark:
    """A setting in a scatter plot: its median, and its range over seeds."""

    trial: Trial
    numbers: tuple[int, ...]
    x: float
    y: float
    low: float
    high: float

    @property
    def complete(self) -> bool:
        return bool(self.trial["state"] == "complete")


def horizontals(records: Records) -> list[str]:
    """What the main objective can be drawn against: other objectives, and costs that differ."""
    names = dict.fromkeys([*COSTS[:1], *list(records.goals)[1:], *COSTS[1:]])
    found = []
    for name in names:
        values = {board.score(trial, name) for trial in records.complete} - {None}
        if len(values) > 1 or (values and name == COSTS[0]):
            found.append(name)
    return found


def front(records: Records) -> list[Mark]:
    """Settings that no other beats in main objective and bytes of state, small first."""
    return _front(records, _marks(records, COSTS[0]), COSTS[0])


def scatter(records: Records, against: str, *, standalone: bool = False) -> str:
    """The main objective against another figure. Without state is left of the logarithmic axis."""
    canvas = Canvas(760, 430)
    marks = _marks(records, against)
    title = f"{records.metric} against {heading(against)}"
    if not marks:
        canvas.text(380, 215, "no trial has finished yet", anchor="middle")
        return canvas.svg(title, standalone=standalone)
    reached = [value for mark in marks for value in (mark.low, mark.high)]
    y = score_axis(canvas, reached, records.metric, floors=list(records.floors.values()))
    horizontal = [mark.x for mark in marks]
    axis = cost_axis if board.is_cost(against) else plain_axis
    x = axis(canvas, against, horizontal)
    draw_floors(canvas, records.floors, y)
    best = _front(records, marks, against)
    steps = [(x(mark.x), y(mark.y)) for mark in best]
    if len(steps) > 1:
        corners = [steps[0]]
        for (x0, y0), (x1, y1) in pairwise(steps):
            canvas.taken += [(x0, y0 - 2, x1, y0 + 2), (x1 - 2, min(y0, y1), x1 + 2, max(y0, y1))]
            corners += [(x1, y0), (x1, y1)]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py in corners)
        canvas.draw(element("polyline", points=line, class_="front"))
    if records.document.get("sizes"):
        _draw_levels(canvas, records, marks, x, y)
    for mark in sorted(marks, key=lambda mark: mark in best):
        _draw(canvas, records, mark, x, y, ring=mark in best, tips=standalone)
    for mark, point in zip(best, steps, strict=True):
        if not board.is_baseline(mark.trial):
            number = f" {mark.trial['number']:03d}" if len(mark.numbers) == 1 else ""
            canvas.label(*point, f"{mark.trial['variant'] or 'trial'}{number}")
    for mark in {mark.trial["variant"]: mark for mark in marks}.values():
        if board.is_baseline(mark.trial):
            words = f"{mark.trial['variant']} ({board.BASELINES[mark.trial['variant']]})"
            canvas.label(x(mark.x), y(mark.y), words, "muted")
    if standalone:
        _legend_in(canvas, records, {mark.trial["variant"] or "" for mark in marks})
    return canvas.svg(title, standalone=standalone)


def _marks(records: Records, against: str) -> list[Mark]:
    marks = []
    for point in records.points:
        across = [v for trial in point.trials if (v := board.score(trial, against)) is not None]
        if across:
            low, high = min(point.scores), max(point.scores)
            numbers = tuple(int(trial["number"]) for trial in point.trials)
            marks.append(Mark(point.trials[0], numbers, median(across), point.median, low, high))
    for trial in records.ranked:
        at = board.score(trial, against)
        if trial["state"] != "complete" and at is not None:
            value = score_of(records, trial)
            marks.append(Mark(trial, (int(trial["number"]),), at, value, value, value))
    return marks


def _front(records: Records, marks: Sequence[Mark], against: str) -> list[Mark]:
    less = -1 if records.goals.get(against) == "maximize" else 1
    more = 1 if records.maximize else -1
    found: list[Mark] = []
    for mark in sorted(marks, key=lambda m: (less * m.x, -more * m.y, m.trial["number"])):
        if mark.complete and (not found or more * mark.y > more * found[-1].y):
            found.append(mark)
    return found


def _draw_levels(
    canvas: Canvas,
    records: Records,
    marks: Sequence[Mark],
    x: Callable[[float], float],
    y: Scale,
) -> None:
    """Where variants were brought to equal sizes: each variant's best at each size, joined."""
    for variant in records.variants:
        best: dict[float, float] = {}
        for mark in marks:
            if mark.complete and (mark.trial["variant"] or "") == variant:
                value = best.setdefault(mark.x, mark.y)
                best[mark.x] = max(value, mark.y) if records.maximize else min(value, mark.y)
        if len(best) > 1:
            line = " ".join(f"{x(at):.1f},{y(best[at]):.1f}" for at in sorted(best))
            look = f"curve s{records.colour(variant)} {records.group(variant)}"
            canvas.draw(element("polyline", points=line, class_=look, opacity="0.6"))


def _draw(
    canvas: Canvas,
    records: Records,
    mark: Mark,
    x: Callable[[float], float],
    y: Scale,
    *,
    ring: bool,
    tips: bool,
) -> None:
    px, py = x(mark.x), y(mark.y)
    parts = [f"<title>{escape(tip(records, mark.trial))}</title>"] if tips else []
    if mark.high > mark.low:
        colour = records.colour(mark.trial["variant"] or "")
        ends = {"x1": 0, "x2": 0, "y1": y(mark.low) - py, "y2": y(mark.high) - py}
        parts.append(element("line", **ends, class_=f"whisker s{colour}"))
    if ring:
        parts.append(element("circle", r=9.5, class_="ring"))
    parts.append(trial_mark(records, mark.trial))
    owner = {"class_": records.group(mark.trial["variant"] or "")}
    numbers = " ".join(map(str, mark.numbers))
    canvas.around(px, py, "".join(parts), **owner, data_t=numbers)
    canvas.occupy(px, py)


def trial_mark(records: Records, trial: Trial, size: float = 5.5) -> str:
    """The mark of a trial around 0, 0; pale where it was stopped early or broke a constraint."""
    variant = trial["variant"] or ""
    opacity = None if trial["state"] == "complete" else "0.35"
    look = _look(records, variant)
    return marker(records.shape(variant), 0, 0, size, class_=look, opacity=opacity)


def legend_mark(records: Records, variant: str, x: float, y: float) -> str:
    return marker(records.shape(variant), x, y, class_=_look(records, variant))


def _look(records: Records, variant: str) -> str:
    colour = records.colour(variant)
    return f"mark hollow s{colour}" if variant in board.BASELINES else f"mark c{colour}"


def _legend_in(canvas: Canvas, records: Records, shown: set[str]) -> None:
    """The legend of a picture that stands alone, above its frame."""
    shift = 26
    canvas.height += shift
    body = element("g", canvas.content(), transform=f"translate(0 {shift})")
    canvas.parts, canvas.plot = [body], []
    left = float(canvas.left)
    for variant in (name for name in records.variants if name in shown):
        canvas.add(legend_mark(records, variant, left + 6, 20))
        words = variant or "model"
        canvas.text(left + 17, 24, words, class_="ink")
        left += 32 + 6.8 * len(words)


def axes_of_curves(records: Records) -> list[str]:
    """What the learning curves can be drawn over."""
    return [
        axis
        for axis in AXES
        if any(len(records.curve(trial, axis)) > 1 for trial in records.trials)
    ]


def curves(records: Records, axis: str = "steps") -> list[tuple[str, str]]:
    """Objective over training, by variant: a small chart for each, all on the same axes."""
    lines = {trial["number"]: records.curve(trial, axis) for trial in records.trials}
    points = [point for line in lines.values() for point in line]
    if not points:
        return []
    last, values = max(at for at, _ in points), [value for _, value in points]
    best = {trial["variant"] or "": trial["number"] for trial in reversed(records.ranked)}
    charts = []
    for variant in records.variants:
        own = [t for t in records.trials if (t["variant"] or "") == variant and lines[t["number"]]]
        if not own:
            continue
        canvas = Canvas(340, 226, left=44, right=22, top=26, bottom=40)
        y = score_axis(canvas, values, "", floors=list(records.floors.values()))
        ticks = nice_ticks(0, last, 4)
        x = Scale(0, ticks[-1], canvas.left, canvas.width - canvas.right)
        canvas.x_axis([(x(tick), tick_text(tick)) for tick in ticks], axis)
        canvas.axes["x"] = Axis("", x)
        canvas.text(canvas.left, 14, variant or "model", class_="ink strong")
        canvas.text(canvas.width - canvas.right, 14, _count(len(own), "trial"), anchor="end")
        draw_floors(canvas, records.floors, y, named=False)
        for trial in sorted(own, key=lambda t: t["number"] == best.get(variant)):
            strong = trial["number"] == best.get(variant) or len(own) == 1
            opacity = None if strong else f"{max(0.12, 0.5 - len(own) / 200):.2f}"
            line = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in lines[trial["number"]])
            look = f"curve s{records.colour(variant)}"
            drawn = element(
                "polyline", points=line, class_=look, opacity=opacity, data_t=trial["number"]
            )
            canvas.draw(drawn)
        charts.append((variant, canvas.svg(f"{records.metric} of {variant} over {axis}")))
    return charts


def tip(records: Records, trial: Trial) -> str:
    """What a picture that stands alone says of a trial."""
    lines = [label(trial)]
    if board.score(trial, records.metric) is not None:
        lines.append(f"{records.metric}: {score_of(records, trial):.4f}")
    for name, words in board.COSTS.items():
        value = board.score(trial, name)
        if value is not None:
            lines.append(f"{words}: {amount(name, value)}")
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
