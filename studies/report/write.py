"""A study's report: one HTML page that needs nothing else, and its pictures as SVG and PNG files.

The page holds the question, what was searched, the leaderboard with floors and baselines, fronts of
the objective against costs, what mattered, slices and maps, learning curves, costs, what
failed and why, and how to run it again. It is made from the JSON files in the study's folder alone,
so any process can write it at any time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from memarch.studies.records.store import write_text
from memarch.studies.report import pictures
from memarch.studies.report import tables as tables
from memarch.studies.report.ablation import conclusions, forest
from memarch.studies.report.axes import heading
from memarch.studies.report.bars import importance_bars
from memarch.studies.report.charts import STYLE, Canvas
from memarch.studies.report.formats import FORMATS
from memarch.studies.report.maps import maps
from memarch.studies.report.page import PAGE
from memarch.studies.report.png import write_png
from memarch.studies.report.records import Records, Trial
from memarch.studies.report.slices import slices
from memarch.studies.report.text import answer, command
from memarch.studies.results import leaderboard as board
from memarch.studies.results.importance import importances

Charts = list[tuple[str, str]]
"""Names and SVG."""


def write_report(folder: Path, format: str = "html", png: Path | None = None) -> Path:
    """Write `report.html` and `front.svg`, or the tables in another format, into a study's folder,
    and the pictures as PNG files into another if asked; the path of the report."""
    records = Records(Path(folder))
    if png is not None:
        for name, chart in all_pictures(records):
            write_png(png / f"{_file_name(name)}.png", chart)
    if format != "html":
        path = records.folder / f"report.{format}"
        write_text(path, FORMATS[format](records))
        return path
    write_text(records.folder / "front.svg", front_svg(records.folder) + "\n")
    page = records.folder / "report.html"
    write_text(page, _page(records))
    return page


def front_svg(folder: Path) -> str:
    """Objective against bytes of state, floors drawn, front marked: a file of its own."""
    return pictures.scatter(Records(Path(folder)), pictures.COSTS[0], standalone=True)


def all_pictures(records: Records) -> Iterator[tuple[str, str]]:
    """Every picture of the page, each by itself, with a name."""
    for against in pictures.horizontals(records):
        name = "front" if against == pictures.COSTS[0] else f"against {heading(against)}"
        yield name, pictures.scatter(records, against, standalone=True)
    if any(one.difference is not None for one in records.comparisons):
        yield "ablation", forest(records, standalone=True)
    for goal in records.goals:
        shares = importances(records, goal)
        for group, chart in importance_bars(records, shares):
            yield f"importance {_of(records, goal)}{group}", chart
        for name, chart in slices(records, goal):
            yield f"slice {_of(records, goal)}{name}", chart
    for variant in records.variants:
        for title, chart in maps(records, variant, records.metric):
            yield f"map {variant} {title}", chart
    for axis in pictures.axes_of_curves(records):
        for variant, chart in pictures.curves(records, axis):
            yield f"curves {variant or 'model'} over {axis}", chart


def overview(records: Records) -> Iterator[tuple[str, str]]:
    """The pictures that tell most, by file name: no curves of single variants."""
    for name, chart in all_pictures(records):
        if not name.startswith("curves "):
            yield _file_name(name), chart


def _of(records: Records, goal: str) -> str:
    return "" if len(records.goals) == 1 else f"{goal} "


def _file_name(words: str) -> str:
    kept = (c if c.isalnum() or c in "-." else "_" for c in words.replace("…", ""))
    return "".join(kept).strip("_")


def _page(records: Records) -> str:
    sections = [(title, note, body) for title, note, body in _sections(records) if body]
    contents = "".join(
        f'<a href="#{_file_name(title)}">{escape(title)}</a>' for title, _, _ in sections
    )
    parts = {
        "style": STYLE,
        "name": escape(records.document["name"]),
        "question": f"<p class=question>{escape(records.question)}</p>" if records.question else "",
        "facts": _facts(records),
        "answer": answer(records),
        "contents": f"<nav>{contents}</nav>",
        "legend": _legend(records),
        "sections": "".join(_section(*each) for each in sections),
        "data": _data(records),
    }
    text = PAGE
    for name, part in parts.items():
        text = text.replace(f"<!--{name}-->", part)
    return text


def _section(title: str, note: str, body: str) -> str:
    words = f"<p class=note>{escape(note)}</p>" if note else ""
    return f'<section id="{_file_name(title)}"><h2>{escape(title)}</h2>{words}{body}</section>'


def _sections(records: Records) -> Iterator[tuple[str, str, str]]:
    """Title, a note and the content of each part of the page."""
    fronts = [
        (heading(against), f'<figure class="wide">{pictures.scatter(records, against)}</figure>')
        for against in pictures.horizontals(records)
    ]
    yield "Ablation", "", _ablation(records)
    yield "Score against cost", _FRONT, _tabs(fronts)
    yield "Leaderboard", "", tables.leaderboard(records)
    yield "Sizes", _SIZES, tables.sizes(records)
    yield "Test scores of the finalists", _TEST, tables.tests(records)
    bars = [
        (goal, _multiples(importance_bars(records, importances(records, goal))))
        for goal in records.goals
    ]
    yield "What mattered", _IMPORTANCE, _tabs([(goal, body) for goal, body in bars if body])
    sliced = [(goal, _multiples(slices(records, goal))) for goal in records.goals]
    yield "One parameter at a time", _SLICES, _tabs([each for each in sliced if each[1]])
    crossed = [
        (variant or "model", _multiples(maps(records, variant, records.metric), "fit"))
        for variant in records.variants
    ]
    crossed = [each for each in crossed if each[1]]
    note = _CONTOURS if any('class="contour"' in body for _, body in crossed) else _CELLS
    yield "Parameters crossed", note.format(records.metric), _tabs(crossed)
    drawn = [
        (f"over {axis}", _multiples(_grouped(records, pictures.curves(records, axis))))
        for axis in pictures.axes_of_curves(records)
    ]
    yield "Learning curves", _CURVES.format(records.metric), _tabs(drawn)
    yield "Costs", _COSTS, tables.costs(records)
    yield "What did not finish", "", tables.failed(records)
    yield "What was searched", "", tables.space(records)
    yield "How to reproduce", "", _reproduce(records)


def _ablation(records: Records) -> str:
    words = conclusions(records)
    picture = forest(records)
    return words and f'{words}<figure class="wide">{picture}</figure>'


_FRONT = (
    "Each mark is a setting: the median of its seeds, with a line over their range. Ringed "
    "settings are the front: no other one is as good for less. Dashed lines are floors, what a "
    "guess reaches. Point at a mark for its values, click to keep them. Drag a "
    "rectangle in this or another chart to zoom, or turn the wheel with Ctrl; a double click shows "
    "all again."
)
_TEST = "Computed once, after the search; nothing was chosen by them."
_IMPORTANCE = (
    "PED-ANOVA over complete trials: how far the best trials (a tenth, and at least five) have "
    "other values of a parameter than all trials have, as shares of one. A share says how much a "
    "parameter decided in the range that was searched, not which way; a parameter that only some "
    "variants have counts in those."
)
_SLICES = "Every complete trial; lines join the medians of a variant."
_CELLS = "Median {} of the trials in each cell; empty cells were not tried."
_CONTOURS = (
    "Median {} of the trials at each setting. Only the settings that stand on top were measured: "
    "bands and lines are interpolated linearly from one to the next, and end with the outermost. "
    "Cells, where an axis has fewer than three numbers, are the median of their trials."
)
_CURVES = "{} over training; the variant's best trial is drawn strong, floors are dashed."
_SIZES = (
    "What was solved for, so that the models cost the same: the values that come nearest to each "
    "level, what was measured with them, and how far that is off."
)
_COSTS = (
    f"Of the best {tables.DEAREST} trials at most. Parameters, state and FLOPs are counted on the "
    "model that ran. FLOPs are of the forward pass, per input token. Click a heading to sort."
)


def _grouped(records: Records, charts: Charts) -> Charts:
    """With the class of the variant that a chart is about, as its name."""
    return [(records.group(variant), chart) for variant, chart in charts]


def _multiples(charts: Charts, look: str = "") -> str:
    if not charts:
        return ""
    figures = "".join(
        f'<figure class="{name if name[:1] == "v" and name[1:].isdigit() else ""}">{chart}</figure>'
        for name, chart in charts
    )
    return f'<div class="multiples {look}">{figures}</div>'


def _tabs(panels: Sequence[tuple[str, str]]) -> str:
    """One of several at a time; all of them, under headings, where scripts do not run."""
    if len(panels) < 2:
        return "".join(body for _, body in panels)
    bar = "".join(f'<button role="tab">{escape(name)}</button>' for name, _ in panels)
    bodies = "".join(f'<div class="panel">{body}</div>' for _, body in panels)
    return f'<div class="tabs"><div class="bar" role="tablist">{bar}</div>{bodies}</div>'


def _facts(records: Records) -> str:
    document, info = records.document, records.info
    counts: dict[str, int] = {}
    for trial in records.trials:
        kind = "drawn again" if board.is_copy(trial) else trial["state"]
        counts[kind] = counts.get(kind, 0) + 1
    goals = [f"{metric} ({way})" for metric, way in records.goals.items()]
    facts = {
        "state": document["state"],
        "design": info.get("design"),
        "objective": ", ".join(goals),
        "trials": ", ".join(f"{n} {state}" for state, n in counts.items()),
        "time": board.duration(info["elapsed"]) if info.get("elapsed") else None,
        "begun": _day(info.get("created")),
    }
    rows = [f"<div><dt>{k}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items() if v]
    return f"<dl class=facts>{''.join(rows)}</dl>"


def _day(seconds: float | None) -> str | None:
    return None if not seconds else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _legend(records: Records) -> str:
    """A button for each variant, which shows and hides it everywhere."""
    entries = []
    for variant in records.variants:
        picture = Canvas(16, 16)
        picture.add(pictures.legend_mark(records, variant, 8, 8))
        entries.append(
            f'<button data-v="{records.group(variant)}" aria-pressed="true">'
            f"{picture.svg(variant or 'model')}{escape(variant or 'model')}</button>"
        )
    if len(entries) < 2:
        return ""
    hint = '<span class="hint">click hides a variant everywhere, double-click shows it alone'
    hint += ', <button id="reset">all</button> shows all</span>'
    return f'<div class="legend">{"".join(entries)}{hint}</div>'


def _data(records: Records) -> str:
    """All values of all trials, for the page's script; what is equal in all trials is left out."""
    drawn = dict.fromkeys(
        name for trial in records.trials for name in trial["params"] if name != "variant"
    )
    first = [*records.goals, *(name for name in board.COSTS if name not in records.goals)]
    seen: dict[str, set[Any]] = {}
    for trial in records.trials:
        for name, value in trial["metrics"].items():
            seen.setdefault(name, set()).add(value)
    first = [name for name in first if name in seen]
    rest = sorted(name for name, values in seen.items() if len(values) > 1 and name not in first)
    trials = {
        str(trial["number"]): [
            f"{trial['number']:03d} {trial['variant'] or ''}".strip(),
            trial["state"],
            trial["reason"] or "",
            [_value(trial["params"].get(name)) for name in drawn]
            + [_value(trial["metrics"].get(name)) for name in [*first, *rest]],
        ]
        for trial in records.trials
    }
    data = {
        "names": [*drawn, *first, *rest],
        "shown": len(drawn) + len(first),
        "trials": trials,
    }
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")


