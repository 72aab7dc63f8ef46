"""A study's tables as text: Markdown, LaTeX with booktabs, and CSV with one row a trial."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any

from memarch.studies import leaderboard as board
from memarch.studies.report_records import Records
from memarch.studies.report_text import answer, command

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


@dataclass(frozen=True)
class Table:
    """Rows of words under headings; the columns from `numbers` on hold numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: int

    def markdown(self) -> str:
        """A table with pipes."""
        rules = ["---" if i < self.numbers else "---:" for i in range(len(self.head))]
        lines = [[_in_cell(word) for word in line] for line in (self.head, *self.rows)]
        lines.insert(1, rules)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def latex(self, label: str) -> str:
        """A floating table; needs \\usepackage{booktabs}."""
        columns = "l" * self.numbers + "r" * (len(self.head) - self.numbers)
        lines = [" & ".join(_latex(word) for word in line) + r" \\" for line in self.rows]
        return "\n".join(
            [
                r"\begin{table}",
                r"  \centering",
                rf"  \caption{{{_latex(self.title)}}}",
                rf"  \label{{tab:{label}}}",
                rf"  \begin{{tabular}}{{{columns}}}",
                r"    \toprule",
                f"    {' & '.join(_latex(word) for word in self.head)} \\\\",
                r"    \midrule",
                *(f"    {line}" for line in lines),
                r"    \bottomrule",
                r"  \end{tabular}",
                r"\end{table}",
            ]
        )


def leaderboard(records: Records, most: int | None = None) -> Table:
    """The best trials with their scores and costs."""
    rows = records.ranked[:most]
    goals, costs = board.columns(records.document, rows)
    seed = board.several_seeds(records.document)
    body = [
        [
            str(rank),
            f"{trial['number']:03d}",
            trial["variant"] or "model",
            board.settings(trial, seed=seed) or "-",
            *(board.figure(trial, goal) for goal in goals),
            *(board.cost(trial, name) for name in costs),
        ]
        for rank, trial in enumerate(rows, start=1)
    ]
    head = ["rank", "trial", "variant", "settings", *goals, *costs.values()]
    title = f"{records.document['name']}: {', '.join(records.goals)}, best first"
    return Table(title, head, body, numbers=4)


def markdown(records: Records) -> str:
    """Question, answer, leaderboard, how to run it again."""
    parts = [f"# {records.document['name']}", records.question, plain_answer(records)]
    parts.append(leaderboard(records).markdown() if records.ranked else "")
    parts.append(f"```sh\n{command(records)}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(records: Records) -> str:
    """The leaderboard as a table of a paper."""
    head = r"% needs \usepackage{booktabs}"
    label = re.sub(r"[^a-z0-9]+", "-", records.document["name"].lower())
    return "\n\n".join([head, leaderboard(records).latex(label)]) + "\n"


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


def plain_answer(records: Records) -> str:
    """The answer without the page's markup."""
    return unescape(re.sub(r"<[^>]+>", "", answer(records)))


def _in_cell(word: str) -> str:
    return word.replace("|", r"\|")


def _latex(word: str) -> str:
    return "".join(_SPECIAL.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in word)
