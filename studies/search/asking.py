"""Which trial comes next, and what came of it: the driver's side of Optuna.

`studies.turns` says what is fixed about the next trial, the sampler draws the rest. Trials of
earlier studies that the sampler learns from (`studies.warm_start`) come first in the storage: the
numbers of the study's own trials begin after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from memarch.search_spaces.first_points import first_points
from memarch.studies.driver.judging import Judge
from memarch.studies.records.database import open_database
from memarch.studies.records.ledger import Ledger
from memarch.studies.records.store import Json, StudyFolder
from memarch.studies.records.tally import Tally
from memarch.studies.search.racing import Race
from memarch.studies.search.sampling import Coder, Draws, Point, Space, make_sampler, told_as
from memarch.studies.search.turns import Turns
from memarch.studies.search.warm_start import add as add_warm_start
from memarch.studies.search.warm_start import choose as choose_warm_start

SEED = "memarch.seed"
"""The model seed of a trial, where it is not the study's first."""

TOLD = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "infeasible": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
"""What a trial in a final state is to Optuna."""

REPEATS = 20
"""A search that drew so many known points in a row has seen its space."""

MOST_INFEASIBLE = 200
"""A search that drew so many points in a row that break its constraints finds no others."""


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
        self._tally = Tally()
        self._ledger: Ledger | None = None
        self._notices: list[str] = list(self._warm["notes"])

    def open(
        self, study_id: str, database: str | None, records: Mapping[int, Json]
    ) -> list[FrozenTrial]:
        """Open the storage; the trials that a driver which is gone has not told."""
        storage = open_database(database, self._folder.storage)
        self._ledger = Ledger(storage, self._folder.name, study_id, self._judge.objective)
        with self._ledger.change() as study:
            self._study = study
            add_warm_start(study, self._warm, self._coder, self._judge)
            for number in range(len(study.get_trials(deepcopy=False)), _end(records)):
                study.add_trial(self._from_record(records.get(number)))
        for record in records.values():
            self.count(record)
        return self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def close(self) -> None:
        """Wait until the storage has all."""
        if self._ledger is not None:
            self._ledger.close()

    def count(self, record: Json) -> None:
        """A trial's record is new, or has changed: budgets are counted by it."""
        self._tally.note(record)

    def notices(self) -> list[str]:
        """What people should read: trouble with the storage, earlier trials that were taken,
        points that were dropped."""
        told, self._notices = self._notices, []
        told += self._ledger.problems() if self._ledger else []
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
        budget, tally = self._settings["budget"], self._tally
        limits = [
            (tally.originals, budget.get("trials")),
            (seconds / 3600, budget.get("hours")),
            (tally.flops, budget.get("flops")),
        ]
        if any(limit is not None and used >= limit for used, limit in limits):
            return False
        if self._turns.next(records) is None:
            return False
        if self._turns.planned is not None:
            return True
        return tally.copies_in_a_row < REPEATS and tally.spared_in_a_row < MOST_INFEASIBLE

    def ask(self) -> Asked:
        """The next trial."""
        assert self._ledger is not None
        with self._ledger.change() as study:
            queued = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            number = queued[0].number if queued else len(study.get_trials(deepcopy=False))
            if not queued:
                turn = self._turns.next(self._records) or self._turns.any()
                if turn.variant is not None or turn.seed != self._turns.seeds[0]:
                    fixed = self._coder.encode(Point(turn.variant or "", turn.draws))
                    study.enqueue_trial(fixed, user_attrs={SEED: turn.seed})
            self._sample_for(number)
            return self._drawn(study.ask())

    def revive(self, frozen: FrozenTrial) -> Asked:
        """A trial that was asked by another driver: the same number, the same values."""
        self._sample_for(frozen.number)
        return self._drawn(optuna.Trial(self._study, frozen._trial_id))

    def tell(self, trial: optuna.Trial, record: Json, share: float | None) -> None:
        """How the trial ended. Only what ran to its end has a score."""
        assert self._ledger is not None
        metrics = record["metrics"]
        told = {k: record[k] for k in ("state", "reason", "seed", "hash")}
        names = list(self._judge.objective)
        kind = self._settings["sampler"]["type"]
        values, state = told_as(kind, record["state"], [metrics.get(name) for name in names])
        with self._ledger.change() as study:
            trial.set_user_attr("memarch", told)
            for name, value in self._judge.told(record).items():
                trial.set_constraint(name, value)
            # TPE ranks what was stopped early by its last value, where there is one objective.
            last = metrics.get(names[0]) if len(names) == 1 else None
            if state == TrialState.PRUNED and last is not None:
                trial.report(last, round(1000 * (share or 0)))
            study.tell(trial, values, state=state)

    def disagreements(self, records: Mapping[int, Json]) -> list[str]:
        """Finished trials that are something else in Optuna, which cannot change any more."""
        trials = {trial.number: trial for trial in self._study.get_trials(deepcopy=False)}
        lines = []
        for number, record in records.items():
            trial = trials.get(number)
            if trial is None or not trial.state.is_finished():
                continue
            expected = TOLD.get(record["state"])
            if trial.state != expected:
                lines.append(
                    f"trial {number} is {record['state']}, and Optuna has it as "
                    f"{trial.state.name.lower()}, for good: the record counts"
                )
        return lines

    def _drawn(self, trial: optuna.Trial) -> Asked:
        variant, draws = self._coder.suggest(trial)
        seed = int(trial.user_attrs.get(SEED, self._turns.seeds[0]))
        self._turns.note(trial.number, Point(variant, draws, seed))
        return Asked(trial, variant, draws, seed)

    def _sample_for(self, number: int) -> None:
        objectives = len(self._judge.objective)
        sampler = self._settings["sampler"]
        self._study.sampler = make_sampler(sampler, self._search_seed, number, objectives)

    def _from_record(self, record: Json | None) -> FrozenTrial:
        """A trial that the storage lacks, because the driver was cut off before it was written."""
        if record is not None:
            point = Point(record["variant"], record["params"])
            seed = {} if record["seed"] == self._turns.seeds[0] else {SEED: record["seed"]}
            with suppress(KeyError, ValueError):  # no longer in the space: its number stays taken
                return optuna.trial.create_trial(
                    state=TrialState.RUNNING,
                    params=self._coder.encode(point),
                    distributions=self._coder.kinds(point.variant),
                    user_attrs=seed,
                )
        return optuna.trial.create_trial(state=TrialState.FAIL)


def _end(records: Mapping[int, Json]) -> int:
    """The number after the last."""
    return max(records, default=-1) + 1
