"""Tables for people: everything that the command line prints in place of JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from memarch.studies.results import leaderboard as board
from memarch.tables import Fitted, table

Row = Mapping[str, Any]
WIDTH = 140
"""Columns of a table that goes to a file or a pipe."""

_STATES = {
    "complete": "green",
    "pruned": "yellow",
    "infeasible": "yellow",
    "failed": "red",
    "running": "cyan",
    "waiting": "dim",
    "interrupted": "yellow",
}


def console() -> Console:
    """Standard output; as wide as the terminal, or wide enough for a table where it is none."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDTH)


def components(found: Sequence[Row]) -> None:
    """All memories and tasks."""
    out = console()
    for kind in ("memory", "task"):
        rows = [row for row in found if row["kind"] == kind]
        headings = ["name", "what it is", "recurrence", "state", "paper"]
        made = table(
            {"memory": "memories", "task": "tasks"}[kind],
            headings if kind == "memory" else headings[:2],
            right=["state"],
        )
        for row in rows:
            cells = [f"[bold]{escape(row['name'])}[/]", escape(row["summary"])]
            if kind == "memory":
                state = board.size(row["state_bytes"]) if row["state_bytes"] else "grows"
                cells += [row["recurrence"], state, escape(row["paper"] or "")]
            made.add_row(*cells)
        out.print(made)
    out.print("`memarch components NAME` explains one: equations, settings, where it comes from.")


def component(row: Row) -> None:
    """One memory or task: its docstring and its settings."""
    out = console()
    out.print(f"[bold]{escape(row['name'])}[/]  {row['kind']}")
    forms = [_yaml(form) for form in row["forms"]]
    if forms:
        out.print(Text("  =  ".join(dict.fromkeys(forms))), highlight=False)
    out.print(Text("\n" + row["equations"].strip() + "\n"))
    facts = {"recurrence": row["recurrence"], "paper": row["paper"], "defined in": row["module"]}
    if row["kind"] == "memory":
        size = row["state_bytes"]
        facts["state"] = board.size(size) if size else "grows with the input, or none"
    for name, fact in facts.items():
        if fact:
            out.print(f"{name}: {escape(str(fact))}")
    made = table("settings", ["key", "type", "default", "what it does"])
    _settings(made, row["settings"], "")
    out.print(made)


def _settings(made: Table, settings: Sequence[Row], prefix: str) -> None:
    for setting in settings:
        name = f"{prefix}{setting['name']}"
        default = "[red]required[/]" if setting["required"] else escape(str(setting["default"]))
        made.add_row(escape(name), escape(setting["type"]), default, escape(setting["doc"]))
        for option, inner in setting.get("options", {}).items():
            _settings(made, inner, f"{name} ({option}).")


def _yaml(value: Any) -> str:
    """A map of words and numbers on one line, as a study file would have it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def studies(rows: Sequence[Row], storage: Path) -> None:
    """All studies of a storage folder."""
    out = console()
    if not rows:
        out.print(f"no studies in {storage}; `memarch study run FILE` makes one")
        return
    made = table(
        f"studies in {storage}", ["name", "state", "design", "trials", "objective", "best"]
    )
    for row in rows:
        best = row.get("best_values") or {}
        counts = ", ".join(f"{n} {state}" for state, n in row["trials"].items() if n)
        made.add_row(
            f"[bold]{escape(row['name'])}[/]",
            _state(row["state"]),
            str(row["design"] or ""),
            counts,
            "\n".join(board.headings(row["objective"]).values()),
            "\n".join(board.cost({"metrics": best}, name) for name in best),
        )
    out.print(made)


def study(document: board.Document, *, seeds: bool = False) -> None:
    """A study's leaderboard and what did not finish; `seeds`: every trial by itself."""
    out = console()
    several = board.several_seeds(document)
    if several or document.get("ablation"):
        from memarch import show_seeds  # statistics need numpy

        if several:
            out.print(show_seeds.settings(document, hint=not seeds), crop=False)
            if board.test_metrics(document):
                out.print(show_seeds.tests(document), crop=False)
        if document.get("ablation"):
            out.print(show_seeds.ablation(document))
        if seeds and document.get("ablation"):
            out.print(show_seeds.differences(document))
    if seeds or not several:
        out.print(leaderboard(document), crop=False)
    for line in _beside(document):
        out.print(Text(line, style="dim"))
    unfinished = [t for t in document["trials"] if t["state"] in ("failed", "running", "waiting")]
    if unfinished:
        made = table("not finished", ["trial", "variant", "settings", "state", "reason"])
        for trial in unfinished:
            made.add_row(
                f"{trial['number']:03d}",
                escape(trial["variant"] or ""),
                escape(board.settings(trial)),
                _state(trial["state"]),
                escape(trial["reason"] or ""),
            )
        out.print(made)


