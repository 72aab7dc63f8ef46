"""Who won, against what: ranking, floors, baselines and the front of score against state size.

Everything here works on a study's document, the JSON that `memarch study show --json` prints, so
the tables of the command line and the report's page cannot disagree.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]
Trial = Mapping[str, Any]

BASELINES = {"none": "no memory", "full_attention": "sees everything"}
"""Variants that every study is read against, and what they are."""

COSTS = {
    "cost/state_bytes": "state",
    "cost/parameters": "parameters",
    "cost/flops_per_token": "FLOPs/token",
    "cost/wall_seconds": "time",
}
"""The costs in a leaderboard, and their headings."""

MATCHED = {"match/residual": "off its level"}
"""How far a trial is from the size that it was to have, in studies of equal size."""


def objectives(document: Document) -> dict[str, str]:
    """Metric name to `maximize` or `minimize`, the main one first."""
    return dict(document["objective"])


def main_objective(document: Document) -> tuple[str, bool]:
    """The first objective and whether more of it is better."""
    metric, direction = next(iter(objectives(document).items()))
    return metric, direction == "maximize"


def score(trial: Trial, metric: str) -> float | None:
    """A metric of a trial, or None where it has none (it failed, or is still running)."""
    value = trial.get("metrics", {}).get(metric)
    return None if value is None or value != value else float(value)


def floors(trials: Iterable[Trial], metric: str) -> dict[str, float]:
    """What needs no memory, in units of the metric: the highest of each floor over the trials.

    The floors stand beside the metric, `eval/kv/floor/blind` beside `eval/kv/exact_match`, or one
    level up where the metric belongs to one setting of a sweep.
    """
    found: dict[str, float] = {}
    places = metric.split("/")[:-1]
    prefixes = ["/".join([*places[:n], "floor", ""]) for n in range(len(places), 1, -1)]
    for trial in trials:
        for name, value in trial.get("metrics", {}).items():
            prefix = next((p for p in prefixes if name.startswith(p)), None)
            if prefix is not None and value is not None:
                floor = name.removeprefix(prefix)
                found[floor] = max(found.get(floor, value), value)
    return found


def test_metrics(document: Document) -> list[str]:
    """Objectives on test data, `test/qa/loss` for `eval/qa/loss`, where trials have them."""
    names = [n.replace("eval/", "test/", 1) for n in objectives(document) if n.startswith("eval/")]
    return [n for n in names if any(score(t, n) is not None for t in document["trials"])]


def is_baseline(trial: Trial) -> bool:
    """A trial that is there to be compared with: without memory, or with everything in sight."""
    return trial.get("variant") in BASELINES


def best_memory(ranked_trials: Sequence[Trial]) -> Trial:
    """The first that is no baseline, or the first where there is nothing else."""
    return next((t for t in ranked_trials if not is_baseline(t)), ranked_trials[0])


def finished(document: Document) -> list[Trial]:
    """Trials that have a score for the main objective."""
    metric, _ = main_objective(document)
    return [
        trial
        for trial in document["trials"]
        if trial["state"] in ("complete", "pruned", "infeasible")
        and score(trial, metric) is not None
        and not is_copy(trial)
    ]


def is_copy(trial: Trial) -> bool:
    """A point that the search drew again: it was not run, its result is the earlier trial's."""
    return trial.get("copy_of") is not None


