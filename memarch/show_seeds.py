"""Tables over seeds: settings with what their seeds gave together, and what an ablation shows."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from memarch.studies.results import leaderboard as board
from memarch.studies.results.ablation import Comparison, comparisons
from memarch.studies.results.finalists import COLUMNS, finalists
from memarch.studies.results.replicates import Replicates, at_levels, replicates
from memarch.tables import Fitted, table

COSTS = {"cost/state_bytes": "state", "cost/flops_per_token": "FLOPs/token"}
"""The costs beside settings over their seeds; each trial's table has them all."""

_OUTCOMES = {"better": "green", "worse": "red", "equivalent": "cyan"}


def settings(document: board.Document, *, hint: bool) -> RenderableType:
    """Settings, best first, over their seeds; with a hint at `--seeds`."""
    metric, _ = board.main_objective(document)
    rows = replicates(document)
    costs = {
        name: heading
        for name, heading in COSTS.items()
        if any(name in row.metrics() for row in rows)
    }
    others = [goal for goal in board.objectives(document) if goal not in (metric, *costs)]
    share = any(row.solved is not None for row in rows)
    drawn = any(board.settings({"params": row.params}) for row in rows)
    name, *names = board.headings([metric, *others], costs.values()).values()
    headings = ["rank", "variant", *["settings"] * drawn, "seeds", name, "95 %", "median"]
    headings += ["range", *["solved"] * share, *names, *costs.values()]
    made = table(
        f"{document['name']}: {document['state']}, by the mean of {metric} over seeds",
        headings,
        right=[heading for heading in headings if heading not in ("variant", "settings")],
    )
    tied = sum(row.tied for row in rows) > 1
    for rank, row in enumerate(rows, start=1):
        means = {"metrics": row.metrics()}
        cells = [
            f"{rank}{'=' if tied and row.tied else ''}",
            _label(row.variant),
            *[escape(board.settings({"params": row.params}))] * drawn,
            _seeds(row),
            board.figure({"metrics": {metric: row.mean}}, metric),
            "-" if row.interval is None else _span(row.interval, metric),
            board.figure({"metrics": {metric: row.median}}, metric),
            _span((min(row.scores), max(row.scores)), metric),
        ]
        cells += [f"{row.solved} of {len(row.scores)}"] * share
        cells += [board.figure(means, name) for name in others]
        cells += [board.cost(means, name) for name in costs]
        made.add_row(*cells, style="bold" if rank == 1 else None)
    notes = [
        f"at {level:.12g}: "
        + ", ".join(
            f"{one.variant} {board.figure({'metrics': {metric: one.mean}}, metric)}" for one in best
        )
        for level, best in at_levels(rows).items()
    ]
    if tied:
        notes.append("= cannot be told from the first: the interval of the difference holds zero")
    if any(row.unconverged for row in rows):
        notes.append("* trials that were still getting better when their budget ended")
    floors = board.floors(document["trials"], metric)
    if floors:
        listed = ", ".join(f"{name} {value:.3f}" for name, value in sorted(floors.items()))
        notes.append(f"floors of {metric}: {listed}; at or below the higher one it may be guessed")
    if hint:
        notes.append(f"`memarch study show {document['name']} --seeds` shows every trial")
    return Group(Fitted(made, kept=4 + drawn), *(Text(note, style="dim") for note in notes))


def tests(document: board.Document) -> RenderableType:
    """The finalists on the test split, over their seeds."""
    made = table("test scores of the finalists", COLUMNS, right=COLUMNS[3:])
    for one in finalists(document):
        made.add_row(*(escape(word) for word in one.words()))
    return Fitted(made, kept=5)


def ablation(document: board.Document) -> RenderableType:
    """Every setting against the baseline."""
    found = comparisons(document)
    about = document["ablation"]
    metric, _ = board.main_objective(document)
    made = table(
        f"{document['name']}: what changes {metric} of {about['baseline']}",
        ["setting", "change", "difference", "95 %", "p", "g", "what it shows"],
        right=["difference", "95 %", "p", "g"],
    )
    made.columns[0].no_wrap = made.columns[3].no_wrap = True
    for one in found:
        made.add_row(*_compared(one), style=_OUTCOMES.get(one.outcome))
    note = (
        "difference: setting minus baseline, each pair of one seed (and level). p is corrected "
        "for all comparisons (Holm). g: Hedges' effect size of the paired differences"
    )
    return Group(made, Text(note, style="dim"))


def differences(document: board.Document) -> Table:
    """The differences of an ablation seed by seed."""
    found = comparisons(document)
    seeds = sorted({seed for one in found for seed in one.seeds})
    headings = [f"seed {seed}" for seed in seeds]
    made = table("differences by seed", ["setting", *headings], right=headings)
    for one in found:
        known = dict(zip(one.seeds, one.differences, strict=True))
        cells = (f"{known[seed]:+.4g}" if seed in known else "-" for seed in seeds)
        made.add_row(escape(one.label), *cells)
    return made


def _compared(one: Comparison) -> list[str]:
    cells = [f"[bold]{escape(one.label)}[/]", escape(one.change)]
    if one.difference is None or one.low is None or one.high is None:
        cells += ["-"] * 4
    else:
        cells += [
            f"{one.difference:+.3g}",
            f"{one.low:+.3g} to {one.high:+.3g}",
            "-" if one.p_corrected is None else f"{one.p_corrected:.2g}",
            "-" if one.effect_size is None else f"{one.effect_size:+.1f}",
        ]
    return [*cells, escape(one.verdict)]


def _label(variant: str) -> str:
    note = f" [dim]({board.BASELINES[variant]})[/]" if variant in board.BASELINES else ""
    return escape(variant or "-") + note


def _seeds(row: Replicates) -> str:
    done, given = len(row.scores), len(row.scores) + len(row.others)
    count = str(done) if done == given else f"[yellow]{done} of {given}[/]"
    return count + (f" [yellow]({row.unconverged}*)[/]" if row.unconverged else "")


def _span(ends: tuple[float, float], metric: str) -> str:
    return "-".join(board.figure({"metrics": {metric: end}}, metric, digits=3) for end in ends)
