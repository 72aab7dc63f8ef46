"""What an ablation shows: each setting against the baseline over the same seeds.

`comparisons` is what the table of `memarch study show`, the forest plot of the report and the
study's conclusions in MLflow are made from: numbers by `statistics`, words by `verdicts`. Only
complete trials are compared; those that failed or had not converged are counted beside the verdict.

Where `match` has several levels, each is a comparison of its own: a pair is of one level and one
seed. What a change does may depend on the size, and levels of one seed are not further seeds: put
together they would count as evidence that is not there. A side without levels (nothing in it was
solved for) is the same model at all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memarch.search_spaces.ablation import smallest_p
from memarch.search_spaces.ranges import LEVEL
from memarch.studies.results import leaderboard as board
from memarch.studies.results.finalists import finalists
from memarch.studies.results.leaderboard import seed_of
from memarch.studies.results.replicates import (
    ends_of,
    has_solved,
    is_lost,
    is_share,
    is_unconverged,
    paired,
    replicates,
)
from memarch.studies.results.statistics import ERROR, Difference, compare, detectable, holm
from memarch.studies.results.verdicts import Outcome, Question, remarks, verdict
from memarch.studies.training.stages import LOWER_IS_BETTER

Document = Mapping[str, Any]
Trial = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One setting of an ablation against its baseline. Differences are setting minus baseline."""

    name: str
    """The setting, as in the column `variant`."""
    level: float | None
    """The level of `match` at which both sides are, where there are several."""
    change: str
    """What differs from the baseline, in words."""
    metric: str
    outcome: Outcome
    verdict: str
    """What the data say, and no more."""
    n: int
    """Seeds that both sides completed."""
    seeds: tuple[int, ...] = ()
    differences: tuple[float, ...] = ()
    """Seed by seed, in the metric's own unit."""
    difference: float | None = None
    """Their mean."""
    low: float | None = None
    high: float | None = None
    """95 % interval of the mean difference, not corrected for other comparisons."""
    p: float | None = None
    p_corrected: float | None = None
    p_sign_flip: float | None = None
    effect_size: float | None = None
    """Hedges' g of the paired differences; None where they have no spread."""
    superiority: float | None = None
    """How often a seed of the setting has more than one of the baseline; ties count half."""
    detectable: float | None = None
    """The smallest difference that this many seeds would have found, after correction."""
    solved: tuple[int, int] | None = None
    """Seeds of the setting, and of the baseline, that solved the task."""
    failed: int = 0
    """Seeds of the setting without a result: failed, infeasible or stopped."""
    unconverged: int = 0
    """Trials of the setting still getting better when their budget ended."""

    @property
    def label(self) -> str:
        """The setting, with its level where it has one."""
        return self.name if self.level is None else f"{self.name} at {self.level:.12g}"


@dataclass(frozen=True)
class _Pair:
    """A setting's trials and its baseline's, and what their scores gave."""

    name: str
    level: float | None
    trials: Sequence[Trial]
    baseline: Sequence[Trial]
    pairs: Sequence[tuple[int, float, float]]
    found: Difference | None
    solved: tuple[int, int] | None


def comparisons(document: Document, metric: str | None = None) -> list[Comparison]:
    """Every setting of an ablation against its baseline, level by level, in the file's order; `[]`
    for others.

    `metric`: another one than the first objective; its direction is that of the study's objectives,
    or the usual one: less of a loss or a cost, more of all else.
    """
    about = document.get("ablation")
    if not about:
        return []
    main, _ = board.main_objective(document)
    metric = metric or main
    usual = "minimize" if board.is_cost(metric) or metric.endswith(LOWER_IS_BETTER) else "maximize"
    maximize = board.objectives(document).get(metric, usual) == "maximize"
    margin = about.get("equivalence")
    trials: dict[str, list[Trial]] = {name: [] for name in about["settings"]}
    for trial in document["trials"]:
        trials.setdefault(trial["variant"], []).append(trial)
    pairs = _pairs(trials, about["baseline"], metric, maximize, margin)
    tested = [pair for pair in pairs if pair.found is not None]
    corrected = holm([pair.found.p for pair in tested if pair.found])
    equivalent = holm([_floored(pair) for pair in tested])
    known = {
        (pair.name, pair.level): (p, same)
        for pair, p, same in zip(tested, corrected, equivalent, strict=True)
    }
    question = Question(maximize, margin, len(tested))
    changes = about["settings"]
    return [
        _comparison(
            pair,
            changes.get(pair.name, ""),
            metric,
            question,
            *known.get((pair.name, pair.level), (1, 1)),
        )
        for pair in pairs
    ]


