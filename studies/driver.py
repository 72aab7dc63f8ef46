"""The study driver: asks Optuna, deals trials to Ray workers, records what becomes of them.

The driver remembers, the workers compute. One driver a study (a lease keeps others out) is the one
writer of the Optuna storage, the trials' records and MLflow. A trial's life:

    asked (Optuna: running) -> record.json -> dealt to a worker -> reports -> result.json (worker)
    -> record.json with the final state -> told to Optuna -> MLflow

After a kill at any point `resume` goes on at the first of these that is missing: a trial with a
final record or a result is told, any other one runs again in its folder, with the same number and
parameters, from its last checkpoint.

Draws with equal resolved specs are one trial: later ones get the result of the first.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import ray

from memarch.components.errors import SpecError
from memarch.search_spaces.ranges import as_written
from memarch.studies import events
from memarch.studies.asking import Asked, Asking
from memarch.studies.cluster import start_ray
from memarch.studies.events import Event, StudyResult
from memarch.studies.judging import Judge, Verdict, failed, share_of_budget
from memarch.studies.leaderboard import COPY
from memarch.studies.mailbox import Key, open_mailbox
from memarch.studies.matching import solved_values, unfit
from memarch.studies.places import Places
from memarch.studies.pool import Pool
from memarch.studies.provenance import write_origins
from memarch.studies.pruning import Pruning
from memarch.studies.ranking import ranking
from memarch.studies.resources import Size
from memarch.studies.sampling import one_of_each
from memarch.studies.snapshot import read_snapshot, write_snapshot
from memarch.studies.store import (
    FINISHED,
    Json,
    StudyFolder,
    find_spec,
    find_study,
    lease,
    list_studies,
    lives_here,
    read_json,
    show_study,
    storage_folder,
    write_json,
)
from memarch.studies.tracking import Tracking, run_name
from memarch.studies.workers import Job

if TYPE_CHECKING:
    from memarch.search_spaces.study_file import Resolved, StudyFile

__all__ = ["list_studies", "resume_study", "run_study", "show_study"]

TRIAL_FUNCTION = "memarch.studies.trial:run_trial"
TEST_FUNCTION = "memarch.studies.trial:test_trial"

MOST_DEATHS = 3
"""A trial whose worker died so often has failed."""

GRACE = 10.0
"""Seconds that a trial has to return after it was told to stop for its time limit."""

OnEvent = Callable[[Event], None]


def run_study(
    file: str | Path,
    *,
    storage: str | Path | None = None,
    overrides: Sequence[str] = (),
    name: str | None = None,
    address: str | None = None,
    database: str | None = None,
    artifacts: str | None = None,
    on_event: OnEvent | None = None,
    trial_function: str = TRIAL_FUNCTION,
    test_function: str = TEST_FUNCTION,
) -> StudyResult:
    """Run the study of a YAML file to its end, or until Ctrl-C; `name` overrides the file's."""
    from memarch.studies.spec import load_study

    root = storage_folder(storage)
    study_file = load_study(
        Path(file), tuple(overrides), find_trial=lambda study, trial: find_spec(root, study, trial)
    )
    notes = study_file.validate()
    places = Places.choose(root, database, artifacts)
    folder = StudyFolder(root, name or study_file.study["name"] or Path(file).stem)
    with lease(folder.path):
        if folder.exists():
            state = folder.info["state"]
            raise SpecError(
                f"study {folder.name!r} is there already ({state}) in {folder.storage}; go on with "
                f"`memarch study resume {folder.name}`, or start anew with `--as NAME2`"
            )
        info = {
            "file": str(Path(file).absolute()),
            "overrides": list(overrides),
            "trial_function": trial_function,
            "test_function": test_function,
        } | places.written()
        _begin(folder, study_file, info)
        try:
            return _Driver(folder, places, address, on_event).run(notes)
        except SpecError:  # without a first trial it has not begun, and its name stays free
            if not folder.records():
                (folder.path / "study.json").unlink()
            raise