def _value(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if value == value else "NaN"
    return value if value is None or isinstance(value, int | str) else board.number(value)


def _reproduce(records: Records) -> str:
    """The commands, the file, the best trial's whole spec, and what it ran with."""
    best = records.ranked[0] if records.ranked else None
    lines = [command(records)]
    if best is not None:
        lines.append(f"memarch train {records.document['name']}/{best['number']}  # its best trial")
    parts = [f"<pre>{escape(chr(10).join(lines))}</pre>"]
    if records.source:
        parts.append(_folded("The study file", records.source))
    if best is not None and best.get("spec"):
        spec = json.dumps(best["spec"], indent=2, ensure_ascii=False)
        parts.append(_folded(f"The spec of trial {best['number']:03d}, defaults included", spec))
        parts.append(_folded("Seeds, data, code and versions", _versions(records, best)))
    return "".join(parts)


def _versions(records: Records, trial: Trial) -> str:
    """What a trial ran with: seeds, data, code, machine, order of cells, libraries."""
    result, seeds = records.result(trial), records.settings.get("seeds") or {}
    lines = {f"seed {kind}": seed for kind, seed in seeds.items()}
    kinds = ("commit", "data", "device", "cpu", "threads")
    lines |= {key: result[key] for key in kinds if result.get(key)}
    order = result.get("schedule") or {}
    if order:
        lines["schedule"] = f"{order['schedule']}: {order['reason']}"
    lines |= result.get("versions") or {}
    return "\n".join(f"{name} {value}" for name, value in lines.items())


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
