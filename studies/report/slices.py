"""The objective against what was searched, one parameter at a time.

Every trial; where a parameter has few values, a line joins each variant's medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from memarch.studies.report.axes import Values, draw_floors, score_axis
from memarch.studies.report.charts import Canvas, element
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
    draw_floors(canvas, floors, y, named=False)
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
            canvas.draw(element("polyline", points=line, class_=look, opacity="0.55"))
        for trial in own:
            at = x(trial["params"][name]) + shift
            at += (trial["number"] % SPREAD - SPREAD // 2) * 1.2 if values.jitter else 0.0
            mark, owner = trial_mark(records, trial, 3.4), {"class_": records.group(variant)}
            canvas.around(at, y(scores[trial["number"]]), mark, **owner, data_t=trial["number"])
    return canvas.svg(f"{metric} against {name}")