def grouped(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Trials that differ in their seed only, together; copies are not counted twice."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if not is_copy(trial):
            key = json.dumps([trial["variant"], trial["params"]], sort_keys=True)
            groups.setdefault(key, []).append(trial)
    return list(groups.values())


def ranked(document: Document) -> list[Trial]:
    """Finished trials, best first; of several objectives, those first that no other one beats.

    Trials that were stopped early or broke a constraint come after all that did neither.
    """
    goals = objectives(document)
    trials = finished(document)
    points = {trial["number"]: _point(trial, goals) for trial in trials}
    layer_of: dict[int, int] = {}
    left = list(points)
    while left and len(goals) > 1:
        front = [n for n in left if not any(_beats(points[m], points[n]) for m in left)]
        layer_of.update(dict.fromkeys(front, max(layer_of.values(), default=-1) + 1))
        left = [n for n in left if n not in layer_of]
    return sorted(
        trials,
        key=lambda trial: (
            trial["state"] != "complete",
            layer_of.get(trial["number"], 0),
            [-value for value in points[trial["number"]]],
            score(trial, "cost/state_bytes") or 0.0,
            trial["number"],
        ),
    )


def state_front(document: Document) -> list[Trial]:
    """Complete trials that no other beats in main objective and bytes of state, small first."""
    goals = dict([next(iter(objectives(document).items()))]) | {"cost/state_bytes": "minimize"}
    points = [
        (_point(trial, goals), trial)
        for trial in finished(document)
        if trial["state"] == "complete" and score(trial, "cost/state_bytes") is not None
    ]
    front = [
        trial for point, trial in points if not any(_beats(other, point) for other, _ in points)
    ]
    return sorted(front, key=lambda trial: (score(trial, "cost/state_bytes"), trial["number"]))


def _point(trial: Trial, goals: Mapping[str, str]) -> tuple[float, ...]:
    """The objectives of a trial, turned so that more is better; what is missing is worst."""
    signs = {metric: 1 if direction == "maximize" else -1 for metric, direction in goals.items()}
    values = {metric: score(trial, metric) for metric in goals}
    return tuple(
        float("-inf") if (value := values[metric]) is None else signs[metric] * value
        for metric in goals
    )


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def number(value: Any, *, digits: int = 3) -> str:
    """A setting or a metric for people: `0.0031`, `12`, `[1, 2]`."""
    if isinstance(value, bool) or value is None:
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return str(value)


def size(value: float | None) -> str:
    """Bytes for people, in powers of two: `2 KiB`, `96 B`."""
    return "-" if value is None else _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def quantity(value: float | None) -> str:
    """A count for people, in powers of a thousand: `27.3k`, `1.2M`."""
    return "-" if value is None else _scaled(value, 1000, ("", "k", "M", "G", "T", "P"))


def duration(seconds: float | None) -> str:
    """Seconds for people: `8.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def cost(trial: Trial, name: str) -> str:
    """A metric of a trial in its own unit."""
    value = score(trial, name)
    if name == "match/residual":
        return "-" if value is None else f"{100 * value:+.2g} %"
    if name.endswith("_bytes"):
        return size(value)
    if name.endswith("seconds"):
        return duration(value)
    return quantity(value) if name.startswith("cost/") else number(value, digits=4)


def figure(trial: Trial, metric: str, *, digits: int = 4) -> str:
    """An objective of a trial: scores with so many decimals, costs in their own unit."""
    value = score(trial, metric)
    if value is None or is_cost(metric):
        return cost(trial, metric)
    return f"{value:.{digits}f}"


def left_out(document: Document) -> list[str]:
    """Levels of size that a variant does not reach, with the reasons, a sentence each."""
    return [
        f"{row['variant'] or 'the model'} is left out where {row['reason']}"
        for row in document.get("sizes") or []
        if "reason" in row
    ]


def is_cost(metric: str) -> bool:
    """Whether a metric says what a trial took, not how well it did."""
    return metric.startswith("cost/")


def columns(document: Document, trials: Sequence[Trial]) -> tuple[list[str], dict[str, str]]:
    """A leaderboard's scores, and its costs with their headings: objectives, each of them once."""
    goals = list(objectives(document))
    headings = MATCHED | COSTS
    known = [name for name in headings if any(score(trial, name) is not None for trial in trials)]
    costs = dict.fromkeys([*known, *(goal for goal in goals if is_cost(goal))])
    return (
        [goal for goal in goals if not is_cost(goal)],
        {name: headings.get(name, name.removeprefix("cost/")) for name in costs},
    )


def headings(metrics: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Metrics as columns are headed: the last part, and before it what tells one from another.

    `eval/kv/exact_match` is `exact_match`, beside `test/kv/exact_match` it is `eval/exact_match`.
    """
    parts = {name: name.split("/") for name in metrics}
    short = {}
    for name, own in parts.items():
        alike = [other[:-1] for other in parts.values() if other[-1] == own[-1]]
        told = [part for part in own[:-1] if not all(part in other for other in alike)]
        short[name] = "/".join([*told, own[-1]])
    seen = Counter([*short.values(), *taken])
    return {name: heading if seen[heading] == 1 else name for name, heading in short.items()}


def settings(trial: Trial, *, seed: bool = False) -> str:
    """What was drawn or solved for a trial, in one line: `num_tokens 8`; its seed if asked."""
    values = trial.get("params", {}) | trial.get("solved", {})
    params = {k: v for k, v in values.items() if k != "variant"}
    words = [f"{name} {number(value)}" for name, value in params.items()]
    return ", ".join(words + ([f"seed {seed_of(trial)}"] if seed else []))


def several_seeds(document: Document) -> bool:
    """Whether there are trials that differ in nothing but the model's seed."""
    return len({seed_of(trial) for trial in document["trials"]} - {None}) > 1


def seed_of(trial: Trial) -> int | None:
    """The seed of a trial's model."""
    if trial.get("seed") is not None:
        return int(trial["seed"])
    given = (((trial.get("spec") or {}).get("study") or {}).get("seeds") or {}).get("model")
    return int(given) if isinstance(given, int) else None


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    step = 0
    while abs(value) >= base and step < len(units) - 1:
        value, step = value / base, step + 1
    text = f"{value:.3g}" if step or value != int(value) else str(int(value))
    separator = " " if base == 1024 else ""
    return f"{text}{separator}{units[step]}"
