"""Optuna's study in memory, and its copy in a database that may be slow, or away for a while.

The driver asks and tells in memory. A thread writes what changed to the database, at most once a
second, a new trial as one transaction with all that is known of it by then: so a fast study is not
held up by transactions, and a database that restarts holds up nobody. What a killed driver had not
written is in the trials' records, from which the next one makes it anew.
"""

from __future__ import annotations

import copy
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from queue import SimpleQueue

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from memarch.studies.records.database import first_line, trouble_with_connection
from memarch.studies.records.patience import FIRST_PAUSE, LONGEST_PAUSE, server_wait

SAVE_INTERVAL = 1.0


class Ledger:
    """One study, of which this process is the one writer."""

    def __init__(
        self, database: BaseStorage, name: str, study_id: str, objective: Mapping[str, str]
    ) -> None:
        self._database = database
        self._there = _open_study(database, name, study_id, objective)
        self._memory = InMemoryStorage()
        self.study = optuna.create_study(
            study_name=name, storage=self._memory, directions=list(objective.values())
        )
        self._here = self._memory.get_study_id_from_name(name)
        self._lock = threading.RLock()
        self._count = 0
        """Of the trials that the database has."""
        self._unfinished: dict[int, FrozenTrial] = {}
        """Those of them that may change, as it has them. The others never change again."""
        self._attributes: dict[str, object] = {}
        for trial in self._read():
            self._memory.create_new_trial(self._here, trial)
        for key, value in self._attributes.items():
            self._memory.set_study_system_attr(self._here, key, value)
        self._problems: SimpleQueue[str] = SimpleQueue()
        self._error: Exception | None = None
        self._changed, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    @contextmanager
    def change(self) -> Iterator[optuna.Study]:
        """Ask or tell: what is done inside is written as one."""
        with self._lock:
            yield self.study
        self._changed.set()

    def problems(self) -> Iterator[str]:
        """What went wrong since the last call; raises what trying again would not help."""
        if self._error is not None:
            raise self._error
        while not self._problems.empty():
            yield self._problems.get()

    def close(self) -> None:
        """Write what is left, waiting a while for a database that is away."""
        self._closing.set()
        self._changed.set()
        self._thread.join()

    # In the thread

    def _work(self) -> None:
        pause, lost_at, deadline = FIRST_PAUSE, None, None
        while True:
            if lost_at is None:
                self._changed.wait()
            closing = self._closing.is_set()
            if closing and deadline is None:
                deadline = time.monotonic() + server_wait()
            self._changed.clear()
            try:
                if lost_at is not None:
                    self._read()
                self._save()
            except Exception as error:
                if not trouble_with_connection(error):
                    self._error = error
                    return
                if lost_at is None:
                    lost_at = time.monotonic()
                    self._problems.put(
                        f"Optuna's database does not answer ({first_line(error)}); the study "
                        "goes on, and is written there when it does"
                    )
                if deadline is not None and time.monotonic() + pause > deadline:
                    self._problems.put(
                        "Optuna's database does not answer: it lacks the latest trials, which "
                        "are in the study's folder; `memarch study resume` writes them"
                    )
                    return
                self._closing.wait(pause) if deadline is None else time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE if deadline is None else 2.0)
                continue
            if lost_at is not None:
                away = time.monotonic() - lost_at
                self._problems.put(f"Optuna's database answers again, after {away:.0f} s")
                pause, lost_at = FIRST_PAUSE, None
            if closing:
                return
            self._closing.wait(SAVE_INTERVAL)

    def _save(self) -> None:
        with self._lock:  # not in the middle of an ask or a tell
            trials = self._memory.get_all_trials(self._here, deepcopy=False)
            changed = [_copy(trials[number]) for number in self._unfinished]
            new = [_copy(trial) for trial in trials[self._count :]]
            attributes = self._memory.get_study_system_attrs(self._here)
        for trial in changed:
            old = self._unfinished[trial.number]
            self._update(old, trial)
            self._note(trial, old._trial_id)
        for trial in new:
            self._note(trial, self._database.create_new_trial(self._there, trial))
            self._count += 1
        for key, value in attributes.items():
            if self._attributes.get(key) != value:
                self._database.set_study_system_attr(self._there, key, value)
                self._attributes[key] = value

    def _note(self, trial: FrozenTrial, trial_id: int) -> None:
        if trial.state.is_finished():
            self._unfinished.pop(trial.number, None)
        else:
            trial._trial_id = trial_id
            self._unfinished[trial.number] = trial

    def _update(self, old: FrozenTrial, new: FrozenTrial) -> None:
        """Write what is new of a trial that was not finished, its state last."""
        database, trial_id = self._database, old._trial_id
        if old.state == TrialState.WAITING and new.state != TrialState.WAITING:
            database.set_trial_state_values(trial_id, TrialState.RUNNING)
        for name, distribution in new.distributions.items():
            if name not in old.params:
                value = distribution.to_internal_repr(new.params[name])
                database.set_trial_param(trial_id, name, value, distribution)
        for key, value in new.user_attrs.items():
            if old.user_attrs.get(key) != value:
                database.set_trial_user_attr(trial_id, key, value)
        for key, value in new.system_attrs.items():
            if old.system_attrs.get(key) != value:
                database.set_trial_system_attr(trial_id, key, value)
        for step, value in new.intermediate_values.items():
            if old.intermediate_values.get(step) != value:
                database.set_trial_intermediate_value(trial_id, step, value)
        if new.state.is_finished():
            database.set_trial_state_values(trial_id, new.state, new.values)

    def _read(self) -> list[FrozenTrial]:
        """What the database has: the answer to our last words may have been lost."""
        trials = self._database.get_all_trials(self._there, deepcopy=False)
        self._count = len(trials)
        self._unfinished = {t.number: t for t in trials if not t.state.is_finished()}
        self._attributes = dict(self._database.get_study_system_attrs(self._there))
        return trials


def _copy(trial: FrozenTrial) -> FrozenTrial:
    """As it is now: Optuna changes the maps of a trial in place."""
    made = copy.copy(trial)
    made.params, made.distributions = dict(trial.params), dict(trial.distributions)
    made.user_attrs, made.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
    made.intermediate_values = dict(trial.intermediate_values)
    return made


def _open_study(
    database: BaseStorage, name: str, study_id: str, objective: Mapping[str, str]
) -> int:
    """The study in the database, made when it is not there; its number there."""
    if name in optuna.get_all_study_names(database):
        known = optuna.load_study(study_name=name, storage=database).user_attrs.get("memarch.id")
        if known not in (None, study_id):  # of a study whose folder was deleted, or is elsewhere
            name = f"{name}-{study_id[:8]}"
    study = optuna.create_study(
        study_name=name,
        storage=database,
        directions=list(objective.values()),
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(objective))
    study.set_user_attr("memarch.id", study_id)
    return database.get_study_id_from_name(name)
