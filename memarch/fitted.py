"""Tables that cut no word and no heading: wrapped, or without whole columns, which are named."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

LONGEST_LINE = 12
"""A heading that is longer goes on in the next line, after a slash, a line or a space."""


def heading(name: str) -> str:
    """A column's name in lines, none of them longer than need be."""
    lines = [""]
    for piece in re.findall(r"[^/_ ]*[/_ ]?", name):
        if lines[-1] and len(lines[-1] + piece.strip()) > LONGEST_LINE:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


@dataclass
class Fitted:
    """A table with the most important columns first, and numbers that stay in one line. A terminal
    too narrow for all columns shows those that fit, at least `kept`; a file or a pipe is as wide as
    the table."""

    table: Table
    kept: int

    def __post_init__(self) -> None:
        for column in self.table.columns:
            column.no_wrap = column.justify == "right"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, left_out = copy(self.table), list[str]()
        shown.columns = list(self.table.columns)
        needed = _needed(console, options, shown)
        if not console.is_terminal:
            yield from console.render(shown, options.update_width(max(options.max_width, needed)))
            return
        while len(shown.columns) > self.kept and needed > options.max_width:
            left_out.insert(0, str(shown.columns.pop().header).replace("\n", ""))
            needed = _needed(console, options, shown)
        yield shown
        if left_out:
            words = (
                f"no room for {', '.join(left_out)}: a wider terminal, --json and the report have"
            )
            yield Text(f"{words} {'it' if len(left_out) == 1 else 'them'}", style="dim")


def _needed(console: Console, options: ConsoleOptions, table: Table) -> int:
    return table.__rich_measure__(console, options.update_width(10_000)).minimum
