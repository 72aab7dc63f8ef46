"""The tables of a report's page: leaderboard, costs, test scores, failures, what was searched."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from statistics import fmean

from memarch.search_spaces.ranges import described
from memarch.studies.report.axes import amount
from memarch.studies.report.records import Records, Trial
from memarch.studies.results import leaderboard as board
from memarch.studies.results.finalists import COLUMNS
from memarch.studies.results.replicates import Replicates

DEAREST = 60
"""Rows of the table of costs; `--format csv` has all of them."""

FAILURES = {
    "out_of_memory": "out of memory",
    "not_finite": "loss not finite",
    "time_limit": "time limit",
    "worker_lost": "worker lost",
    "stalled": "no report for too long",
    "error": "error in the code",
}
"""Kinds of failure in words."""


SETTING_COLUMNS = [
    "rank",
    "variant",
    "settings",
    "seeds",
    "mean",
    "95 %",
    "median",
    "range",
    "solved",
]
"""Of a leaderboard over seeds, before the costs."""


def setting_words(rank: int, one: Replicates) -> list[str]:
    """A setting over its seeds, in the columns of `SETTING_COLUMNS`."""
    low, high = min(one.scores), max(one.scores)
    interval = "-" if one.interval is None else f"{one.interval[0]:.3f} to {one.interval[1]:.3f}"
    runs = len(one.trials) + len(one.others)
    seeds = str(runs) if not one.others else f"{len(one.trials)} of {runs}"
    seeds += f" ({one.unconverged}*)" if one.unconverged else ""
    return [
        f"{rank} =" if one.tied and rank > 1 else str(rank),
        one.variant or "model",
        board.settings({"params": one.params}) or "-",
        seeds,
        f"{one.mean:.4f}",
        interval,
        f"{one.median:.4f}",
        f"{low:.3f} to {high:.3f}",
        "-" if one.solved is None else f"{one.solved} of {len(one.trials)}",
    ]


def leaderboard(records: Records) -> str:
    """The settings over their seeds, with every trial below; or the trials, where each has one."""
    trials = _trials(records)
    if not records.replicated:
        return _floors(records) + trials
    _, costs = board.columns(records.document, [one.trials[0] for one in records.points])
    body = []
    for rank, one in enumerate(records.points, start=1):
        words = setting_words(rank, one)
        shown = one.metrics()
        cells = [cell(words[0], rank), names(records, one.trials[0])[1], cell(words[2])]
        cells += [cell(words[3], class_="num"), cell(words[4], one.mean, _look(records, one.mean))]
        cells.append(cell(words[5], one.interval and one.interval[0], "num"))
        cells.append(cell(words[6], one.median, "num"))
        cells += [cell(words[7], min(one.scores), "num"), cell(words[8], one.solved, "num")]
        cells += [cell(amount(c, shown.get(c)), shown.get(c), "num") for c in costs]
        body.append(row(records, one.trials[0], cells, one.numbers))
    head = [*SETTING_COLUMNS, *costs.values()]
    note = "Settings over their seeds, by the mean. = marks what the seeds cannot tell from the "
    note += "best; solved counts seeds that reached the top. Results over seeds are often of two "
    note += "kinds: look at median and range before the mean. * counts seeds that were still "
    note += "getting better when their budget ended."
    made = table(head, body, right=head[3:])
    every = f"<details><summary>Every trial</summary>{trials}</details>"
    return f"<p class=note>{note}</p>{_floors(records)}{made}{every}"


def _floors(records: Records) -> str:
    if not records.floors:
        return ""
    floors = sorted(records.floors.items())
    words = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in floors)
    note = f"<p class=note>Floors, what guesses reach: {escape(words)}. A "
    return note + "score at or below the higher one is grey. Baselines are in italics.</p>"


def _look(records: Records, score: float | None) -> str:
    """Of a score: grey at or below the higher floor."""
    floor = max(records.floors.values(), default=None)
    low = score is not None and floor is not None and records.maximize and score <= floor
    return "num low" if low else "num strong"


def _trials(records: Records) -> str:
    """Trials, best first, beside the costs."""
    document, rows = records.document, records.ranked
    if not rows:
        return "<p class=note>No trial has finished yet.</p>"
    goals, costs = board.columns(document, rows)
    seed = board.several_seeds(document)
    scores = board.headings(goals, costs.values()).values()
    head = ["rank", "trial", "variant", "settings", *scores, *costs.values()]
    body = []
    for rank, trial in enumerate(rows, start=1):
        cells = [cell(rank), *names(records, trial), cell(board.settings(trial, seed=seed))]
        for goal in goals:
            value = board.score(trial, goal)
            look = _look(records, value) if goal == records.metric else "num strong"
            cells.append(cell(board.figure(trial, goal), value, look))
        cells += [cell(board.cost(trial, c), board.score(trial, c), "num") for c in costs]
        body.append(row(records, trial, cells))
    return table(head, body, right=head[4:])


def costs(records: Records) -> str:
    """Every cost of the best trials."""
    rows = records.ranked[:DEAREST]
    known = sorted({name for row in rows for name in row["metrics"] if name.startswith("cost/")})
    if not known:
        return ""
    head = ["trial", "variant", *(name.removeprefix("cost/").replace("_", " ") for name in known)]
    body = []
    for trial in rows:
        cells = names(records, trial)
        cells += [cell(board.cost(trial, n), board.score(trial, n), "num") for n in known]
        body.append(row(records, trial, cells))
    return table(head, body, right=head[2:])


def sizes(records: Records) -> str:
    """What was solved for each level of size, and what is left out of the comparison."""
    rows = records.document.get("sizes") or []
    body = []
    for one in rows:
        cells = [cell(one["variant"] or "model", class_="strong")]
        cells += [cell(one["cost"]), cell(f"{one['level']:.12g}", one["level"], "num")]
        if "reason" in one:
            cells += [cell(f"left out: {one['reason']}"), cell("-"), cell("-")]
        else:
            values = ", ".join(f"{n} {board.number(v)}" for n, v in one["values"].items())
            off = 100 * one["residual"]
            cells += [cell(values), cell(f"{one['value']:.12g}", one["value"], "num")]
            cells.append(cell(f"{off:+.2g} %", off, "num"))
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = ["variant", "cost", "level", "values", "measured", "off"]
    return table(head, body, right=["level", "measured", "off"]) if rows else ""


def tests(records: Records) -> str:
    """The finalists on the test split over their seeds; or the trials, where each has one seed."""
    if not records.replicated:
        return _tests(records)
    body = []
    for one in records.finalists:
        words, trials = one.words(), one.setting.trials
        cells = [names(records, trials[0])[1], *(cell(word) for word in words[1:3])]
        cells += [cell(words[3], class_="num"), cell(words[4], fmean(one.scores), "num strong")]
        cells += [cell(word, class_="num") for word in words[5:]]
        body.append(row(records, trials[0], cells, one.setting.numbers))
    return table(COLUMNS, body, right=COLUMNS[3:]) if body else ""


def _tests(records: Records) -> str:
    tested = [trial for trial in records.ranked if _tested(trial)]
    found = sorted({name for trial in tested for name in _tested(trial)})
    main = [name for name in found if name.count("/") == 2 and "/floor" not in name]
    if not tested:
        return ""
    head = ["trial", "variant", "settings", *board.headings([records.metric, *main]).values()]
    body = []
    for trial in tested:
        cells = [*names(records, trial), cell(board.settings(trial))]
        for name in [records.metric, *main]:
            value = board.score(trial, name)
            cells.append(cell("-" if value is None else amount(name, value), value, "num"))
        body.append(row(records, trial, cells))
    return table(head, body, right=head[3:])


def _tested(trial: Trial) -> list[str]:
    return [name for name in trial["metrics"] if name.startswith("test/")]


def failed(records: Records) -> str:
    """What did not run to its end: how many of each kind, then one by one."""
    rows = [trial for trial in records.trials if trial["state"] != "complete"]
    if not rows:
        return ""
    counts = Counter(kind_of_failure(trial) for trial in rows)
    words = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    body = []
    for trial in rows:
        cells = [*names(records, trial), cell(board.settings(trial))]
        cells += [cell(kind_of_failure(trial)), cell(trial["reason"] or "")]
        cells.append(cell(trial["attempts"], class_="num"))
        body.append(row(records, trial, cells))
    head = ["trial", "variant", "settings", "what happened", "reason", "attempts"]
    return f"<p class=note>{escape(words)}.</p>" + table(head, body, right=["attempts"])


def kind_of_failure(trial: Trial) -> str:
    """The kind of a trial that did not complete, in words."""
    kind = trial.get("failure")
    if kind is not None:
        return FAILURES.get(kind, str(kind).replace("_", " "))
    words = {"pruned": "stopped early", "infeasible": "broke a constraint"}
    return words.get(trial["state"], str(trial["state"]))


def space(records: Records) -> str:
    """What was searched: a row for each parameter, a column for each variant that has it."""
    parameters = dict.fromkeys(name for own in records.ranges.values() for name in own)
    if not parameters:
        return ""
    variants = [name for name in records.ranges if records.ranges[name]]
    same = len(variants) == 1 or all(
        records.ranges[name] == records.ranges[variants[0]] for name in variants
    )
    shown = variants[:1] if same else variants
    head = ["parameter", *(["values"] if same else shown)]
    body = []
    for name in parameters:
        known = [records.ranges[variant].get(name) for variant in shown]
        cells = [cell(name, class_="strong")]
        cells += [cell("" if one is None else described(one)) for one in known]
        body.append(f"<tr>{''.join(cells)}</tr>")
    fixed = [name or "model" for name in records.ranges if name not in variants]
    note = f"<p class=note>Nothing is searched in {escape(', '.join(fixed))}.</p>" if fixed else ""
    return table(head, body) + note


def row(records: Records, trial: Trial, cells: Iterable[str], numbers: Sequence[int] = ()) -> str:
    """A table's row, which the page's script knows as the trial's, or as that of several."""
    looks = [records.group(trial["variant"] or "")]
    looks += ["baseline"] if board.is_baseline(trial) else []
    looks += ["best"] if trial["number"] in records.document["best"] else []
    owners = " ".join(str(number) for number in numbers or [trial["number"]])
    return f'<tr class="{" ".join(looks)}" data-t="{owners}">{"".join(cells)}</tr>'