def resume_study(
    name: str,
    *,
    storage: str | Path | None = None,
    overrides: Sequence[str] = (),
    address: str | None = None,
    database: str | None = None,
    artifacts: str | None = None,
    on_event: OnEvent | None = None,
) -> StudyResult:
    """Go on with a study by name. `overrides` may raise its budget: `study.budget.trials=48`."""
    folder = find_study(storage, name)
    with lease(folder.path):
        info = folder.info
        info["overrides"] = [*info["overrides"], *overrides]
        study_file = read_snapshot(folder.path, info["overrides"])
        notes = study_file.validate()
        places = Places.choose(folder.storage, database, artifacts, info)
        folder.write_info(info | places.written())
        return _Driver(folder, places, address, on_event).run(notes)


def _ignore(event: Event) -> None:
    return None


def _begin(folder: StudyFolder, study_file: StudyFile, info: Json) -> None:
    """Make the study's folder: from now on it is there, and can be resumed."""
    study = study_file.study
    shutil.copyfile(info["file"], folder.path / "study.yaml")
    write_snapshot(study_file, folder.path)
    spaces = {
        v: {n: as_written(r) for n, r in study_file.space(v).items()} for v in study_file.variants
    }
    write_json(folder.path / "resolved.json", {"study": study, "ranges": spaces})
    folder.write_info(
        {
            "name": folder.name,
            "id": uuid.uuid4().hex,
            "state": "running",
            "objective": study["objective"],
            "design": study["design"],
            "created": time.time(),
            "elapsed": 0.0,
            "counts": {},
            "best": [],
            "best_values": {},
        }
        | info
    )


@dataclass
class _Trial:
    """A trial that is asked and not told: waiting for a worker, or running on one."""

    record: Json
    optuna: optuna.Trial
    spec: Json
    attempt: int = 0
    started: float | None = None
    """When its worker began, which had to be made and to import before."""
    stop_at: float | None = None
    """When the trial was told to stop for a reason of the driver's own."""
    verdict: Verdict | None = None
    """State and reason that the driver gives the trial, whatever its worker says."""
    metrics: Json = field(default_factory=dict)
    """The last that it reported."""
    evaluating: bool = False
    """It has trained, and `resources.eval` makes its evaluation a job of its own."""

    @property
    def size(self) -> Size:
        return Size.of_evaluation(self.spec) if self.evaluating else Size.of(self.spec)

    @property
    def number(self) -> int:
        return int(self.record["number"])

    @property
    def key(self) -> Key:
        return self.number, self.attempt


