"""Which trial comes next, and what came of it: the driver's side of Optuna.

Designs: `search` asks the sampler, after one trial of every variant, and after a point that it had
drawn before takes a new one of the variant tried least; `grid` crosses every variant
with all values of its ranges; `all` (and `ablation`) runs every variant once, with ranges drawn
once from the search seed, a var having one value for all variants. A list of model seeds runs each
point once per seed: a grid all points with one seed and then with the next, a search each point
with all seeds in a row. What the n-th trial is follows from n and from the trials told before it.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import TrialState

from memarch.components.errors import SpecError
from memarch.studies.judging import Judge
from memarch.studies.sampling import (
    VARIANT,
    Coder,
    Draws,
    Point,
    Space,
    grid_points,
    make_sampler,
    one_of_each,
    seed_of,
    with_seeds,
)
from memarch.studies.store import Json, StudyFolder, create_database

REPEATS = 20
"""A search that drew so many known points in a row has seen its space."""


@dataclass(frozen=True)
class Asked:
    """A trial as it was drawn."""

    trial: optuna.Trial
    variant: str
    draws: Draws
    seed: int

    @property
    def number(self) -> int:
        return self.trial.number


class Asking:
    """The study in Optuna's storage, of which the driver is the one writer."""

    def __init__(
        self, folder: StudyFolder, settings: Json, spaces: Mapping[str, Space], judge: Judge
    ) -> None:
        self._folder, self._settings, self._judge = folder, settings, judge
        self._coder = Coder(spaces)
        model, self._search_seed = settings["seeds"]["model"], settings["seeds"]["search"]
        self._seeds: list[int] = list(model) if isinstance(model, list) else [model]
        self._points = self._fixed_points()

    def open(self, study_id: str) -> list[optuna.trial.FrozenTrial]:
        """Open the storage; the trials that a driver which is gone has not told."""
        self._study = _open(self._folder, study_id, self._judge.objective)
        return self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    @property
    def planned(self) -> int | None:
        """How many trials the study will have, as far as that is known."""
        limit: int | None = self._settings["budget"].get("trials")
        if self._points is None:
            return limit
        return len(self._points) if limit is None else min(limit, len(self._points))

    def wants_another(self, records: Mapping[int, Json], seconds: float) -> bool:
        """Whether the budget, or the space, holds one more trial."""
        budget = self._settings["budget"]
        trained = [record for record in records.values() if record["copy_of"] is None]
        flops = sum(record["metrics"].get("cost/train_flops") or 0 for record in records.values())
        limits = [
            (len(trained), budget.get("trials")),
            (seconds / 3600, budget.get("hours")),
            (flops, budget.get("flops")),
            (len(records), None if self._points is None else len(self._points)),
        ]
        if any(limit is not None and used >= limit for used, limit in limits):
            return False
        window = REPEATS * len(self._seeds)
        latest = [records[number] for number in sorted(records)[-window:]]
        return len(latest) < window or any(record["copy_of"] is None for record in latest)

    def ask(self) -> Asked:
        """The next trial."""
        trials = self._study.get_trials(deepcopy=False)
        queued = [trial.number for trial in trials if trial.state == TrialState.WAITING]
        number = queued[0] if queued else len(trials)
        point, replicate = divmod(number, len(self._seeds))
        spaces, fixed = self._coder.spaces, {}
        if self._points is not None:
            fixed = self._coder.encode(self._points[number])
        elif replicate:
            fixed = trials[number - replicate].params
        elif point < len(spaces) and self._coder.has_variants:
            fixed = {VARIANT: list(spaces)[point]}
        elif len(self._seeds) == 1 and _repeated(trials):
            fixed = self._untried(trials)
        if fixed and not queued:
            self._study.enqueue_trial(fixed)
        self._sample_for(number)
        return self._drawn(self._study.ask())

    def _untried(self, trials: list[optuna.trial.FrozenTrial]) -> dict[str, Any]:
        """A new point of the variant that has the fewest, where the sampler begins to repeat."""
        seen = {frozenset(trial.params.items()) for trial in trials}
        tried = Counter(dict(params).get(VARIANT, "") for params in seen)
        for variant in sorted(self._coder.spaces, key=lambda name: tried[name]):
            space = {variant: self._coder.spaces[variant]}
            try:
                points = grid_points(space, shuffle=seed_of(self._search_seed, len(trials)))
            except SpecError:  # a range without end: whatever the sampler draws will be new
                return {VARIANT: variant} if self._coder.has_variants else {}
            for fixed in map(self._coder.encode, points):
                if frozenset(fixed.items()) not in seen:
                    return fixed
        return {}

    def revive(self, frozen: optuna.trial.FrozenTrial) -> Asked:
        """A trial that was asked by another driver: the same number, the same values."""
        self._sample_for(frozen.number)
        return self._drawn(optuna.Trial(self._study, frozen._trial_id))

    def tell(self, trial: optuna.Trial, record: Json, share: float | None) -> None:
        """How the trial ended. Only what ran to its end has a score.

        Infeasible points are told as pruned, with their violations: failed ones would be invisible
        to the sampler, which would go on drawing beside them.
        """
        metrics, state = record["metrics"], record["state"]
        trial.set_user_attr("memarch", {k: record[k] for k in ("state", "reason", "seed", "hash")})
        for name, value in self._judge.violations(metrics).items():
            trial.set_constraint(name, value)
        names = list(self._judge.objective)
        if state == "complete":
            self._study.tell(trial, [metrics[name] for name in names])
        elif state == "failed":
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            # TPE ranks what was stopped early by its last value, where there is one objective.
            if len(names) == 1 and metrics.get(names[0]) is not None:
                trial.report(metrics[names[0]], round(1000 * (share or 0)))
            self._study.tell(trial, state=TrialState.PRUNED)

    def _drawn(self, trial: optuna.Trial) -> Asked:
        variant, draws = self._coder.suggest(trial)
        seed = self._seeds[trial.number % len(self._seeds)]
        if self._points is not None:
            seed = self._points[trial.number].seed
        return Asked(trial, variant, draws, seed)

    def _sample_for(self, number: int) -> None:
        objectives = len(self._judge.objective)
        sampler = self._settings["sampler"]
        self._study.sampler = make_sampler(sampler, self._search_seed, number, objectives)

    def _fixed_points(self) -> list[Point] | None:
        """All points of the study in their order, where the design names them; else None."""
        design, spaces = self._settings["design"], self._coder.spaces
        if design == "grid":
            return with_seeds(grid_points(spaces), self._seeds)
        if design in ("all", "ablation"):
            return with_seeds(one_of_each(spaces, self._search_seed), self._seeds)
        if self._settings["sampler"]["type"] == "grid":
            points = grid_points(spaces, shuffle=self._search_seed)
            return [Point(p.variant, p.draws, seed) for p in points for seed in self._seeds]
        return None


def _repeated(trials: list[optuna.trial.FrozenTrial]) -> bool:
    """Whether the latest trial is one that an earlier one was already."""
    return any(trial.params == trials[-1].params for trial in trials[:-1])


def _open(folder: StudyFolder, study_id: str, objective: Mapping[str, str]) -> optuna.Study:
    """The study in the storage's SQLite file: write-ahead log, synced at checkpoints of the log.

    A crash of the machine may then lose the last moments, a crash of the driver nothing.
    """
    path = folder.storage / "optuna.db"
    create_database(
        path, lambda new: optuna.storages.RDBStorage(f"sqlite:///{new}").engine.dispose()
    )
    patient = {"connect_args": {"timeout": 60}}
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs=patient)

    def relax(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(storage.engine, "connect", relax)
    storage.engine.dispose()  # connections made from here on are relaxed
    name = folder.name
    if name in optuna.get_all_study_names(storage):
        known = optuna.load_study(study_name=name, storage=storage).user_attrs.get("memarch.id")
        if known not in (None, study_id):  # of a study whose folder was deleted
            name = f"{name}-{study_id[:8]}"
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=list(objective.values()),
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(objective))
    study.set_user_attr("memarch.id", study_id)
    return study
