"""The study driver: asks Optuna, deals trials to Ray workers, records what becomes of them.

The driver remembers, the workers compute. One driver a study (a lease keeps others out) is the one
writer of the Optuna storage, the trials' records and MLflow. A trial's life:

    asked (Optuna: running) -> record.json -> dealt to a worker -> reports -> result.json (worker)
    -> record.json with the final state -> told to Optuna -> MLflow

After a kill at any point `resume` goes on at the first of these that is missing: a trial with a
final record or a result is told, any other one runs again in its folder, with the same number and
parameters, from its last checkpoint. What is done about a failure says `driver.policies`.

Draws with equal resolved specs are one trial: later ones get the result of the first.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import optuna
import ray

from memarch.arch.spec import mechanism
from memarch.components.errors import SpecError
from memarch.studies.cluster.cluster import start_ray
from memarch.studies.cluster.jobs import Job
from memarch.studies.cluster.mailbox import Key, Message, open_mailbox
from memarch.studies.cluster.nodes import Look, data_of, join
from memarch.studies.cluster.pool import Pool
from memarch.studies.cluster.resources import Size
from memarch.studies.driver import events
from memarch.studies.driver.events import Event, StudyResult
from memarch.studies.driver.failures import DISK_FULL, StudyStoppedError, failed, is_disk_full
from memarch.studies.driver.feasibility import Feasibility
from memarch.studies.driver.finalists import Finalists
from memarch.studies.driver.judging import Judge, Verdict, share_of_budget
from memarch.studies.driver.orphans import end_orphan
from memarch.studies.driver.policies import Policies
from memarch.studies.driver.stopping import FINISH, GO_ON, HALT, Stopping
from memarch.studies.records.artifacts import fetch_result
from memarch.studies.records.places import Places
from memarch.studies.records.provenance import write_origins
from memarch.studies.records.snapshot import read_snapshot
from memarch.studies.records.store import (
    FINISHED,
    Json,
    StudyFolder,
    show_study,
    write_json,
)
from memarch.studies.records.tracking import Tracking, run_name
from memarch.studies.results.leaderboard import is_copy
from memarch.studies.results.ranking import ranking
from memarch.studies.search.asking import Asked, Asking
from memarch.studies.search.matching import solved_values, unfit
from memarch.studies.search.pruning import make_pruning
from memarch.studies.training.live import LiveTrial, new_record

if TYPE_CHECKING:
    from memarch.search_spaces.study_file import Resolved

GRACE = 10.0
"""Seconds that a trial has to return after it was told to stop."""

INFO_SHARE = 50.0
"""`study.json` is written again after this many times the time that it took."""

OnEvent = Callable[[Event], None]


def _ignore(event: Event) -> None:
    return None


class Driver:
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
        self.policies = Policies(self.settings)
        self.stopping = Stopping()
        self.mended: list[str] = []
        spaces = {variant: study_file.space(variant) for variant in study_file.variants}
        self.asking = Asking(folder, self.settings, spaces, self.judge)
        first = study_file.variants[0]
        self.usual_size = Size.of(study_file.resolve(first, study_file.first_draws(first)).spec)
        self.pruning = make_pruning(self.settings, self.objective)
        self.plugins = {
            Path(p).name: Path(p).read_text(encoding="utf-8") for p in study_file.plugins
        }
        self.feasibility = Feasibility(self.judge, self.info["cost_function"], self.plugins)
        self.records = folder.records()
        for record in self.records.values():  # of an earlier version
            record.setdefault("failures", {})
        self.waiting: deque[LiveTrial] = deque()
        self.running: dict[int, LiveTrial] = {}
        self.copies: dict[int, list[LiveTrial]] = {}
        self.by_hash: dict[tuple[str, Any], int] = {}
        self.pool: Pool | None = None
        self.mailbox: Any = None
        self.taking: Any = None
        """Mail to come."""
        self.ray_is_ours = False
        self.tracking = Tracking(folder)
        self.info_due = 0.0
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
                len(self._finished()),
            )
        )
        for note in [*notes, *self.places.notes()]:
            self.on_event(events.Notice(note))
        try:
            with self.stopping.on(signal.SIGINT):
                if self._work_is_left():  # workers import while the databases open
                    self._pool().warm(self.usual_size, self.asking.planned)
                self.tracking.open()
                self._prepare()
                with self.stopping.on(signal.SIGTERM):  # Ray has a handler of its own
                    self._loop()
                    if self.stopping.level == GO_ON:
                        self._test_finalists()
        except Exception as error:
            self.tracking.abandon()
            if not is_disk_full(error):
                raise
            where = self.folder.storage
            raise StudyStoppedError(
                f"no space left for {where} ({error}); make some, and `memarch study resume "
                f"{self.folder.name}` goes on"
            ) from error
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
            self.ray_is_ours = self._start_ray()
            self.mailbox = open_mailbox()
            functions = (self.info["trial_function"], self.info["test_function"])
            self.pool = Pool(self.mailbox, *functions, self.places.artifacts)
        return self.pool

    def _start_ray(self) -> bool:
        if self.address is None:
            return start_ray(None)

        def note(text: str) -> None:
            self.on_event(events.Notice(text))

        look = Look(self.folder.storage, self.plugins, data_of(self.file), self.places.artifacts)
        return join(self.address, look, note)

    def _close_pool(self) -> None:
        self._stop_running()
        if self.pool is not None:
            self.feasibility.close()
            self.pool.close()
            ray.kill(self.mailbox)
            if self.ray_is_ours:
                ray.shutdown()

    def _prepare(self) -> None:
        """Open the storage, and take up what an earlier session left."""
        unfinished = self.asking.open(self.info["id"], self.places.database, self.records)
        for number, record in sorted(self.records.items()):
            if not is_copy(record) and record["hash"]:
                self.by_hash.setdefault((record["hash"], record["seed"]), number)
            if record["state"] in FINISHED:
                self._replay(record)
        for frozen in unfinished:
            self._recover(frozen)
        self._report_mending()

    def _loop(self) -> None:
        told = GO_ON
        while self.stopping.level != HALT:
            if self.stopping.level == GO_ON:
                self._fill()
            if not self.running and (not self.waiting or self.stopping.level):
                return
            if told != self.stopping.level:
                told = self.stopping.level
                self._say_what_is_finished()
            self._step()
        self._halt()

    def _step(self, *others: Any) -> None:
        """Take what workers send, or wait a moment for it; or until one of the others is there."""
        self.taking = self.taking or self.mailbox.take.remote(1.0)
        refs = [self.taking, *self._pool().refs, *others]
        ready, _ = ray.wait(refs, num_returns=1, timeout=1.0)
        if len(refs) > 3:  # what else is ready by now: a wait takes time by what is waited for
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            if ref == self.taking:
                self._read_mail(*ray.get(self.taking))
                self.taking = None
            elif ref not in others:
                self._returned(*self._pool().finished(ref))
        self._check_time()
        self._pool().make_way()
        self._pass_on_problems()

    def _halt(self) -> None:
        """Let what runs save and stop, as far as that is quick: else its last checkpoint counts."""
        if not self.running:
            return
        ray.get(self.mailbox.halt.remote())
        end = time.monotonic() + GRACE
        while self.running and time.monotonic() < end:
            self._step()

    def _say_what_is_finished(self) -> None:
        count = len(self.running)
        what = self.stopping.reason or "stopping"
        notice = f"{what}: {count} running trial{'s are' if count > 1 else ' is'} finished first"
        again = "; Ctrl-C again saves and stops them now" if self.stopping.asked else ""
        self.on_event(events.Notice(notice + again))

    def _pass_on_problems(self) -> None:
        for problem in [*self.tracking.problems(), *self.asking.notices()]:
            self.on_event(events.Notice(problem))

    def _end(self) -> StudyResult:
        state = "complete"
        if self.stopping.level != GO_ON:
            state = "failed" if self.stopping.reason else "interrupted"
        self.info["reason"] = self.stopping.reason
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
        if state != "complete":
            what = self.stopping.reason or "interrupted"
            self.on_event(
                events.Notice(f"{what}; `memarch study resume {self.folder.name}` goes on")
            )
        self.on_event(events.StudyFinished(result))
        return result

    def _write_report(self) -> None:
        try:
            from memarch.studies.report.write import write_report
        except ImportError:
            return
        try:
            write_report(self.folder.path)
        except Exception as error:  # a report that fails must not take the study with it
            self.on_event(events.Notice(f"no report: {type(error).__name__}: {error}"))

    # Dealing

    def _work_is_left(self) -> bool:
        """Whether some trial surely has to run."""
        planned = self.asking.planned
        return planned is None or len(self._finished()) < planned

    def _finished(self) -> list[Json]:
        """Of the trials that ran themselves: copies count for nothing."""
        return [r for r in self.records.values() if r["state"] in FINISHED and not is_copy(r)]

    def _elapsed(self) -> float:
        return self.elapsed_before + time.monotonic() - self.session_started

    def _fill(self) -> None:
        """Deal trials while there is room, asking for new ones where none waits."""
        while self.stopping.level == GO_ON:
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
        record = new_record(number, variant, draws, seed, run_name(number, variant, {}))
        try:
            resolved = self._resolve(variant, draws, seed)
        except SpecError as error:  # values that each are fine may not fit together
            trial = LiveTrial(record, asked.trial, {})
            self._end_trial(trial, self.judge.verdict(unfit(error)))
            return
        record["solved"] = solved_values(resolved)
        record["hash"] = resolved.hash
        record["mechanism"] = mechanism(resolved.spec["model"])
        known = None if self.settings["repeat"] else self.by_hash.get((resolved.hash, seed))
        record["copy_of"] = known
        several = isinstance(self.settings["seeds"]["model"], list)
        named = draws | record["solved"] | ({"seed": seed} if several else {})
        record["run_name"] = run_name(number, variant, named, known)
        # `record` of a spec: secrets and places that come from `$env` are not written down.
        write_json(self.folder.trial(number).path / "spec.json", resolved.record, sync=False)
        write_origins(self.folder.trial(number).path, resolved.origins)
        trial = LiveTrial(record, asked.trial, resolved.record)
        self._write(trial)
        if known is None:
            self.by_hash[resolved.hash, seed] = number
            self._weigh(trial)
        elif self.records[known]["state"] in FINISHED:
            self._copy(trial)
        else:
            self.copies.setdefault(known, []).append(trial)

    def _weigh(self, trial: LiveTrial) -> None:
        """Let it wait for a worker, unless its model breaks a constraint as it stands."""
        if not self.feasibility.names:
            self.waiting.append(trial)
            return
        self._pool()
        answer = self.feasibility.ask(trial.spec)
        while answer is not None and not ray.wait([answer], timeout=0)[0]:
            self._step(answer)
        verdict, costs = self.feasibility.verdict(trial.spec, answer)
        if verdict is None:
            self.waiting.append(trial)
        else:
            trial.metrics = costs
            self._end_trial(trial, verdict)

    def _resolve(self, variant: str, draws: Json, seed: int) -> Resolved:
        resolved = self.file.resolve(variant, draws)
        given = self.settings["seeds"]["model"]
        return resolved if given == seed else resolved.at({"study.seeds.model": seed})

    # Running

    def _deal(self, trial: LiveTrial) -> None:
        trial.begin_attempt()
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

    def _read_mail(self, ticket: int, messages: list[Message]) -> None:
        for message in messages:
            trial = self.running.get(message.key[0])
            if trial is None or trial.key != message.key:
                continue  # of an attempt that is over
            trial.is_alive()
            for note in message.notes:
                self.on_event(events.Notice(f"trial {trial.number}: {note}"))
            for report in message.reports:
                self._reported(message.key, report)
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
            trial.stop()
        early = self.judge.early_verdict(metrics)
        if early is not None:
            trial.stop(early)

    def _check_time(self) -> None:
        """Tell trials beyond the time limit to stop, and end those that do not, or stand still."""
        stall = self.settings["stall_limit"]
        now = time.monotonic()
        for trial in list(self.running.values()):
            name = "eval_time_limit" if trial.evaluating else "trial_time_limit"
            limit = self.settings[name]
            late = limit and trial.started is not None and now - trial.started > limit
            if late and trial.verdict is None:
                reason = f"stopped: it ran longer than {name}, {limit:g} s"
                trial.stop(Verdict("failed", reason, "time_limit"))
                ray.get(self.mailbox.answer.remote(0, {trial.key}))
            elif stall and trial.started is not None and now - trial.alive > stall:
                reason = f"stalled: no training step and no evaluation for {stall:g} s"
                self._cut_off(trial, Verdict("failed", reason, "stalled"))
            elif trial.verdict and trial.stop_at and now - trial.stop_at > GRACE:
                self._cut_off(trial, trial.verdict)

    def _cut_off(self, trial: LiveTrial, verdict: Verdict) -> None:
        """End an attempt whose worker does not answer."""
        self._pool().kill(trial.key)
        end_orphan(self.folder.trial(trial.number).path, trial.attempt)
        del self.running[trial.number]
        trial.verdict = verdict
        self._finish(trial, failed(""))

    def _returned(self, key: Key, answer: Json) -> None:
        trial = self.running[key[0]]
        fetch_result(self.places.artifacts, self.folder.trial(trial.number).path)
        for report in answer["reports"]:
            self._reported(key, report)
        del self.running[key[0]]
        result = answer["result"]
        if result is None:
            self._put_back(trial)
        elif result["state"] == "trained" and trial.verdict is None:
            trial.evaluating = True
            self.waiting.appendleft(trial)
        elif result.get("failure") == "worker_lost":
            self._worker_died(trial, result)
        else:
            self._finish(trial, result)

    def _worker_died(self, trial: LiveTrial, result: Json) -> None:
        # Cut off from its node it may live on for a while.
        end_orphan(self.folder.trial(trial.number).path, trial.attempt)
        last_act = self.folder.trial(trial.number).result
        if last_act is None and not result.get("counts", True):
            self.waiting.appendleft(trial)
        else:
            self._finish(trial, last_act or result)

    def _put_back(self, trial: LiveTrial) -> None:
        """It waits for `resume`: what it wrote is complete or absent."""
        trial.record["state"] = "waiting"
        with suppress(OSError):  # of a full disk: it is as good as waiting
            self._write(trial)
        self.tracking.changed(trial.number)

    # Telling

    def _finish(self, trial: LiveTrial, result: Json) -> None:
        """An attempt is over: the trial is, too, or it is tried again."""
        verdict = trial.verdict or self.judge.verdict(result)
        trial.metrics = result.get("metrics") or self._last_metrics(trial)
        trial.record["converged"] = result.get("converged")
        if verdict.failure == DISK_FULL:
            self._put_back(trial)
            where = self.folder.trial(trial.number).path
            self.stopping.because(f"no space left for {where}: {verdict.reason}", HALT)
        elif verdict.failure is None or not self._is_tried_again(trial, verdict):
            self._end_trial(trial, verdict)
            self._count(verdict, result.get("place") or "")

    def _last_metrics(self, trial: LiveTrial) -> Json:
        """What a trial without a result wrote last, also where it could not send it any more."""
        reports = list(self.folder.trial(trial.number).progress())
        return dict(reports[-1]["metrics"]) if reports else trial.metrics

    def _is_tried_again(self, trial: LiveTrial, verdict: Verdict) -> bool:
        record, failure = trial.record, str(verdict.failure)
        record["failures"][failure] = record["failures"].get(failure, 0) + 1
        spec = self.policies.another_attempt(failure, record, trial.spec)
        if spec is None:
            return False
        folder = self.folder.trial(trial.number)
        folder.set_aside_result(trial.attempt)
        how = "it goes on from its checkpoint"
        if spec is not trial.spec:
            train = spec["train"]
            record["changes"] = {
                f"train.{name}": train[name] for name in ("batch_size", "accumulate")
            }
            how = f"it goes on with batches of {train['batch_size']}, {train['accumulate']} a step"
            trial.spec = spec
            write_json(folder.path / "spec.json", spec)
        record["state"] = "waiting"
        self._write(trial)
        self.on_event(events.Notice(f"trial {trial.number}: {verdict.reason}; {how}"))
        self.waiting.appendleft(trial)
        return True

    def _end_trial(self, trial: LiveTrial, verdict: Verdict) -> None:
        """Give a trial its final state: record first, then Optuna, then MLflow."""
        record, failure = trial.record, verdict.failure
        record["metrics"], record["reason"] = trial.metrics, verdict.reason
        record["failure"] = failure
        record["state"] = self.policies.ending(failure) if failure else verdict.state
        times = record["failures"].get(failure, 0)
        if times > 1:
            record["reason"] += f" ({times} times)"
        self._write(trial)
        self._tell(trial)
        self.pruning.finish(trial.number, pruned=record["state"] == "pruned")
        self.tracking.changed(trial.number)
        self._write_progress()
        self.on_event(events.TrialFinished(_row(record)))
        for copy in self.copies.pop(trial.number, []):
            self._copy(copy)

    def _count(self, verdict: Verdict, place: str) -> None:
        """Stop a study whose trials fail alike: whatever is wrong, more trials will not mend it."""
        if verdict.failure is not None:
            count = self.policies.stops(verdict.failure, place)
            if count is not None:
                what = f"{verdict.failure}, {place}" if place else verdict.failure
                self.stopping.because(
                    f"{count} trials failed alike ({what}): {verdict.reason}; see study.on_failure",
                    FINISH,
                )

    def _tell(self, trial: LiveTrial) -> None:
        share = share_of_budget(trial.spec, 0, trial.record["metrics"])
        self.asking.tell(trial.optuna, trial.record, share)

    def _copy(self, trial: LiveTrial) -> None:
        """Equal specs are one trial: this one gets the result of the earlier one."""
        record, original = trial.record, self.records[trial.record["copy_of"]]
        record["state"], record["metrics"] = original["state"], dict(original["metrics"])
        record["failure"] = original.get("failure")
        record["reason"] = f"equal to trial {original['number']}, whose result this is"
        record["converged"] = original.get("converged")
        self._write(trial)
        self._tell(trial)
        self.tracking.changed(trial.number)
        self._write_progress()
        self.on_event(events.TrialFinished(_row(record)))

    def _write(self, trial: LiveTrial) -> None:
        self.records[trial.number] = trial.record
        self.asking.count(trial.record)
        self.folder.trial(trial.number).write_record(trial.record)

    # After a restart

    def _recover(self, frozen: optuna.trial.FrozenTrial) -> None:
        """A trial that Optuna thinks is running, of a driver that is gone."""
        number, record = frozen.number, self.records.get(frozen.number)
        asked = self.asking.revive(frozen)
        if record is None:  # the driver died between asking and writing
            self.mended.append(f"trial {number} was drawn and not recorded: it runs now")
            self._admit(asked)
            return
        folder = self.folder.trial(number)
        trained = (folder.path / "trained.json").exists()
        trial = LiveTrial(record, asked.trial, folder.spec or {}, evaluating=trained)
        end_orphan(folder.path)
        result, original = folder.result, record["copy_of"]
        if record["state"] in FINISHED:
            self.mended.append(f"trial {number} is {record['state']}, and Optuna had it running")
            self._tell(trial)
        elif original is not None and self.records[original]["state"] in FINISHED:
            self._copy(trial)
        elif original is not None:
            self.copies.setdefault(original, []).append(trial)
        elif result is not None:
            self.mended.append(f"trial {number} had ended, and was not recorded")
            trial.attempt = record["attempts"]
            self._finish(trial, result)
            self._replay(record)
        else:
            if record["attempts"]:
                self.mended.append(f"trial {number} was cut off: it goes on from its checkpoint")
            self._replay(record)
            self.waiting.append(trial)

    def _report_mending(self) -> None:
        told = self.asking.disagreements(self.records)
        for line in [*self.mended, *told]:
            self.on_event(events.Notice(f"resumed: {line}"))

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
        """Trials that are cut off wait for `resume`."""
        for trial in self.running.values():
            self._pool().kill(trial.key)
            self._put_back(trial)
        self.running.clear()

    # The end

    def _test_finalists(self) -> None:
        """Compute `test/...` once, for all seeds of the best settings, after the search is over."""
        leaders, others = ranking(self.records.values(), self.objective)
        finalists = [*leaders, *others][: self.settings["finalists"]]
        numbers = [record["number"] for setting in finalists for record in setting]
        tests = Finalists(self._pool, self.folder, self.plugins, self.settings["eval_time_limit"])
        for notice in tests.run(numbers, self.stopping):
            self.on_event(events.Notice(notice))
        for number in numbers:
            result = self.folder.trial(number).test
            record = self.records[number]
            if result and not result["metrics"].items() <= record["metrics"].items():
                record["metrics"] |= result["metrics"]
                self.folder.trial(number).write_record(record)
                self.tracking.changed(number)
                self.on_event(events.TrialFinished(_row(record)))

    def _write_progress(self) -> None:
        """`study.json` while trials run: every second, and less often where it takes long."""
        now = time.monotonic()
        if now >= self.info_due:
            self._write_info("running")
            self.info_due = time.monotonic() + max(1.0, INFO_SHARE * (time.monotonic() - now))

    def _write_info(self, state: str) -> None:
        counts: dict[str, int] = {}
        for record in self.records.values():
            counts[record["state"]] = counts.get(record["state"], 0) + 1
        leaders, _ = ranking(self.records.values(), self.objective)
        values = {
            name: fmean(record["metrics"][name] for record in leaders[0])
            for name in self.objective
            if leaders
        }
        self.info |= {
            "state": state,
            "counts": counts,
            "best": [setting[0]["number"] for setting in leaders],
            "best_values": values,
            "elapsed": self._elapsed(),
        }
        self.folder.write_info(self.info)


def _row(record: Json) -> Json:
    names = ("number", "variant", "state", "params", "metrics", "reason", "copy_of", "attempts")
    return {name: record.get(name) for name in (*names, "failure")}
