"""Tables that cut no word and no heading: wrapped, or without whole columns, which are named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.table import Table
from rich.text import Text

LONGEST_LINE = 12
"""A heading that is longer goes on in the next line, after a slash, a line or a space."""


def table(title: str, headings: Sequence[str], right: Sequence[str] = ()) -> Table:
    """An empty table in the house's style; columns named in `right` hold numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in headings:
        side: JustifyMethod = "right" if name in right else "left"
        made.add_column(heading(name), justify=side, overflow="fold")
    return made


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

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, left_out = copy(self.table), list[str]()
        shown.columns = [copy(column) for column in self.table.columns]
        longest = []
        for column in shown.columns:
            sizes = [console.measure(cell) for cell in (column.header, *column.cells)]
            longest.append(max(size.maximum for size in sizes))
            words = max(size.minimum for size in sizes)
            column.width = longest[-1] if column.justify == "right" else words
        needed = _needed(console, options, shown)
        width = options.max_width if console.is_terminal else max(options.max_width, needed)
        while len(shown.columns) > self.kept and needed > width:
            left_out.insert(0, str(shown.columns.pop().header).replace("\n", ""))
            needed = _needed(console, options, shown)
        spare = max(0, width - needed)
        for column, most in zip(shown.columns, longest, strict=False):
            more = min(spare, most - (column.width or 0))
            column.width, spare = (column.width or 0) + more, spare - more
        yield from console.render(shown, options.update_width(width))
        if left_out:
            missing, them = ", ".join(left_out), "it" if len(left_out) == 1 else "them"
            note = f"no room for {missing}: a wider terminal, --json and the report have {them}"
            yield Text(note, style="dim")


def _needed(console: Console, options: ConsoleOptions, table: Table) -> int:
    return table.__rich_measure__(console, options.update_width(10_000)).minimum
