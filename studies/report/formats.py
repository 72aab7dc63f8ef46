"""A study's tables as text: Markdown, LaTeX with booktabs, and CSV with one row a trial."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from typing import Any

from memarch.studies.report.ablation import ablation_table
from memarch.studies.report.axes import amount
from memarch.studies.report.records import Records
from memarch.studies.report.tables import SETTING_COLUMNS, setting_words
from memarch.studies.report.text import Table, command, plain_answer
from memarch.studies.results import leaderboard as board
from memarch.studies.results.finalists import COLUMNS


def leaderboard(records: Records, most: int | None = None) -> Table:
    """The best settings over their seeds; where each has one seed, the best trials."""
    if records.replicated:
        return _settings(records, most)
    rows = records.ranked[:most]
    goals, costs = board.columns(records.document, rows)
    body = [
        [
            str(rank),
            f"{trial['number']:03d}",
            trial["variant"] or "model",
            board.settings(trial) or "-",
            *(board.figure(trial, goal) for goal in goals),
            *(board.cost(trial, name) for name in costs),
        ]
        for rank, trial in enumerate(rows, start=1)
    ]
    scores = board.headings(goals, costs.values()).values()
    head = ["rank", "trial", "variant", "settings", *scores, *costs.values()]
    return Table(_title(records), head, body, numbers=4)


def _settings(records: Records, most: int | None) -> Table:
    rows = records.points[:most]
    _, costs = board.columns(records.document, [one.trials[0] for one in rows])
    body = [
        [*setting_words(rank, one), *(amount(name, one.metrics().get(name)) for name in costs)]
        for rank, one in enumerate(rows, start=1)
    ]
    head = [*SETTING_COLUMNS, *costs.values()]
    return Table(_title(records), head, body, numbers=3)


def finalists(records: Records) -> Table:
    """The finalists' test scores over their seeds."""
    rows = [one.words() for one in records.finalists]
    title = f"{records.document['name']}: test scores of the finalists"
    return Table(title, COLUMNS, rows, numbers=3)


def _title(records: Records) -> str:
    return f"{records.document['name']}: {', '.join(records.goals)}, best first"


def markdown(records: Records) -> str:
    """Question, answer, an ablation's conclusions, leaderboard, test scores, how to run it."""
    parts = [f"# {records.document['name']}", records.question, plain_answer(records)]
    parts.append(ablation_table(records).markdown() if records.comparisons else "")
    parts.append(leaderboard(records).markdown() if records.ranked else "")
    parts.append(finalists(records).markdown() if records.finalists else "")
    parts.append(f"```sh\n{command(records)}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(records: Records) -> str:
    """The leaderboard, test scores and an ablation's conclusions, as tables of a paper."""
    head = r"% needs \usepackage{booktabs}"
    label = re.sub(r"[^a-z0-9]+", "-", records.document["name"].lower())
    tables = [leaderboard(records).latex(label)]
    if records.finalists:
        tables.append(finalists(records).latex(f"{label}-test"))
    if records.comparisons:
        tables.append(ablation_table(records).latex(f"{label}-ablation"))
    return "\n\n".join([head, *tables]) + "\n"


def trials_csv(records: Records) -> str:
    """One row a trial: what was drawn, how it ended, every metric."""
    fixed = ["number", "variant", "state", "failure", "reason", "attempts"]
    params = dict.fromkeys(
        name for trial in records.trials for name in trial["params"] if name != "variant"
    )
    metrics = sorted({name for trial in records.trials for name in trial["metrics"]})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*fixed, *params, *metrics])
    for trial in records.trials:
        row: list[Any] = [trial.get(name) for name in fixed]
        row += [trial["params"].get(name) for name in params]
        writer.writerow(row + [trial["metrics"].get(name) for name in metrics])
    return file.getvalue()


FORMATS: dict[str, Callable[[Records], str]] = {
    "md": markdown,
    "tex": latex,
    "csv": trials_csv,
}
"""Formats besides the page."""