def _beside(document: board.Document) -> list[str]:
    """What a search did besides running trials, a line each."""
    lines = [
        f"racing: trial {row['trials'][0]:03d}'s point had {len(row['trials'])} of {row['seeds']} "
        f"seeds; {row['reason']}"
        for row in document.get("racing", [])
    ]
    earlier = Counter(row["study"] for row in document.get("warm_start", []))
    lines += [
        f"warm start: the sampler knew {count} trials of study {name!r}"
        for name, count in earlier.items()
    ]
    return lines


def leaderboard(document: board.Document) -> RenderableType:
    """Trials, best first, beside the floors and the costs."""
    main, _ = board.main_objective(document)
    rows = board.ranked(document)
    seed = board.several_seeds(document)
    floors = board.floors(rows, main)
    goals, costs = board.columns(document, rows)
    scores = [*goals, *board.test_metrics(document)]
    figures = [*board.headings(scores, costs.values()).values(), *costs.values()]
    made = table(
        f"{document['name']}: {document['state']}",
        ["rank", "trial", "variant", "settings", *figures],
        right=["rank", "trial", *figures],
    )
    for rank, trial in enumerate(rows, start=1):
        baseline = board.is_baseline(trial)
        label = escape(trial["variant"] or "-")
        if baseline:
            label += f" [dim]({board.BASELINES[trial['variant']]})[/]"
        if trial["state"] != "complete":
            label += f" [yellow]({trial['state']})[/]"
        made.add_row(
            str(rank),
            f"{trial['number']:03d}",
            label,
            escape(board.settings(trial, seed=seed)),
            *(_score(trial, name, floors if name == main else {}) for name in scores),
            *(board.cost(trial, name) for name in costs),
            style="cyan" if baseline else ("bold" if trial["number"] in document["best"] else None),
        )
    notes = []
    if floors:
        listed = ", ".join(f"{name} {value:.3f}" for name, value in sorted(floors.items()))
        notes.append(f"floors of {main}: {listed}; at or below the higher one it may be guessed")
    notes += board.left_out(document)
    if not rows:
        notes.append("no trial has finished yet")
    return Group(Fitted(made, kept=5), *(Text(note, style="dim") for note in notes))


def where_next(document: board.Document, storage: Path) -> None:
    """The last words of a study: what to look at."""
    out = console()
    name = document["name"]
    option = "" if storage == Path("runs").absolute() else f" --storage {storage}"
    report = storage / "studies" / name / "report.html"
    if report.exists():
        out.print(f"report:  {report}", highlight=False, soft_wrap=True)
    out.print(f"MLflow:  memarch ui{option}", highlight=False, soft_wrap=True)


def plan(document: Row, *, origins: bool = False) -> None:
    """What a study will run."""
    out = console()
    head = f"{document['name']}: {document['design']}"
    if document["trials"] is not None:
        head += f", {document['trials']} trials"
    made = table(
        head,
        ["variant", "parameters", "state", "floats", "FLOPs/token", "schedule", "steps", "why"],
        right=["parameters", "state", "floats", "FLOPs/token", "steps"],
    )
    for row in document["variants"]:
        small = row["smallest"]
        made.add_row(
            escape(row["name"] or "-"),
            _span(small["parameters"], row["parameters"], board.quantity),
            _span(small["state_bytes"], row["state_bytes"], board.size),
            _span(small["state_floats"], row["state_floats"], board.quantity),
            _span(small["flops_per_token"], row["flops_per_token"], board.quantity),
            row["schedule"],
            str(row["grouped_steps"]),
            escape(row["reason"]),
        )
    out.print(made)
    shapes = {f"{row['batch_size']} rows of {row['length']} tokens" for row in document["variants"]}
    out.print(f"schedule and steps: of a training step, {' or '.join(sorted(shapes))}")
    title = {"search": "what is searched", "grid": "what is crossed"}
    searched = table(
        title.get(document["design"], "what varies"), ["variant", "parameter", "values"]
    )
    if document["ablation"]:
        changes = table("what is compared", ["setting", "what differs from the baseline"])
        changes.add_row(f"[bold]{escape(document['ablation']['baseline'])}[/]", "the baseline")
        for name, words in document["ablation"]["settings"].items():
            changes.add_row(f"[bold]{escape(name)}[/]", escape(words))
        out.print(changes)
    for row in document["variants"]:
        for name, values in row["space"].items():
            searched.add_row(escape(row["name"] or "-"), escape(name), escape(values))
    if searched.row_count:
        out.print(searched)
    if document["sizes"]:
        sizes(document["sizes"])
    if document["measured"]:
        headings = ["trial", "variant", "settings", "steps", "a step", "a trial", "peak memory"]
        made = table("measured on this machine", headings, right=headings[3:])
        for row in document["measured"]:
            made.add_row(
                row["which"],
                escape(row["variant"] or "-"),
                escape(board.settings(row)),
                board.number(row["steps"]),
                f"{row['seconds_per_step'] * 1000:.0f} ms",
                board.duration(row["seconds"]),
                board.size(row["memory_bytes"]),
            )
        out.print(made)
    estimate = document["estimate"]
    if estimate["seconds"] is not None:
        low, high = (board.duration(seconds) for seconds in estimate["seconds"])
        out.print(
            f"all of it: between {low} and {high}, with {estimate['workers']} trials at a time",
            highlight=False,
        )
    for warning in document["warnings"]:
        out.print(f"[yellow]note:[/] {escape(warning)}")
    if origins:
        for variant, places in document["origins"].items():
            made = table(f"origins {variant}".rstrip(), ["key", "value", "from"])
            for key, place in places.items():
                value = escape(str(place["value"]))
                made.add_row(escape(key), value, escape(place["origin"]))
            out.print(made)


