"""Trials that differ in their seed only, as one setting: what its seeds gave, alone and together.

Results over seeds are often of two kinds, solved or not, which a mean hides: 0.60 may be every
seed at 0.60, or three of five at 1.00. So a setting has its median, its range and how many seeds
solved the task beside its mean and the interval of the mean.

Settings are ordered by the mean, for it alone puts what always works before what mostly works and
that before what never does; the median would call three of five as good as five of five, and the
worst seed would let one bad seed decide. What the seeds cannot tell from the best is marked as
tied with it, so a setting that one bad seed put behind is not lost.

Everything here works on a study's document, the JSON that `memarch study show --json` prints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from memarch.search_spaces.ranges import LEVEL
from memarch.studies.results import leaderboard as board
from memarch.studies.results.leaderboard import seed_of
from memarch.studies.results.statistics import Ends, compare, mean_interval

Document = Mapping[str, Any]
Trial = Mapping[str, Any]

SOLVED = 0.999
"""From here on a share counts as solved, and training that stops early stops."""


@dataclass(frozen=True)
class Replicates:
    """One setting: a variant and its draws, over all seeds that it was given."""

    variant: str
    params: Mapping[str, Any]
    trials: tuple[Trial, ...]
    """Complete ones with a score, by seed."""
    others: tuple[Trial, ...]
    """Failed, stopped, infeasible, running or waiting ones."""
    scores: tuple[float, ...]
    """Of the first objective."""
    mean: float
    median: float
    interval: tuple[float, float] | None
    """95 % interval of the mean; None for one seed."""
    solved: int | None
    """How many seeds solved the task; None where the score has no top."""
    tied: bool
    """Not to be told from the best: the interval of their difference holds zero."""

    @property
    def name(self) -> str:
        """Variant and settings in one line."""
        return " ".join(
            part for part in (self.variant, board.settings({"params": self.params})) if part
        )

    @property
    def numbers(self) -> list[int]:
        """All trials of the setting."""
        return sorted(int(trial["number"]) for trial in (*self.trials, *self.others))

    @property
    def unconverged(self) -> int:
        """Trials that were still getting better when their budget ended."""
        return sum(is_unconverged(trial) for trial in self.trials)

    def metrics(self) -> dict[str, float]:
        """The mean of every metric that all seeds have: costs and further scores."""
        shared = set.intersection(*(set(trial["metrics"]) for trial in self.trials))
        return {
            name: fmean(values)
            for name in sorted(shared)
            if None not in (values := [trial["metrics"][name] for trial in self.trials])
        }

    def row(self) -> dict[str, Any]:
        """The setting in `memarch study show --json`."""
        return {
            "variant": self.variant,
            "params": dict(self.params),
            "trials": self.numbers,
            "seeds": [seed_of(trial) for trial in self.trials],
            "scores": list(self.scores),
            "mean": self.mean,
            "median": self.median,
            "interval": None if self.interval is None else list(self.interval),
            "range": [min(self.scores), max(self.scores)],
            "solved": self.solved,
            "tied_with_best": self.tied,
            "unconverged": self.unconverged,
            "not_complete": {
                state: sum(trial["state"] == state for trial in self.others)
                for state in sorted({trial["state"] for trial in self.others})
            },
        }


def replicates(document: Document) -> list[Replicates]:
    """The settings of a study that have a complete trial, best first.

    Of several objectives the order is that of `leaderboard.ranked` on the means, and nothing is
    marked as tied.
    """
    goals = board.objectives(document)
    metric, maximize = board.main_objective(document)
    found = [
        group
        for group in board.grouped(document["trials"])
        if any(_complete(trial, metric) for trial in group)
    ]
    order = _order(document, found)
    study = [score for group in found for score in _scores(group, metric)]
    share = is_share(metric, maximize, study)
    best = found[order[0]] if order and len(goals) == 1 else []
    return [_replicates(found[i], best, metric, study, share) for i in order]


def at_levels(rows: Sequence[Replicates]) -> dict[float, list[Replicates]]:
    """By level of `match`, where there are several: the best setting of each variant, best first.

    `rows` are in their order.
    """
    found: dict[float, dict[str, Replicates]] = {}
    for row in rows:
        if LEVEL in row.params:
            found.setdefault(row.params[LEVEL], {}).setdefault(row.variant, row)
    several = {level: list(found[level].values()) for level in sorted(found)}
    return several if len(several) > 1 else {}


def is_lost(trial: Trial) -> bool:
    """Whether a trial ended without a score that may be compared."""
    return trial["state"] in ("failed", "infeasible", "pruned")


def is_unconverged(trial: Trial) -> bool:
    """Whether a complete trial was still getting better when its budget ended."""
    return trial["state"] == "complete" and trial.get("converged") is False


def is_share(metric: str, maximize: bool, scores: Sequence[float]) -> bool:
    """Whether scores are shares of something, between 0 and 1, of which more is better."""
    return maximize and metric.startswith(("eval/", "test/")) and all(0 <= s <= 1 for s in scores)


def solved_at(trial: Trial, metric: str) -> float:
    """From which score on a trial has solved the task: what its early stop says, or the top."""
    rule = ((trial.get("spec") or {}).get("train") or {}).get("early_stop")
    if isinstance(rule, Mapping) and rule.get("on") in (None, metric):
        return float(rule["above"])
    return SOLVED


def has_solved(trial: Trial, metric: str) -> bool:
    """Whether the trial's score counts as solved."""
    score = board.score(trial, metric)
    return score is not None and score >= solved_at(trial, metric)


