"""The objective against what was searched: one parameter at a time, and three crossed.

Slices show every trial; where a parameter has few values a line joins each variant's medians. Heat
maps cross memory size, segment length and write steps, or whatever a variant has in their place;
a cell is the median of its trials.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from memarch.studies.report.axes import Values, draw_floors, is_number, score_axis
from memarch.studies.report.charts import HEAT, Canvas, element
from memarch.studies.report.pictures import trial_mark
from memarch.studies.report.records import Records, Trial
from memarch.studies.results import leaderboard as board

SPREAD = 5
"""Marks of equal value stand in so many columns."""


def slices(records: Records, metric: str) -> list[tuple[str, str]]:
    """A small chart for each parameter that differs between trials."""
    rows = [trial for trial in records.complete if board.score(trial, metric) is not None]
    return [(name, _slice(records, metric, name, rows)) for name in records.parameters(rows)]


def _slice(records: Records, metric: str, name: str, rows: Sequence[Trial]) -> str:
    rows = [trial for trial in rows if name in trial["params"]]
    scores = {trial["number"]: board.score(trial, metric) or 0.0 for trial in rows}
    floors = records.floors if metric == records.metric else {}
    canvas = Canvas(340, 232, left=44, right=14, top=12, bottom=44)
    y = score_axis(canvas, list(scores.values()), "", floors=list(floors.values()))
    values = Values.of(records, name, [trial["params"][name] for trial in rows])
    x = values.axis(canvas)
    draw_floors(canvas, floors, y, words=False)
    drawn = list(dict.fromkeys(trial["variant"] or "" for trial in rows))
    for index, variant in enumerate(drawn):
        own = [trial for trial in rows if (trial["variant"] or "") == variant]
        shift = (index - (len(drawn) - 1) / 2) * 9 if values.categories else 0.0
        middles = []
        for value in values.categories:
            here = [scores[t["number"]] for t in own if str(t["params"][name]) == str(value)]
            if here:
                middles.append((x(value) + shift, y(statistics.median(here))))
        if len(middles) > 1:
            line = " ".join(f"{px:.1f},{py:.1f}" for px, py in middles)
            look = f"curve s{records.colour(variant)} {records.group(variant)}"
            canvas.add(element("polyline", points=line, class_=look, opacity="0.55"))
        for trial in own:
            at = x(trial["params"][name]) + shift
            at += (trial["number"] % SPREAD - SPREAD // 2) * 1.2 if values.jitter else 0.0
            mark = trial_mark(records, trial, at, y(scores[trial["number"]]), 3.4)
            group = records.group(variant)
            canvas.add(element("g", mark, class_=group, data_t=trial["number"]))
    return canvas.svg(f"{metric} against {name}")


@dataclass(frozen=True)
class Crossing:
    """The parameters of a heat map: across, down, and one map for each value of the third."""

    across: str
    down: str
    maps: str | None


def crossing(records: Records, trials: Sequence[Trial]) -> Crossing | None:
    """Size, segment length and write steps where they were searched, else what comes first."""
    names = records.parameters(trials)
    names = [n for n in names if any(is_number(t["params"].get(n)) for t in trials)] + [
        n for n in names if not any(is_number(t["params"].get(n)) for t in trials)
    ]
    names.sort(key=_role)
    if len(names) < 2:
        return None
    return Crossing(names[0], names[1], names[2] if len(names) > 2 else None)


def _role(name: str) -> int:
    """Sizes of a memory first, then segments, then write steps, then all else."""
    last = name.rpartition(".")[2]
    if last in ("num_tokens", "d_mem", "heads", "size", "slots", "num_vectors"):
        return 0
    if last in ("segment_length", "segments"):
        return 1
    return 2 if last in ("write_steps", "steps") else 3


def heat_maps(records: Records, variant: str, metric: str) -> list[tuple[str, str]]:
    """The maps of a variant, all on one scale of colours; none where too little was crossed."""
    trials = [t for t in records.of(variant) if board.score(t, metric) is not None]
    crossed = crossing(records, trials)
    if crossed is None:
        return []
    names = [name for name in (crossed.across, crossed.down, crossed.maps) if name is not None]
    trials = [trial for trial in trials if all(name in trial["params"] for name in names)]
    if not trials:
        return []
    values = [Values.of(records, name, [t["params"][name] for t in trials]) for name in names]
    cells: dict[tuple[int, ...], list[Trial]] = {}
    for trial in trials:
        place = tuple(v.cell(trial["params"][v.name]) for v in values)
        cells.setdefault(place, []).append(trial)
    middles = {place: _middle(own, metric) for place, own in cells.items()}
    scale = _limits(list(middles.values()))
    thirds = values[2].cells() if len(values) > 2 else [""]
    charts = []
    for index, third in enumerate(thirds):
        rest = (index,) if len(values) > 2 else ()
        here = {place[:2]: place for place in cells if place[2:] == rest}
        if here:
            title = f"{names[2]} {third}" if rest else variant
            filled = {place: (middles[full], cells[full]) for place, full in here.items()}
            chart = _map(values[:2], filled, scale, title)
            charts.append((title, chart.svg(f"{metric} of {variant}, {title}", sized=True)))
    return charts


def _middle(trials: Sequence[Trial], metric: str) -> float:
    return statistics.median(board.score(trial, metric) or 0.0 for trial in trials)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (0.0, 1.0) if low >= 0 and 0.3 < high <= 1 else (low, high)


def _map(
    values: Sequence[Values],
    cells: dict[tuple[int, ...], tuple[float, list[Trial]]],
    scale: tuple[float, float],
    title: str,
) -> Canvas:
    across, down = values[0].cells(), values[1].cells()
    wide, tall = min(84, max(46, 360 // len(across))), 40
    left, top = 64, 30
    canvas = Canvas(left + wide * len(across) + 16, top + tall * len(down) + 48, left=left)
    canvas.text(left, 16, title, class_="ink strong")
    for column, words in enumerate(across):
        for row, name in enumerate(down):
            x, y = left + column * wide, top + (len(down) - 1 - row) * tall
            if column == 0:
                canvas.text(left - 8, y + tall / 2 + 4, name, anchor="end")
            found = cells.get((column, row))
            box = {"x": x + 1, "y": y + 1, "width": wide - 2, "height": tall - 2, "rx": 4}
            if found is None:
                canvas.add(element("rect", **box, class_="void"))
                continue
            level = _level(found[0], scale)
            canvas.add(element("rect", **box, class_=f"h{level}", data_t=_numbers(found[1])))
            look = "on" if level >= 0.55 * HEAT else "ink"
            canvas.text(
                x + wide / 2, y + tall / 2 + 4, f"{found[0]:.3g}", anchor="middle", class_=look
            )
        base = top + tall * len(down)
        canvas.text(left + (column + 0.5) * wide, base + 18, words, anchor="middle")
    middle = left + wide * len(across) / 2
    canvas.text(middle, canvas.height - 8, values[0].name, anchor="middle")
    turned = top + tall * len(down) / 2
    canvas.text(
        14, turned, values[1].name, anchor="middle", transform=f"rotate(-90 14 {turned:.0f})"
    )
    return canvas


def _numbers(trials: Sequence[Trial]) -> str:
    return " ".join(str(trial["number"]) for trial in trials)


def _level(value: float, scale: tuple[float, float]) -> int:
    low, high = scale
    share = (value - low) / (high - low) if high > low else 0.5
    return min(HEAT - 1, max(0, int(share * HEAT)))