class _Driver:
    """One session of one study."""

    def __init__(
        self,
        folder: StudyFolder,
        places: Places,
        address: str | None,
        on_event: OnEvent | None,
    ) -> None:
        self.folder, self.places, self.address = folder, places, address
        self.on_event = on_event if on_event is not None else _ignore
        self.info = folder.info
        self.file = study_file = read_snapshot(folder.path, self.info["overrides"])
        self.settings = study_file.study
        self.objective: dict[str, str] = dict(self.settings["objective"])
        self.judge = Judge(self.settings)
        spaces = {variant: study_file.space(variant) for variant in study_file.variants}
        self.asking = Asking(folder, self.settings, spaces, self.judge)
        first = one_of_each(spaces, 0)[0]
        self.usual_size = Size.of(study_file.resolve(first.variant, first.draws).spec)
        self.pruning = Pruning(*_pruner(self.settings, self.objective))
        self.plugins = {
            Path(p).name: Path(p).read_text(encoding="utf-8") for p in study_file.plugins
        }
        self.records = folder.records()
        self.waiting: deque[_Trial] = deque()
        self.running: dict[int, _Trial] = {}
        self.copies: dict[int, list[_Trial]] = {}
        self.by_hash: dict[tuple[str, Any], int] = {}
        self.interrupted = False
        self.pool: Pool | None = None
        self.mailbox: Any = None
        self.ray_is_ours = False
        self.tracking = Tracking(folder)
        self.elapsed_before = float(self.info.get("elapsed", 0.0))
        self.session_started = time.monotonic()

    # The session

    def run(self, notes: Sequence[str] = ()) -> StudyResult:
        self._write_info("running")
        self.on_event(
            events.StudyStarted(
                self.folder.name,
                str(self.folder.path),
                self.objective,
                self.settings["design"],
                self.asking.planned,
                sum(record["state"] in FINISHED for record in self.records.values()),
            )
        )
        for note in [*notes, *self.places.notes()]:
            self.on_event(events.Notice(note))
        try:
            with self._interruptible(signal.SIGINT):
                if self._work_is_left():  # workers import while the databases open
                    self._pool().warm(self.usual_size, self.asking.planned)
                self.tracking.open()
                self._prepare()
                with self._interruptible(signal.SIGTERM):  # Ray has a handler of its own
                    self._loop()
                    if not self.interrupted:
                        self._test_finalists()
        except BaseException:
            self.tracking.abandon()
            raise
        finally:
            self._close_pool()
            self.asking.close()
        return self._end()

    def _pool(self) -> Pool:
        """The workers; Ray is started for the first of them."""
        if self.pool is None:
            self.ray_is_ours = start_ray(self.address)
            self.mailbox = open_mailbox()
            functions = (self.info["trial_function"], self.info["test_function"])
            self.pool = Pool(self.mailbox, *functions)
        return self.pool

    def _close_pool(self) -> None:
        self._stop_running()
        if self.pool is not None:
            self.pool.close()
            ray.kill(self.mailbox)
            if self.ray_is_ours:
                ray.shutdown()

    def _prepare(self) -> None:
        """Open the storage, and take up what an earlier session left."""
        unfinished = self.asking.open(self.info["id"], self.places.database, self.records)
        for number, record in sorted(self.records.items()):
            if record["copy_of"] is None and record["hash"]:
                self.by_hash.setdefault((record["hash"], record["seed"]), number)
            if record["state"] in FINISHED:
                self._replay(record)
        for frozen in unfinished:
            self._recover(frozen)

    def _loop(self) -> None:
        take = None
        while not self.interrupted:
            self._fill()
            if not self.running and not self.waiting:
                break
            take = take or self.mailbox.take.remote(1.0)
            ready, _ = ray.wait([take, *self._pool().refs], num_returns=1, timeout=1.0)
            for ref in ready:
                if ref == take:
                    self._read_mail(*ray.get(take))
                    take = None
                else:
                    self._returned(*self._pool().finished(ref))
            self._check_time()
            self._pass_on_problems()

    def _pass_on_problems(self) -> None:
        for problem in [*self.tracking.problems(), *self.asking.notices()]:
            self.on_event(events.Notice(problem))

    def _end(self) -> StudyResult:
        state = "interrupted" if self.interrupted else "complete"
        self._write_info(state)
        self._write_report()
        self.tracking.close()
        self._pass_on_problems()
        shown = show_study(self.folder.name, self.folder.storage)
        result = StudyResult(
            name=self.folder.name,
            path=str(self.folder.path),
            state=state,
            objective=self.objective,
            trials=shown["trials"],
            best=self.info["best"],
        )
        if self.interrupted:
            self.on_event(
                events.Notice(f"interrupted; `memarch study resume {self.folder.name}` goes on")
            )
        self.on_event(events.StudyFinished(result))
        return result

    def _write_report(self) -> None:
        try:
            from memarch.studies.report import write_report
        except ImportError:
            return
        try:
            write_report(self.folder.path)
        except Exception as error:  # a report that fails must not take the study with it
            self.on_event(events.Notice(f"no report: {type(error).__name__}: {error}"))

    @contextmanager
    def _interruptible(self, number: signal.Signals) -> Iterator[None]:
        """The first signal (Ctrl-C, or a cluster's end of time) ends the session in order, the
        second at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(signum: int, frame: object) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        before = signal.signal(number, interrupt)
        try:
            yield
        finally:
            signal.signal(number, before)

    # Dealing

    def _work_is_left(self) -> bool:
        """Whether some trial surely has to run."""
        done = [r for r in self.records.values() if r["state"] in FINISHED]
        planned = self.asking.planned
        return planned is None or len([r for r in done if r["copy_of"] is None]) < planned

    def _elapsed(self) -> float:
        return self.elapsed_before + time.monotonic() - self.session_started

    def _fill(self) -> None:
        """Deal trials while there is room, asking for new ones where none waits."""
        while not self.interrupted:
            if not self.waiting:
                another = self.asking.wants_another(self.records, self._elapsed())
                if not another or not self._pool().fits(self.usual_size):
                    return
                self._admit(self.asking.ask())
                continue
            if not self._pool().fits(self.waiting[0].size):
                return
            self._deal(self.waiting.popleft())

    def _admit(self, asked: Asked) -> None:
        """Write the record of a trial that was asked, and see whether it has to run at all."""
        number, variant, draws, seed = asked.number, asked.variant, asked.draws, asked.seed
        record: Json = {
            "number": number,
            "variant": variant,
            "state": "waiting",
            "params": draws,
            "metrics": {},
            "reason": "",
            "attempts": 0,
            "deaths": 0,
            "seed": seed,
            "hash": "",
            "copy_of": None,
            "run_name": run_name(number, variant, {}),
        }
        try:
            resolved = self._resolve(variant, draws, seed)
        except SpecError as error:  # values that each are fine may not fit together
            self._finish(_Trial(record, asked.trial, {}), unfit(error))
            return
        record["params"] = params = {**draws, **solved_values(resolved)}
        record["hash"] = resolved.hash
        known = None if self.settings["repeat"] else self.by_hash.get((resolved.hash, seed))
        record["copy_of"] = known
        several = isinstance(self.settings["seeds"]["model"], list)
        named = params | ({"seed": seed} if several else {})
        record["run_name"] = run_name(number, variant, named, known)
        # `record` of a spec: secrets and places that come from `$env` are not written down.
        write_json(self.folder.trial(number).path / "spec.json", resolved.record)
        write_origins(self.folder.trial(number).path, resolved.origins)
        trial = _Trial(record, asked.trial, resolved.record)
        self._write(trial)
        if known is None:
            self.by_hash[resolved.hash, seed] = number
            self.waiting.append(trial)
        elif self.records[known]["state"] in FINISHED:
            self._copy(trial)
        else:
            self.copies.setdefault(known, []).append(trial)

    def _resolve(self, variant: str, draws: Json, seed: int) -> Resolved:
        resolved = self.file.resolve(variant, draws)
        given = self.settings["seeds"]["model"]
        return resolved if given == seed else resolved.at({"study.seeds.model": seed})

    # Running

    def _deal(self, trial: _Trial) -> None:
        trial.record["attempts"] += not trial.evaluating
        trial.attempt = trial.record["attempts"]
        trial.record["state"] = "running"
        trial.started = trial.stop_at = None
        self._write(trial)
        self.running[trial.number] = trial
        job = Job(
            trial.number,
            trial.attempt,
            trial.spec,
            str(self.folder.trial(trial.number).path),
            self.plugins,
        )
        self._pool().start(job, trial.size)
        self.tracking.changed(trial.number)
        self.on_event(
            events.TrialStarted(
                trial.number, trial.record["variant"], trial.record["params"], trial.attempt
            )
        )

    def _read_mail(self, ticket: int, messages: list[tuple[Key, list[Json]]]) -> None:
        for key, reports in messages:
            trial = self.running.get(key[0])
            if trial is not None and trial.key == key and trial.started is None:
                trial.started = time.monotonic()
            for report in reports:
                self._reported(key, report)
        if messages:
            stops = {t.key for t in self.running.values() if t.stop_at is not None}
            ray.get(self.mailbox.answer.remote(ticket, stops))

    def _reported(self, key: Key, report: Json) -> None:
        trial = self.running.get(key[0])
        if trial is None or trial.key != key:
            return  # an attempt that is over
        step, metrics = report["step"], report["metrics"]
        share = share_of_budget(trial.spec, step, metrics)
        trial.metrics = metrics
        self.tracking.changed(trial.number)
        self.on_event(events.TrialProgress(trial.number, step, metrics, share))
        variant = trial.record["variant"]
        if share is not None and self.pruning.report(variant, trial.number, share, metrics):
            trial.stop_at = trial.stop_at or time.monotonic()
        if trial.verdict is None:
            trial.verdict = self.judge.early_verdict(metrics)
        if trial.verdict is not None:
            trial.stop_at = trial.stop_at or time.monotonic()

    def _check_time(self) -> None:
        """Tell trials beyond the time limit to stop, and end those that do not."""
        now = time.monotonic()
        for trial in list(self.running.values()):
            name = "eval_time_limit" if trial.evaluating else "trial_time_limit"
            limit = self.settings[name]
            late = limit and trial.started is not None and now - trial.started > limit
            if late and trial.verdict is None:
                reason = f"stopped: it ran longer than {name}, {limit:g} s"
                trial.verdict, trial.stop_at = ("failed", reason), now
                ray.get(self.mailbox.answer.remote(0, {trial.key}))
            if trial.verdict and trial.stop_at and now - trial.stop_at > GRACE:
                self._pool().kill(trial.key)
                del self.running[trial.number]
                self._finish(trial, failed(""))

    def _returned(self, key: Key, answer: Json | None) -> None:
        trial = self.running.pop(key[0])
        if answer is None:
            self._worker_died(trial)
            return
        for report in answer["reports"]:
            self.running[trial.number] = trial
            self._reported(key, report)
            del self.running[trial.number]
        if answer["result"]["state"] == "trained" and trial.verdict is None:
            trial.evaluating = True
            self.waiting.appendleft(trial)
            return
        self._finish(trial, answer["result"])

    def _worker_died(self, trial: _Trial) -> None:
        result = self.folder.trial(trial.number).result
        if result is not None:  # its last act was done
            self._finish(trial, result)
            return
        trial.record["deaths"] += 1
        if trial.verdict or trial.record["deaths"] >= MOST_DEATHS:
            reason = f"its worker died {trial.record['deaths']} times; was there enough memory?"
            self._finish(trial, failed(reason))
            return
        self.on_event(
            events.Notice(f"trial {trial.number}: its worker died; it goes on from its checkpoint")
        )
        self.waiting.appendleft(trial)

    # Telling

    def _finish(self, trial: _Trial, result: Json) -> None:
        """Give a trial its final state: record first, then Optuna, then MLflow."""
        record = trial.record
        record["metrics"] = result.get("metrics") or trial.metrics
        record["state"], record["reason"] = trial.verdict or self.judge.verdict(result)
        record["converged"] = result.get("converged")
        self._write(trial)
        self._tell(trial)
        self.pruning.finish(trial.number, pruned=record["state"] == "pruned")
        self.tracking.changed(trial.number)
        self._write_info("running")
        self.on_event(events.TrialFinished(_row(record)))
        for copy in self.copies.pop(trial.number, []):
            self._copy(copy)

    def _tell(self, trial: _Trial) -> None:
        share = share_of_budget(trial.spec, 0, trial.record["metrics"])
        self.asking.tell(trial.optuna, trial.record, share)

    def _copy(self, trial: _Trial) -> None:
        """Equal specs are one trial: this one gets the result of the earlier one."""
        record, original = trial.record, self.records[trial.record["copy_of"]]
        record["state"], record["metrics"] = original["state"], dict(original["metrics"])
        record["reason"] = f"{COPY}{original['number']}, whose result this is"
        record["converged"] = original.get("converged")
        self._write(trial)
        self._tell(trial)
        self.tracking.changed(trial.number)
        self._write_info("running")
        self.on_event(events.TrialFinished(_row(record)))

    def _write(self, trial: _Trial) -> None:
        self.records[trial.number] = trial.record
        self.asking.count(trial.record)
        self.folder.trial(trial.number).write_record(trial.record)

    # After a restart

    def _recover(self, frozen: optuna.trial.FrozenTrial) -> None:
        """A trial that Optuna thinks is running, of a driver that is gone."""
        record, asked = self.records.get(frozen.number), self.asking.revive(frozen)
        if record is None:  # the driver died between asking and writing
            self._admit(asked)
            return
        folder = self.folder.trial(frozen.number)
        trained = (folder.path / "trained.json").exists()
        trial = _Trial(record, asked.trial, folder.spec or {}, evaluating=trained)
        self._end_orphan(frozen.number)
        result = self.folder.trial(frozen.number).result
        if record["state"] in FINISHED:
            self._tell(trial)
        elif record["copy_of"] is not None:
            if self.records[record["copy_of"]]["state"] in FINISHED:
                self._copy(trial)
            else:
                self.copies.setdefault(record["copy_of"], []).append(trial)
        elif result is not None:
            self._finish(trial, result)
            self._replay(record)
        else:
            self._replay(record)
            self.waiting.append(trial)

    def _end_orphan(self, number: int) -> None:
        """Workers die with their driver, a moment later: nobody else may write in the folder."""
        process = read_json(self.folder.trial(number).path / "worker.json")
        while process is not None and lives_here(process):
            with suppress(ProcessLookupError):
                os.kill(process["pid"], signal.SIGKILL)
            time.sleep(0.02)

    def _replay(self, record: Json) -> None:
        """Show the pruners what a trial reported in an earlier session."""
        if self.pruning.kind == "none" or record["state"] in ("failed", "infeasible"):
            return
        trial = self.folder.trial(record["number"])
        spec = trial.spec or {}
        for report in trial.progress():
            share = share_of_budget(spec, report["step"], report["metrics"])
            if share is not None:
                self.pruning.report(record["variant"], record["number"], share, report["metrics"])
        if record["state"] in FINISHED:
            self.pruning.finish(record["number"], pruned=record["state"] == "pruned")

    def _stop_running(self) -> None:
        """Trials that are cut off wait for `resume`: what they wrote is complete or absent."""
        for trial in self.running.values():
            self._pool().kill(trial.key)
            trial.record["state"] = "waiting"
            self._write(trial)
            self.tracking.changed(trial.number)
        self.running.clear()

    # The end

    def _test_finalists(self) -> None:
        """Compute `test/...` once, for the best trials, after the search is over."""
        leaders, others = ranking(self.records.values(), self.objective)
        count = self.settings.get("finalists", 3)
        numbers = [*leaders, *others][:count]
        tests: dict[Key, Json] = {}
        begun: dict[Key, float] = {}
        left = deque(n for n in numbers if not (self.folder.trial(n).path / "test.json").exists())
        while (left or tests) and not self.interrupted:
            while left:
                record = self.records[left[0]]
                trial_folder = self.folder.trial(left[0])
                spec = trial_folder.spec or {}
                size = Size.of_evaluation(spec)
                if not self._pool().fits(size):
                    break
                job = Job(left.popleft(), 0, spec, str(trial_folder.path), self.plugins)
                self._pool().start(job, size, method="test")
                tests[job.number, 0] = record
                begun[job.number, 0] = time.monotonic()
            self._end_late_tests(tests, begun)
            ready, _ = ray.wait(self._pool().refs, num_returns=1, timeout=1.0)
            for ref in ready:
                key, result = self._pool().finished(ref)
                record = tests.pop(key)
                if result is None or result["reason"]:
                    why = result["reason"] if result else "the worker died"
                    self.on_event(events.Notice(f"trial {key[0]}: no test scores: {why}"))
        for number in numbers:
            result = read_json(self.folder.trial(number).path / "test.json")
            record = self.records[number]
            if result and not result["metrics"].items() <= record["metrics"].items():
                record["metrics"] |= result["metrics"]
                self.folder.trial(number).write_record(record)
                self.tracking.changed(number)
                self.on_event(events.TrialFinished(_row(record)))

    def _end_late_tests(self, tests: dict[Key, Json], begun: Mapping[Key, float]) -> None:
        limit = self.settings["eval_time_limit"]
        for key in [k for k in tests if limit and time.monotonic() - begun[k] > limit]:
            self._pool().kill(key)
            del tests[key]
            text = f"trial {key[0]}: no test scores: longer than eval_time_limit, {limit:g} s"
            self.on_event(events.Notice(text))

    def _write_info(self, state: str) -> None:
        counts: dict[str, int] = {}
        for record in self.records.values():
            counts[record["state"]] = counts.get(record["state"], 0) + 1
        leaders, _ = ranking(self.records.values(), self.objective)
        values = {
            name: self.records[leaders[0]]["metrics"][name] for name in self.objective if leaders
        }
        self.info |= {
            "state": state,
            "counts": counts,
            "best": leaders,
            "best_values": values,
            "elapsed": self._elapsed(),
        }
        self.folder.write_info(self.info)


def _row(record: Json) -> Json:
    names = ("number", "variant", "state", "params", "metrics", "reason", "attempts")
    return {name: record[name] for name in names}


def _pruner(settings: Json, objective: Mapping[str, str]) -> tuple[Json, str]:
    """The pruner's settings, and the direction of its metric."""
    pruner = dict(settings["pruner"])
    metric = pruner["on"] = pruner.get("on") or next(iter(objective))
    losses = ("loss", "perplexity", "bits_per_byte")
    usual = "minimize" if metric.rpartition("/")[2] in losses else "maximize"
    return pruner, objective.get(metric, usual)