def conclusions(document: Document) -> dict[str, Any]:
    """The document with its settings over their seeds, finalists, and comparisons."""
    several = board.several_seeds(document)
    return {
        **document,
        "settings": [one.row() for one in replicates(document)] if several else [],
        "finalists": [one.row() for one in finalists(document)],
        "comparisons": [asdict(one) for one in comparisons(document)],
    }


def _pairs(
    trials: Mapping[str, Sequence[Trial]],
    baseline: str,
    metric: str,
    maximize: bool,
    margin: float | None,
) -> list[_Pair]:
    every = [trial for rows in trials.values() for trial in _complete(rows, metric)]
    study = [board.score(trial, metric) or 0.0 for trial in every]
    share = is_share(metric, maximize, study)
    others = trials.get(baseline, [])
    made = []
    for name, rows in trials.items():
        if name == baseline:
            continue
        for level in _levels([*rows, *others]):
            ours, theirs = _at(rows, level), _at(others, level)
            pairs = paired(_complete(ours, metric), _complete(theirs, metric), metric)
            seeds = {seed for seed, _, _ in pairs}
            sides = [
                [trial for trial in _complete(side, metric) if seed_of(trial) in seeds]
                for side in (ours, theirs)
            ]
            found = None
            if len(pairs) > 1 and not any(board.is_copy(trial) for trial in ours):
                ends = ends_of([*sides[0], *sides[1]], metric, study) if share else None
                scores = [a for _, a, _ in pairs], [b for _, _, b in pairs]
                found = compare(*scores, ends=ends, margin=margin)
            counts = [sum(has_solved(trial, metric) for trial in side) for side in sides]
            solved = (counts[0], counts[1]) if share and pairs else None
            made.append(_Pair(name, level, ours, theirs, pairs, found, solved))
    return made


def _complete(trials: Sequence[Trial], metric: str) -> list[Trial]:
    return [t for t in trials if t["state"] == "complete" and board.score(t, metric) is not None]


def _levels(trials: Sequence[Trial]) -> list[float | None]:
    """The levels that the trials of both sides are at, or None for no level."""
    found = {trial["params"][LEVEL] for trial in trials if LEVEL in trial["params"]}
    return [*sorted(found)] or [None]


def _at(trials: Sequence[Trial], level: float | None) -> Sequence[Trial]:
    """Those of one level; all of a side that has no levels."""
    return [trial for trial in trials if trial["params"].get(LEVEL, level) == level]


def _floored(pair: _Pair) -> float:
    """The p that the difference is not within the margin; never below what n seeds allow."""
    found = pair.found
    if found is None or found.equivalence_p is None:
        return 1.0
    return max(found.equivalence_p, smallest_p(len(pair.pairs)))


def _comparison(
    pair: _Pair, change: str, metric: str, question: Question, p: float, equivalent: float
) -> Comparison:
    found, n = pair.found, len(pair.pairs)
    differences = tuple(a - b for _, a, b in pair.pairs)
    copied = next((trial for trial in pair.trials if board.is_copy(trial)), None)
    numbers: dict[str, Any] = {}
    outcome: Outcome = "same"
    if copied is not None:
        words = f"not run: {copied['reason']}"
    elif pair.level is not None and not (pair.trials and pair.baseline):
        outcome, words = "none", "nothing to compare: only one side reaches this level"
    else:
        outcome, words = verdict(question, differences, found, p, equivalent)
        notes = remarks(pair.trials, pair.baseline, pair.solved, n)
        words = "; ".join([words, *notes])
    if found is not None:
        numbers = {
            "difference": found.mean,
            "low": found.low,
            "high": found.high,
            "p": found.p,
            "p_corrected": p,
            "p_sign_flip": found.p_sign_flip,
            "effect_size": found.effect_size,
            "superiority": found.superiority,
            "detectable": detectable(found, ERROR / question.tests),
        }
    return Comparison(
        name=pair.name,
        level=pair.level,
        change=change,
        metric=metric,
        outcome=outcome,
        verdict=words,
        n=n,
        seeds=tuple(seed for seed, _, _ in pair.pairs),
        differences=differences,
        solved=pair.solved,
        failed=sum(is_lost(trial) for trial in pair.trials),
        unconverged=sum(is_unconverged(trial) for trial in pair.trials),
        **numbers,
    )
