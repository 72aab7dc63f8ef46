"""The objective over two searched parameters, and a third.

They are memory size, segment length and write steps, or what a variant has in their place. Contours
where two of them have enough numbers, else cells; both show medians of trials.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from memarch.studies.report.axes import Values, is_number
from memarch.studies.report.contours import contours, spans
from memarch.studies.report.heat import heat_map
from memarch.studies.report.records import Records, Trial
from memarch.studies.results import leaderboard as board


@dataclass(frozen=True)
class Crossing:
    """The parameters of a map: across, down, and one map for each value of the third."""

    across: str
    down: str
    maps: str | None


def crossing(records: Records, trials: Sequence[Trial]) -> Crossing | None:
    """Size, segment length and write steps where they were searched, else what comes first; those
    two across and down that have enough numbers for contours."""
    names = records.parameters(trials)
    names = [n for n in names if any(is_number(t["params"].get(n)) for t in trials)] + [
        n for n in names if not any(is_number(t["params"].get(n)) for t in trials)
    ]
    names.sort(key=_role)
    if len(names) < 2:
        return None
    names = names[:3]
    wide = [n for n in names if spans([t["params"][n] for t in trials if n in t["params"]])]
    pair = wide[:2] if len(wide) > 1 else names[:2]
    rest = [name for name in names if name not in pair]
    return Crossing(pair[0], pair[1], rest[0] if rest else None)


def _role(name: str) -> int:
    """Sizes of a memory first, then segments, then write steps, then all else."""
    last = name.rpartition(".")[2]
    if last in ("num_tokens", "d_mem", "heads", "size", "slots", "num_vectors"):
        return 0
    if last in ("segment_length", "segments"):
        return 1
    return 2 if last in ("write_steps", "steps") else 3


def maps(records: Records, variant: str, metric: str) -> list[tuple[str, str]]:
    """The maps of a variant, all on one scale of colours; none where too little was crossed."""
    trials = [t for t in records.of(variant) if board.score(t, metric) is not None]
    crossed = crossing(records, trials)
    if crossed is None:
        return []
    names = [name for name in (crossed.across, crossed.down, crossed.maps) if name is not None]
    trials = [trial for trial in trials if all(name in trial["params"] for name in names)]
    if not trials:
        return []
    values = [Values.of(records, name, [t["params"][name] for t in trials]) for name in names]
    axes, third = values[:2], values[2] if len(values) > 2 else None

    def exact(trial: Trial) -> tuple[Any, ...]:
        drawn = [trial["params"][axis.name] for axis in axes]
        return tuple(value if is_number(value) else str(value) for value in drawn)

    def cell(trial: Trial) -> tuple[int, ...]:
        return tuple(axis.cell(trial["params"][axis.name]) for axis in axes)

    parts: dict[int, list[Trial]] = {}
    for trial in trials:
        part = third.cell(trial["params"][third.name]) if third else 0
        parts.setdefault(part, []).append(trial)
    measured = {part: _medians(parts[part], metric, exact) for part in sorted(parts)}
    scale = _limits([value for known in measured.values() for value, _ in known.values()])
    charts = []
    for part, known in measured.items():
        title = f"{third.name} {third.cells()[part]}" if third else variant
        chart = contours(axes, known, scale, title)
        chart = chart or heat_map(axes, _medians(parts[part], metric, cell), scale, title)
        charts.append((title, chart.svg(f"{metric} of {variant}, {title}", sized=True)))
    return charts


def _medians(
    trials: Sequence[Trial], metric: str, place: Callable[[Trial], tuple[Any, ...]]
) -> dict[tuple[Any, ...], tuple[float, str]]:
    """At each place, the median of its trials and their numbers."""
    found: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        found.setdefault(place(trial), []).append(trial)
    return {
        where: (
            statistics.median(board.score(trial, metric) or 0.0 for trial in own),
            " ".join(str(trial["number"]) for trial in own),
        )
        for where, own in found.items()
    }


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (0.0, 1.0) if low >= 0 and 0.3 < high <= 1 else (low, high)
