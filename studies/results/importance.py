"""How much each searched parameter decides about an objective: Optuna's PED-ANOVA.

A parameter is important as far as the best trials have other values of it than all trials have.
Over all variants and within each; a parameter that some variants lack counts in those that have
it. Computed from the records, not from the search's database, so any process that has Optuna can.
Subsets (which layers have a memory) count element by element: in the subset, or not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memarch.search_spaces.ranges import Float, Int, Subset
from memarch.studies.report.records import Records, Trial
from memarch.studies.results import leaderboard as board

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ALL = "all variants"
FEWEST = 8
"""Trials below which there is nothing to say."""
BEST = 5
"""The best tenth, and at least so many."""


def importances(records: Records, metric: str) -> dict[str, dict[str, float]]:
    """Shares that add up to one, over all trials and by variant; {} without Optuna."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        return {}
    groups = {ALL: records.complete} if len(records.variants) > 1 else {}
    groups |= {variant or "model": records.of(variant) for variant in records.variants}
    minimize = records.goals.get(metric, "minimize") == "minimize"
    found = {}
    for name, trials in groups.items():
        shares = _shares(records, [t for t in trials if _scored(t, metric)], metric, minimize)
        if shares:
            found[name] = shares
    return found


def _scored(trial: Trial, metric: str) -> bool:
    value = board.score(trial, metric)
    return value is not None and math.isfinite(value)


def _shares(
    records: Records, trials: Sequence[Trial], metric: str, minimize: bool
) -> dict[str, float]:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    drawn = [_parameters(records, trial) for trial in trials]
    domains = _domains(records, drawn)
    if len(trials) < FEWEST or not domains:
        return {}
    sign = 1.0 if minimize else -1.0
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(direction="minimize")
            study.add_trials(
                [
                    optuna.trial.create_trial(
                        params={name: _known(values[name]) for name in values if name in domains},
                        distributions={name: domains[name] for name in values if name in domains},
                        value=sign * (board.score(trial, metric) or 0.0),
                    )
                    for trial, values in zip(trials, drawn, strict=True)
                ]
            )
            quantile = min(0.5, max(0.1, BEST / len(trials)))
            evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
            shares = get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return dict(shares) if sum(shares.values()) > 0 else {}


def _parameters(records: Records, trial: Trial) -> dict[str, Any]:
    """What was drawn for a trial; of a subset, whether each element is in it."""
    variant = trial["variant"] or ""
    space = records.ranges.get(variant, {})
    values: dict[str, Any] = {"variant": variant} if len(records.variants) > 1 else {}
    for name, value in trial["params"].items():
        known = space.get(name)
        if isinstance(known, Subset):
            values |= {f"{name}: {one}": one in (value or ()) for one in known.values}
        elif name != "variant":
            values[name] = value
    return values


def _domains(records: Records, drawn: Sequence[dict[str, Any]]) -> dict[str, BaseDistribution]:
    """Where each parameter that takes more than one value could lie."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    domains: dict[str, BaseDistribution] = {}
    for name in dict.fromkeys(name for values in drawn for name in values):
        present = [_known(values[name]) for values in drawn if name in values]
        seen = {str(value): value for value in present}
        ranges = [space[name] for space in records.ranges.values() if name in space]
        numbers = [r for r in ranges if isinstance(r, Int | Float)]
        if len(seen) < 2:
            continue
        if not numbers or len(numbers) < len(ranges):
            domains[name] = CategoricalDistribution(sorted(seen.values(), key=str))
            continue
        low, high = min(r.low for r in numbers), max(r.high for r in numbers)
        log = all(r.log for r in numbers)
        if isinstance(numbers[0], Int):
            domains[name] = IntDistribution(int(low), int(high), log=log)
        else:
            domains[name] = FloatDistribution(float(low), float(high), log=log)
    return domains


def _known(value: Any) -> Any:
    """A value as Optuna's categories take it."""
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
