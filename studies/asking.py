"""Which trial comes next, and what came of it: the driver's side of Optuna.

`studies.turns` says what is fixed about the next trial, the sampler draws the rest. Trials of
earlier studies that the sampler learns from (`studies.warm_start`) come first in the storage: the
numbers of the study's own trials begin after them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import TrialState

from memarch.search_spaces.first_points import first_points
from memarch.studies.judging import Judge
from memarch.studies.racing import Race
from memarch.studies.sampling import Coder, Draws, Point, Space, make_sampler
from memarch.studies.store import Json, StudyFolder, create_database
from memarch.studies.turns import Turns
from memarch.studies.warm_start import add as add_warm_start
from memarch.studies.warm_start import choose as choose_warm_start

SEED = "memarch.seed"
"""The model seed of a trial, where it is not the study's first."""

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
        self._search_seed = settings["seeds"]["search"]
        self._warm = choose_warm_start(folder, settings["warm_start"], self._coder, judge)
        racing = settings["racing"]
        self._race = None if racing is None else Race(racing["after"], judge.objective, folder.path)
        self._turns = Turns(
            settings,
            spaces,
            first=first_points(settings["first"], spaces),
            more_seeds=folder.info.get("more_seeds", ()),
            race=self._race,
        )
        self._records: Mapping[int, Json] = {}
        self._notices: list[str] = list(self._warm["notes"])

    def open(self, study_id: str) -> list[optuna.trial.FrozenTrial]:
        """Open the storage; the trials that a driver which is gone has not told."""
        self._study = _open(self._folder, study_id, self._judge.objective)
        add_warm_start(self._study, self._warm, self._coder, self._judge)
        return self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def notices(self) -> list[str]:
        """What people should read: earlier trials that were taken, points that were dropped."""
        told, self._notices = self._notices, []
        return told + (self._race.notices() if self._race else [])

    @property
    def planned(self) -> int | None:
        """How many trials the study will have at most, as far as that is known."""
        limit: int | None = self._settings["budget"].get("trials")
        planned = self._turns.planned
        return limit if planned is None else min(planned, limit or planned)

    def wants_another(self, records: Mapping[int, Json], seconds: float) -> bool:
        """Whether the budget, or the space, holds one more trial that can start now."""
        self._records = records
        budget = self._settings["budget"]
        trained = [record for record in records.values() if record["copy_of"] is None]
        flops = sum(record["metrics"].get("cost/train_flops") or 0 for record in records.values())
        limits = [
            (len(trained), budget.get("trials")),
            (seconds / 3600, budget.get("hours")),
            (flops, budget.get("flops")),
        ]
        if any(limit is not None and used >= limit for used, limit in limits):
            return False
        if self._turns.next(records) is None:
            return False
        latest = [records[number] for number in sorted(records)[-REPEATS:]]
        seen = len(latest) == REPEATS and all(r["copy_of"] is not None for r in latest)
        return self._turns.planned is not None or not seen

    def ask(self) -> Asked:
        """The next trial."""
        trials = self._study.get_trials(deepcopy=False)
        queued = [trial.number for trial in trials if trial.state == TrialState.WAITING]
        if not queued:
            turn = self._turns.next(self._records) or self._turns.any()
            if turn.variant is not None or turn.seed != self._turns.seeds[0]:
                fixed = self._coder.encode(Point(turn.variant or "", turn.draws))
                self._study.enqueue_trial(fixed, user_attrs={SEED: turn.seed})
        self._sample_for(queued[0] if queued else len(trials))
        return self._drawn(self._study.ask())

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
        seed = int(trial.user_attrs.get(SEED, self._turns.seeds[0]))
        self._turns.note(trial.number, Point(variant, draws, seed))
        return Asked(trial, variant, draws, seed)

    def _sample_for(self, number: int) -> None:
        objectives = len(self._judge.objective)
        sampler = self._settings["sampler"]
        self._study.sampler = make_sampler(sampler, self._search_seed, number, objectives)


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