def ends_of(trials: Sequence[Trial], metric: str, study: Sequence[float]) -> Ends:
    """Between which shares the outcome of these trials may jump.

    Between what they reached; where all have solved the task, a seed that fails falls to where the
    study's worst seed is, or to nothing.
    """
    scores = [score for trial in trials if (score := board.score(trial, metric)) is not None]
    low, high = min(scores), max(scores)
    if all(has_solved(trial, metric) for trial in trials):
        worst = min(study)
        low = worst if worst < low else 0.0
    return Ends(low, high)


def _replicates(
    group: Sequence[Trial],
    best: Sequence[Trial],
    metric: str,
    study: Sequence[float],
    share: bool,
) -> Replicates:
    trials = _finished(group, metric)
    scores = _scores(group, metric)
    ends = ends_of(trials, metric, study) if share else None
    return Replicates(
        variant=group[0]["variant"],
        params=group[0]["params"],
        trials=tuple(trials),
        others=tuple(trial for trial in group if not _complete(trial, metric)),
        scores=tuple(scores),
        mean=fmean(scores),
        median=median(scores),
        interval=mean_interval(scores, ends),
        solved=sum(has_solved(trial, metric) for trial in trials) if share else None,
        tied=group is best or _tied(trials, _finished(best, metric), metric, study, share),
    )


def _tied(
    trials: Sequence[Trial],
    best: Sequence[Trial],
    metric: str,
    study: Sequence[float],
    share: bool,
) -> bool:
    """Whether the seeds that both have leave it open which is better."""
    pairs = paired(trials, best, metric)
    ends = ends_of([*trials, *best], metric, study) if share and best else None
    found = compare([a for _, a, _ in pairs], [b for _, _, b in pairs], ends=ends)
    return found is not None and found.low <= 0 <= found.high


def paired(
    trials: Iterable[Trial], others: Iterable[Trial], metric: str
) -> list[tuple[int, float, float]]:
    """Seed and both scores, for every seed that both have."""
    known = {seed_of(trial): board.score(trial, metric) for trial in others}
    pairs = []
    for trial in trials:
        seed, score = seed_of(trial), board.score(trial, metric)
        other = known.get(seed)
        if seed is not None and score is not None and other is not None:
            pairs.append((seed, score, other))
    return sorted(pairs)


def _order(document: Document, groups: Sequence[Sequence[Trial]]) -> list[int]:
    """Positions of the groups, best first, by the means of their complete trials."""
    metric, _ = board.main_objective(document)
    rows = []
    for position, group in enumerate(groups):
        trials = _finished(group, metric)
        means = {
            name: fmean(values)
            for name in (*board.objectives(document), "cost/state_bytes")
            if (values := [v for trial in trials if (v := board.score(trial, name)) is not None])
        }
        rows.append({"number": position, "state": "complete", "metrics": means, "reason": None})
    ranked = board.ranked({"objective": document["objective"], "trials": rows})
    return [trial["number"] for trial in ranked]


def _finished(group: Iterable[Trial], metric: str) -> list[Trial]:
    complete = (trial for trial in group if _complete(trial, metric))
    return sorted(complete, key=lambda trial: (seed_of(trial) or 0, trial["number"]))


def _complete(trial: Trial, metric: str) -> bool:
    score = board.score(trial, metric)
    return trial["state"] == "complete" and score is not None and math.isfinite(score)


def _scores(group: Iterable[Trial], metric: str) -> list[float]:
    return [float(trial["metrics"][metric]) for trial in _finished(group, metric)]
