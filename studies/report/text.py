"""What a report says in words: the answer, the command that runs the study again, and tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path

from memarch.studies.report.records import Records, label
from memarch.studies.results import leaderboard as board
from memarch.studies.results.replicates import Replicates, at_levels

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


def answer(records: Records) -> str:
    """The result in a sentence or two."""
    if not records.points:
        return "<p class=answer>No trial has finished yet.</p>"
    memories = [one for one in records.points if one.variant not in board.BASELINES]
    best = (memories or records.points)[0]
    name = label(best.trials[0]) if len(best.trials) == 1 else best.name
    words = [f"<b>{escape(name)}</b> is best: {escape(records.metric)} {_score(records, best)}"]
    words[0] += f" with {board.cost(best.trials[0], 'cost/state_bytes')} of state."
    if records.floors:
        sign = 1 if records.maximize else -1
        floor_name, floor = max(records.floors.items(), key=lambda item: item[1] * sign)
        verb = "beats" if sign * best.mean > sign * floor else "does <b>not</b> beat"
        words.append(
            f"It {verb} the floor of {floor:.3f} ({escape(floor_name.replace('_', ' '))})."
        )
    tied = [one for one in memories[1:] if one.tied]
    if tied:
        many = "1 other setting" if len(tied) == 1 else f"{len(tied)} other settings"
        words.append(f"The seeds cannot tell it from {many}.")
    for level, rows in at_levels(memories).items():
        scores = ", ".join(f"{escape(one.variant)} {_score(records, one)}" for one in rows)
        words.append(f"At {level:.12g}: {scores}.")
    baselines: dict[str, Replicates] = {}
    for one in records.points:
        if one.variant in board.BASELINES and one is not best:
            baselines.setdefault(one.variant, one)
    for variant, one in baselines.items():
        words.append(f"{escape(variant)} ({board.BASELINES[variant]}) has {_score(records, one)}.")
    return f"<p class=answer>{' '.join(words)}</p>"


def _score(records: Records, one: Replicates) -> str:
    """The score of a setting: of one seed, or the mean of several with their range."""
    if len(one.scores) == 1:
        return f"<b>{board.figure(one.trials[0], records.metric, digits=3)}</b>"
    low, high = min(one.scores), max(one.scores)
    return f"<b>{one.mean:.3f}</b> (mean of {len(one.scores)} seeds, {low:.3f} to {high:.3f})"


def command(records: Records) -> str:
    """What runs the study again."""
    info = records.info
    file = Path(info.get("file") or "study.yaml")
    words = ["memarch", "study", "run", file.name]
    if records.document["name"] != (records.settings.get("name") or file.stem):
        words += ["--as", records.document["name"]]
    words += ["--set", *info["overrides"]] if info.get("overrides") else []
    return shlex.join(words)


def plain_answer(records: Records) -> str:
    """The answer without the page's markup."""
    return unescape(re.sub(r"<[^>]+>", "", answer(records)))


def _in_cell(word: str) -> str:
    return word.replace("|", r"\|")


def _latex(word: str) -> str:
    return "".join(_SPECIAL.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in word)