def sizes(rows: Sequence[Row]) -> None:
    """What was solved for each level of size, and how near it comes."""
    made = table(
        f"sizes by {rows[0]['cost']}",
        ["variant", "level", "values", "measured", "off"],
        right=["level", "measured", "off"],
    )
    for row in rows:
        head = (escape(row["variant"] or "-"), f"{row['level']:.12g}")
        if "reason" in row:
            made.add_row(*head, "[yellow]left out, see the note[/]", "-", "-")
            continue
        values = ", ".join(f"{name} {board.number(v)}" for name, v in row["values"].items())
        off = f"{100 * row['residual']:+.2g} %"
        made.add_row(*head, escape(values), f"{row['value']:.12g}", off)
    console().print(made)


def metrics(document: Row) -> None:
    """What a trained or evaluated model scored."""
    out = console()
    made = table("", ["metric", "value"], right=["value"])
    for name, value in sorted(document["metrics"].items()):
        shown = board.cost({"metrics": {name: value}}, name)
        made.add_row(escape(name), shown)
    out.print(made)
    if document.get("path"):
        out.print(f"model:  {document['path']}", highlight=False, soft_wrap=True)


def trial(document: Row) -> None:
    """One trial: what it is made of, from where, what came of it."""
    out = console()
    state = _state(document["state"])
    reason = f", {escape(document['reason'])}" if document["reason"] else ""
    variant = escape(document["variant"] or "")
    out.print(f"[bold]{escape(document['name'])}[/] {variant}: {state}{reason}")
    facts = [f"seed {document['seed']}", f"attempts {document['attempts']}"]
    for name, value in document["made_with"].items():
        facts.append(f"{name} {_yaml(value)}")
    out.print("\n".join(facts), highlight=False, markup=False, soft_wrap=True)
    made = table("settings", ["key", "value", "from"])
    for row in document["settings"]:
        style = "bold" if row["origin"] == "draw" else None
        origin = escape(row["origin"].rpartition("/")[2])
        made.add_row(escape(row["key"]), escape(_yaml(row["value"])), origin, style=style)
    out.print(made)
    metrics({"metrics": document["metrics"]})
    for path in document["files"]:
        out.print(path, highlight=False, soft_wrap=True)


def diff(document: Row) -> None:
    """What differs between two studies or trials."""
    out = console()
    sides = [document["first"], document["second"]]
    made = table("settings that differ", ["key", *sides])
    for row in document["settings"]:
        values = [
            "-" if row["absent"] == side else escape(_yaml(row[side])) for side in ("old", "new")
        ]
        made.add_row(escape(row["path"]), *values)
    out.print(made if made.row_count else "no setting differs")
    named = any("variant" in row for row in document["results"])
    headings = [*(["variant"] if named else []), "metric", *sides]
    title = "results: the best setting of each variant, by its mean over seeds"
    made = table(title if named else "results", headings, right=sides)
    for row in document["results"]:
        cells = [escape(row["variant"] or "-")] if named else []
        cells.append(escape(row["metric"]))
        for side in ("old", "new"):
            cells.append(board.cost({"metrics": {row["metric"]: row[side]}}, row["metric"]))
        made.add_row(*cells)
    out.print(made)


def checks(rows: Sequence[Row]) -> None:
    """The rules that a memory keeps or breaks."""
    made = table("", ["", "check", "what was found"])
    for row in rows:
        mark = "[green]ok[/]" if row["passed"] else "[red]broken[/]"
        made.add_row(mark, escape(row["name"]), escape(row["message"] or ""))
    console().print(made)


def _state(state: str) -> str:
    return f"[{_STATES.get(state, 'default')}]{escape(state)}[/]"


def _score(trial: Row, metric: str, floors: Mapping[str, float]) -> str:
    value = board.score(trial, metric)
    if value is None:
        return "-"
    beaten = not floors or value > max(floors.values())
    return f"{value:.4f}" if beaten else f"[red]{value:.4f}[/]"


def _span(low: float | None, high: float | None, text: Any) -> str:
    return text(high) if low == high or low is None else f"{text(low)} - {text(high)}"