def names(records: Records, trial: Trial) -> list[str]:
    """The cells of a trial's number and of its variant."""
    variant = trial["variant"] or ""
    note = f" <small>{board.BASELINES[variant]}</small>" if board.is_baseline(trial) else ""
    if trial["state"] != "complete":
        note += f" <small>{escape(trial['state'])}</small>"
    colour = records.colour(variant)
    dot = f'<i class="dot" style="--dot:var({"--muted" if colour == "x" else f"--c{colour}"})"></i>'
    shown = f'<td class="variant">{dot}{escape(variant or "model")}{note}</td>'
    return [cell(f"{trial['number']:03d}", trial["number"]), shown]


def table(head: Sequence[str], body: Iterable[str], right: Sequence[str] = ()) -> str:
    cells = "".join(
        f"<th{' class=num' if name in right else ''}>{_breakable(name)}</th>" for name in head
    )
    rows = "".join(body)
    made = f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{made}</div>'


def _breakable(name: str) -> str:
    """A heading that may go on in the next line after a slash or a line."""
    return re.sub("([/_])", r"\1<wbr>", escape(name))


def cell(shown: object, value: object = None, class_: str = "") -> str:
    """A cell; with what it is sorted by, where that is not what it shows."""
    sort = "" if value is None or str(value) == str(shown) else f' data-s="{_sort(value)}"'
    look = f' class="{class_}"' if class_ else ""
    return f"<td{look}{sort}>{escape(str(shown))}</td>"


def _sort(value: object) -> str:
    return f"{value:.7g}" if isinstance(value, float) else escape(str(value))
