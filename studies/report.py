"""A study's report: one HTML page that needs nothing else, and its main picture as an SVG file.

The page holds the question, the leaderboard with floors and baselines, the front of the objective
against bytes of state, learning curves, costs, what failed and why, and how to run it again. It is
made from the JSON files in the study's folder alone, so any process can write it at any time.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from memarch.studies import leaderboard as board
from memarch.studies.charts import STYLE, Canvas
from memarch.studies.pictures import Records, Trial, curves, front, label, legend_mark, score_of
from memarch.studies.report_page import PAGE
from memarch.studies.store import write_text


def write_report(folder: Path) -> Path:
    """Write `report.html` and `front.svg` into a study's folder; the path of the page."""
    records = Records(Path(folder))
    write_text(records.folder / "front.svg", front_svg(records.folder) + "\n")
    page = records.folder / "report.html"
    write_text(page, _page(records))
    return page


def front_svg(folder: Path) -> str:
    """Objective against bytes of state, floors drawn, front marked: a file of its own."""
    return front(Records(Path(folder)), standalone=True)


def _page(records: Records) -> str:
    parts = {
        "style": STYLE,
        "name": escape(records.document["name"]),
        "question": f"<p class=question>{escape(records.question)}</p>" if records.question else "",
        "facts": _facts(records),
        "answer": _answer(records),
        "leaderboard": _leaderboard(records),
        "front": front(records),
        "legend": _legend(records),
        "curves": _section("Learning curves", curves(records), _CURVES.format(records.metric)),
        "test": _section("Test scores of the finalists", _test(records), _TEST),
        "costs": _section("Costs", _costs(records), _COSTS),
        "failed": _section("What did not finish", _failed(records), ""),
        "reproduce": _reproduce(records),
    }
    text = PAGE
    for name, part in parts.items():
        text = text.replace(f"<!--{name}-->", part)
    return text


_CURVES = "{} over training steps; the variant's best trial is drawn strong, floors are dashed."
_TEST = "Computed once, after the search; nothing was chosen by them."
_COSTS = (
    "Parameters, state and FLOPs are counted on the model that ran. FLOPs are of the forward pass, "
    "per input token. Click a heading to sort."
)


def _section(title: str, body: str, words: str) -> str:
    if not body:
        return ""
    note = f"<p class=note>{escape(words)}</p>" if words else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>"


def _facts(records: Records) -> str:
    document, info = records.document, records.info
    counts: dict[str, int] = {}
    for trial in records.trials:
        kind = "drawn again" if board.is_copy(trial) else trial["state"]
        counts[kind] = counts.get(kind, 0) + 1
    goals = [f"{metric} ({way})" for metric, way in board.objectives(document).items()]
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


def _answer(records: Records) -> str:
    """The result in a sentence or two."""
    rows = [t for t in board.ranked(records.document) if t["state"] == "complete"]
    if not rows:
        return "<p class=answer>No trial has finished yet.</p>"
    best, maximize = board.best_memory(rows), board.main_objective(records.document)[1]
    value = score_of(records, best)
    shown = board.figure(best, records.metric, digits=3)
    state = board.cost(best, "cost/state_bytes")
    words = [f"<b>{escape(label(best))}</b> is best: {escape(records.metric)} <b>{shown}</b>"]
    words[0] += f" with {state} of state."
    if records.floors:
        name, floor = max(
            records.floors.items(), key=lambda item: item[1] * (1 if maximize else -1)
        )
        beats = value > floor if maximize else value < floor
        verb = "beats" if beats else "does <b>not</b> beat"
        words.append(f"It {verb} the floor of {floor:.3f} ({escape(name.replace('_', ' '))}).")
    for trial in rows:
        if board.is_baseline(trial):
            what = board.BASELINES[trial["variant"]]
            score = board.figure(trial, records.metric, digits=3)
            words.append(f"{escape(trial['variant'])} ({what}) has {score}.")
    return f"<p class=answer>{' '.join(dict.fromkeys(words))}</p>"


def _leaderboard(records: Records) -> str:
    document = records.document
    rows = board.ranked(document)
    goals, costs = board.columns(document, rows)
    if not rows:
        return "<p class=note>No trial has finished yet.</p>"
    seed = board.several_seeds(document)
    floor = max(records.floors.values(), default=None)
    maximize = board.main_objective(document)[1]
    head = ["rank", "trial", "variant", "settings", *goals, *costs.values()]
    body = []
    for rank, trial in enumerate(rows, start=1):
        cells = [_cell(rank, rank), _cell(f"{trial['number']:03d}", trial["number"])]
        cells += [_variant(records, trial), _cell(board.settings(trial, seed=seed))]
        for goal in goals:
            value = board.score(trial, goal)
            low = value is not None and floor is not None and maximize and value <= floor
            class_ = "num low" if low and goal == records.metric else "num strong"
            cells.append(_cell(board.figure(trial, goal), value, class_))
        cells += [_cell(board.cost(trial, c), board.score(trial, c), "num") for c in costs]
        classes = ["baseline"] if board.is_baseline(trial) else []
        classes += ["best"] if trial["number"] in document["best"] else []
        body.append(f"<tr class='{' '.join(classes)}'>{''.join(cells)}</tr>")
    floors = ", ".join(f"{n.replace('_', ' ')} {v:.3f}" for n, v in sorted(records.floors.items()))
    note = ""
    if floors:
        note = f"<p class=note>Floors, which need no memory: {escape(floors)}. A score at or below "
        note += "the higher one is grey: nothing was recalled. Baselines are in italics.</p>"
    return note + _table(head, body, right=[*goals, *costs.values()])


