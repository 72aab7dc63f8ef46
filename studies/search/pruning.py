"""Early stopping of trials: any of Optuna's pruners, within a variant, on one named metric.

Optuna refuses to prune a study with several objectives. Here each variant has a shadow study in
memory with the pruning metric as its only objective, so its pruners work in every case, and compare
a trial with its own kind alone: recall appears by phase transition, late in some mechanisms.
The steps of a shadow study are thousandths of the training budget, whatever its unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import optuna

from memarch.components.errors import SpecError, did_you_mean
from memarch.studies.search.domination import Domination

PRUNERS = ("none", "median", "halving", "hyperband")
WHOLE = 1000


class Pruning:
    """Decides for each report whether the trial stops. Settings: type, on, after, Optuna's."""

    def __init__(self, settings: Mapping[str, Any], direction: str) -> None:
        settings = dict(settings)
        self.kind = settings.pop("type", "none")
        self.metric = str(settings.pop("on", ""))
        self.after = float(settings.pop("after", 0.5))
        self.direction = direction
        self._settings = {key: value for key, value in settings.items() if value is not None}
        self._studies: dict[str, optuna.Study] = {}
        self._trials: dict[int, optuna.Trial] = {}
        self._last: dict[int, float] = {}
        if self.kind not in PRUNERS:
            raise SpecError(
                f"unknown pruner {self.kind!r}; {did_you_mean(self.kind, PRUNERS)}",
                path="study.pruner",
            )

    def replay(
        self,
        variant: str,
        number: int,
        reports: Iterable[tuple[float, Mapping[str, Any]]],
        pruned: bool,
    ) -> None:
        """Learn a finished trial of an earlier session of the study."""
        for share, metrics in reports:
            self.report(variant, number, share, metrics)
        self.finish(number, pruned=pruned)

    def report(self, variant: str, number: int, share: float, metrics: Mapping[str, Any]) -> bool:
        """Whether the trial, now at this share of its budget, is to stop."""
        value = metrics.get(self.metric) if self.kind != "none" else None
        if value is None or not math.isfinite(value):
            return False
        study = self._study(variant)
        if number not in self._trials:
            self._trials[number] = study.ask()
        step = max(1, min(WHOLE, round(share * WHOLE)))
        trial = self._trials[number]
        if step in study._storage.get_trial(trial._trial_id).intermediate_values:
            return False
        trial.report(float(value), step)
        self._last[number] = float(value)
        # At the very end there is nothing left to save.
        return self.after <= share < 1 and trial.should_prune()

    def finish(self, number: int, *, pruned: bool) -> None:
        trial = self._trials.pop(number, None)
        if trial is None:
            return
        state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE
        value = self._last.pop(number)
        trial.study.tell(trial, None if pruned else value, state=state)

    def _study(self, variant: str) -> optuna.Study:
        if variant not in self._studies:
            self._studies[variant] = optuna.create_study(
                study_name=variant or "all",
                storage=optuna.storages.InMemoryStorage(),
                sampler=optuna.samplers.RandomSampler(seed=0),
                pruner=self._pruner(),
                direction=self.direction,
            )
        return self._studies[variant]

    def _pruner(self) -> optuna.pruners.BasePruner:
        first = max(1, round(self.after * WHOLE))
        if self.kind == "median":
            settings = {"n_startup_trials": 4, "n_warmup_steps": first} | self._settings
            return optuna.pruners.MedianPruner(**settings)
        if self.kind == "halving":
            settings = {"reduction_factor": 2, "min_resource": first} | self._settings
            return optuna.pruners.SuccessiveHalvingPruner(**settings)
        settings = {"reduction_factor": 2, "min_resource": first, "max_resource": WHOLE}
        return optuna.pruners.HyperbandPruner(**(settings | self._settings))


def make_pruning(settings: Mapping[str, Any], objective: Mapping[str, str]) -> Pruning | Domination:
    """What the study's `pruner` asks for; a metric's direction is the objective's or the usual."""
    pruner = dict(settings["pruner"])
    if pruner["type"] == "domination":
        return Domination(pruner["after"], pruner["by"], objective)
    metric = pruner["on"] = pruner.get("on") or next(iter(objective))
    losses = ("loss", "perplexity", "bits_per_byte")
    usual = "minimize" if metric.rpartition("/")[2] in losses else "maximize"
    return Pruning(pruner, objective.get(metric, usual))
