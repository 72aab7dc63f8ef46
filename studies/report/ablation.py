"""An ablation's conclusions: a forest plot of differences to the baseline, and what they say."""

from __future__ import annotations

from html import escape

from memarch.studies.report.charts import (
    CHARACTER,
    Canvas,
    Scale,
    element,
    marker,
    nice_ticks,
    tick_text,
)
from memarch.studies.report.records import Records
from memarch.studies.report.tables import cell, table
from memarch.studies.report.text import Table
from memarch.studies.results.ablation import Comparison

ROW = 34
LONGEST_NAME = 34
LOOKS = {"better": "2", "worse": "1"}
"""Colours of what the data show; all else is grey."""


def forest(records: Records, *, standalone: bool = False) -> str:
    """A row for each setting: the mean difference, its 95 % interval, every seed as a dot."""
    rows = [one for one in records.comparisons if one.difference is not None]
    title = f"difference in {records.metric} to {records.baseline}"
    if not rows:
        return ""
    words = [_cut(one.label) for one in rows]
    left = int(24 + CHARACTER * max(len(word) for word in words))
    canvas = Canvas(820, 70 + ROW * len(rows), left=left, right=170, top=14, bottom=48)
    margin = records.equivalence
    reached = [0.0, margin or 0.0, -(margin or 0.0)]
    for one in rows:
        ends = (one.low, one.high, *one.differences)
        reached += [value for value in ends if value is not None]
    ticks = nice_ticks(min(reached), max(reached), 6)
    x = Scale(ticks[0], ticks[-1], canvas.left, canvas.width - canvas.right)
    base = canvas.height - canvas.bottom
    if margin:
        box = {"x": x(-margin), "y": canvas.top, "width": x(margin) - x(-margin)}
        canvas.add(element("rect", **box, height=base - canvas.top, class_="track"))
    for tick in ticks:
        canvas.add(element("line", x1=x(tick), x2=x(tick), y1=canvas.top, y2=base, class_="grid"))
    canvas.add(element("line", x1=x(0), x2=x(0), y1=canvas.top, y2=base, class_="axis"))
    canvas.x_axis([(x(tick), tick_text(tick)) for tick in ticks], title)
    for index, (one, word) in enumerate(zip(rows, words, strict=True)):
        _row(canvas, one, word, x, canvas.top + ROW * (index + 0.5))
    return canvas.svg(title, standalone=standalone)


def _row(canvas: Canvas, one: Comparison, word: str, x: Scale, y: float) -> None:
    colour = LOOKS.get(one.outcome, "x")
    canvas.text(canvas.left - 12, y + 4, word, anchor="end", class_="ink")
    for value in one.differences:
        canvas.add(marker(0, x(value), y, 2.6, class_=f"c{colour}", opacity="0.45"))
    if one.low is not None and one.high is not None:
        ends = {"x1": x(one.low), "x2": x(one.high), "y1": y, "y2": y}
        canvas.add(element("line", **ends, class_=f"whisker s{colour}"))
    assert one.difference is not None
    canvas.add(marker(1, x(one.difference), y, 5.5, class_=f"mark c{colour}"))
    canvas.text(canvas.width - canvas.right + 12, y + 4, _interval(one), class_="ink")


def conclusions(records: Records) -> str:
    """The verdicts in words, with the numbers behind them."""
    made = ablation_table(records)
    if not made.rows:
        return ""
    body = []
    for one, line in zip(records.comparisons, made.rows, strict=True):
        group = records.group(one.name) if one.name in records.variants else ""
        cells = [cell(line[0], class_="strong"), cell(line[1]), cell(line[2], class_="verdict")]
        cells += [cell(word, class_="num") for word in line[3:]]
        body.append(f'<tr class="{group}">{"".join(cells)}</tr>')
    about = f"Each setting against <b>{escape(records.baseline)}</b> over the same seeds, in "
    about += f"{escape(records.metric)}: setting minus baseline. Intervals hold 95 %; p is of an "
    about += "exact permutation of the scores where they are shares, else of the paired "
    about += "differences, corrected for all settings (Holm). Detectable is the smallest "
    about += "difference that so many seeds would have shown."
    if records.equivalence:
        about += f" The grey band is &plusmn;{records.equivalence:g}, which counts as equal."
    return f"<p class=note>{about}</p>" + table(made.head, body, right=made.head[3:])


def ablation_table(records: Records) -> Table:
    """The comparisons as words, for every format."""
    rows = [
        [
            one.label,
            one.change,
            one.verdict,
            str(one.n),
            _interval(one),
            _number(one.p_corrected, 3),
            _number(one.effect_size, 2),
            _number(one.detectable, 3),
        ]
        for one in records.comparisons
    ]
    head = ["setting", "change", "verdict", "seeds", "difference", "p", "effect size", "detectable"]
    title = f"{records.document['name']}: differences to {records.baseline} in {records.metric}"
    return Table(title, head, rows, numbers=3)


def _interval(one: Comparison) -> str:
    if one.difference is None:
        return "-"
    if one.low is None or one.high is None:
        return f"{one.difference:+.3f}"
    return f"{one.difference:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _cut(word: str) -> str:
    return word if len(word) <= LONGEST_NAME else word[: LONGEST_NAME - 1] + "…"