def _costs(records: Records) -> str:
    rows = board.ranked(records.document)
    names = sorted({name for row in rows for name in row["metrics"] if name.startswith("cost/")})
    if not names:
        return ""
    head = ["trial", "variant", *(name.removeprefix("cost/").replace("_", " ") for name in names)]
    body = []
    for trial in rows:
        cells = [_cell(f"{trial['number']:03d}", trial["number"]), _variant(records, trial)]
        cells += [_cell(board.cost(trial, n), board.score(trial, n), "num") for n in names]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return _table(head, body, right=head[2:])


def _test(records: Records) -> str:
    tested = [t for t in board.ranked(records.document) if _tested(t)]
    if not tested:
        return ""
    main = [
        name
        for name in sorted({name for trial in tested for name in _tested(trial)})
        if name.count("/") == 2 and "/floor" not in name
    ]
    head = ["trial", "variant", "settings", records.metric, *main]
    body = []
    for trial in tested:
        cells = [_cell(f"{trial['number']:03d}", trial["number"]), _variant(records, trial)]
        cells.append(_cell(board.settings(trial)))
        for name in [records.metric, *main]:
            value = board.score(trial, name)
            cells.append(_cell(board.cost(trial, name), value, "num"))
        body.append(f"<tr>{''.join(cells)}</tr>")
    return _table(head, body, right=head[3:])


def _tested(trial: Trial) -> list[str]:
    return [name for name in trial["metrics"] if name.startswith("test/")]


def _failed(records: Records) -> str:
    rows = [t for t in records.trials if t["state"] not in ("complete",)]
    body = []
    for trial in rows:
        cells = [_cell(f"{trial['number']:03d}", trial["number"]), _variant(records, trial)]
        cells += [_cell(board.settings(trial)), _cell(trial["state"])]
        cells += [_cell(trial["reason"] or ""), _cell(trial["attempts"], class_="num")]
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = ["trial", "variant", "settings", "state", "reason", "attempts"]
    return _table(head, body, right=["attempts"]) if body else ""


def _reproduce(records: Records) -> str:
    """The command, the file, the best trial's whole spec, and the versions it ran with."""
    info = records.info
    file = Path(info.get("file") or "study.yaml")
    command = ["memarch", "study", "run", file.name]
    if records.document["name"] != (records.settings.get("name") or file.stem):
        command += ["--as", records.document["name"]]
    command += ["--set", *info["overrides"]] if info.get("overrides") else []
    parts = [f"<pre>{escape(shlex.join(command))}</pre>"]
    if records.source:
        parts.append(_folded("The study file", records.source))
    rows = board.ranked(records.document)
    if rows and rows[0].get("spec"):
        number = rows[0]["number"]
        spec = json.dumps(rows[0]["spec"], indent=2, ensure_ascii=False)
        parts.append(_folded(f"The whole spec of trial {number:03d}, defaults included", spec))
        result = records.study.trial(number).result or {}
        if result.get("versions"):
            versions = "\n".join(f"{name} {v}" for name, v in result["versions"].items())
            parts.append(_folded("Versions", versions))
    return "".join(parts)


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _legend(records: Records) -> str:
    entries = []
    for variant in records.variants:
        picture = Canvas(16, 16)
        picture.add(legend_mark(records, variant, 8, 8))
        entries.append(f"<span>{picture.svg(variant)}{escape(variant or 'model')}</span>")
    front = "<span><svg viewBox='0 0 22 22'><circle cx=11 cy=11 r=9 class=ring /></svg>front</span>"
    return f"<div class=legend>{''.join(entries)}{front}</div>"


def _variant(records: Records, trial: Trial) -> str:
    variant = trial["variant"] or ""
    picture = Canvas(16, 16)
    picture.add(legend_mark(records, variant, 8, 8))
    note = f" <small>{board.BASELINES[variant]}</small>" if board.is_baseline(trial) else ""
    if trial["state"] != "complete":
        note += f" <small>{escape(trial['state'])}</small>"
    shown = f"{picture.svg(variant)}{escape(variant or 'model')}{note}"
    return f"<td class=variant data-v='{escape(variant)}'>{shown}</td>"


def _table(head: Sequence[str], body: Iterable[str], right: Sequence[str] = ()) -> str:
    cells = "".join(
        f"<th{' class=num' if name in right else ''}>{escape(name)}</th>" for name in head
    )
    rows = "".join(body)
    table = f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<div class=scroll>{table}</div>"


def _cell(shown: object, value: object = None, class_: str = "") -> str:
    sort = f' data-v="{escape(str(value))}"' if value is not None else ""
    return f'<td class="{class_}"{sort}>{escape(str(shown))}</td>'
