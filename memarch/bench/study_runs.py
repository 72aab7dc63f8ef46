"""What `bench study` measures, each in a process of its own: `python -m memarch.bench.study_runs`.

Argument: a JSON object with the name of the function and its arguments; answer: a JSON line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memarch.studies.records.store import Json

MARKS = (100, 500, 1000, 2000, 3000, 4000, 5000, 10_000)
"""Numbers of trials at which time and memory are noted."""

STUDY = """
study:
  name: bench
  design: {design}
  objective: {{eval/kv/exact_match: maximize}}
  budget: {{trials: {trials}}}
  sampler: {sampler}
  finalists: 0
vars:
  segment_length: {{choice: [16, 32, 64, 128]}}
  num_tokens: {{int: [1, 64]}}
  lr: {{float: [1.0e-5, 1.0e-1], log: true}}
variants:
  rmt: {{model.memory.main: {{type: rmt, num_tokens: $num_tokens}}}}
  armt: {{model.memory.main: {{type: armt, d_mem: {{choice: [8, 16, 32]}}, layers: all}}}}
task: {{type: kv_retrieval, pairs: 4, format: compact}}
model:
  backbone: {{type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4}}
  segment_length: $segment_length
train: {{budget: {{steps: 100}}, lr: $lr}}
eval: {{kv: {{task: same}}}}
"""


def empty(spec: Mapping[str, Any], folder: Path, report: Any) -> Json:
    """A trial that takes no time."""
    return {"state": "complete", "metrics": {"eval/kv/exact_match": _score(spec)}}


def talkative(spec: Mapping[str, Any], folder: Path, report: Any) -> Json:
    """A trial that reports 10 values 100 times a second, for as long as its study asks."""
    seconds, rate = float(os.environ["MEMARCH_BENCH_SECONDS"]), 100
    begun = time.monotonic()
    for index in range(int(seconds * rate)):
        report(index, {f"train/value{n}": float(index + n) for n in range(10)})
        time.sleep(max(0.0, begun + (index + 1) / rate - time.monotonic()))
    took = time.monotonic() - begun
    return {"metrics": {"eval/kv/exact_match": _score(spec), "train/took": took}}


def _score(spec: Mapping[str, Any]) -> float:
    return float(1 / (1 + abs(spec["train"]["lr"] - 0.003)))


def _study(folder: str, trials: int, sampler: str = "random", design: str = "search") -> Path:
    path = Path(folder) / "bench.yaml"
    path.write_text(STUDY.format(trials=trials, sampler=sampler, design=design), encoding="utf-8")
    return path


class Watch:
    """Times and memory of a study, by its events."""

    def __init__(self, folder: str, *marks: int) -> None:
        self._folder, self._marks = folder, {*MARKS, *marks}
        self.finished = self.values = 0
        self.marks: list[Json] = []
        self.begun = self.ended = 0.0

    def __call__(self, event: Any) -> None:
        kind = type(event).__name__
        if kind == "TrialStarted":
            self.begun = self.begun or time.perf_counter()
        elif kind == "TrialProgress":
            self.values += len(event.metrics)
        elif kind == "TrialFinished":
            self.finished += 1
            self.ended = time.perf_counter()
            if self.finished in self._marks:
                self.note()

    def note(self) -> None:
        """What there is by now."""
        self.marks.append(
            {
                "trials": self.finished,
                "seconds": self.ended - self.begun,
                "megabytes": _megabytes("self"),
                "logged": _logged(Path(self._folder) / "runs" / "mlflow.db"),
            }
        )


def trials(folder: str, count: int) -> Json:
    """A study of so many empty trials."""
    from memarch.studies.driver.sessions import run_study

    watch = Watch(folder, count)
    run_study(
        _study(folder, count),
        storage=Path(folder) / "runs",
        on_event=watch,
        trial_function="memarch.bench.study_runs:empty",
    )
    return {"marks": watch.marks}


def values(folder: str, seconds: float) -> Json:
    """A study whose trials, one a core, do nothing but report."""
    from memarch.studies.driver.sessions import run_study

    os.environ["MEMARCH_BENCH_SECONDS"] = str(seconds)
    cores = os.cpu_count() or 1
    watch = Watch(folder)
    result = run_study(
        _study(folder, cores),
        storage=Path(folder) / "runs",
        on_event=watch,
        trial_function="memarch.bench.study_runs:talkative",
    )
    took = max(trial["metrics"]["train/took"] for trial in result.trials)
    return {
        "workers": cores,
        "values": watch.values,
        "seconds": took,
        "slowdown": took / seconds,
    }


def ask(folder: str, sampler: str, counts: list[int], repeats: int = 5) -> Json:
    """Seconds of one ask, by the number of trials that are there."""
    import optuna

    from memarch.studies.driver.judging import Judge
    from memarch.studies.records.store import StudyFolder
    from memarch.studies.search.asking import Asking
    from memarch.studies.settings.spec import load_study

    study_file = load_study(_study(folder, 10**6, sampler))
    study_file.validate()
    spaces = {name: study_file.space(name) for name in study_file.variants}
    place = StudyFolder(Path(folder), "ask")
    place.write_info({"id": "bench"})
    asking = Asking(place, study_file.study, spaces, Judge(study_file.study))
    asking.open("bench", f"journal:///{folder}/journal", {})
    ledger, study, found = asking._ledger, asking._study, []
    assert ledger is not None
    records: dict[int, Json] = {}
    for count in counts:
        study.sampler = optuna.samplers.RandomSampler(seed=count)
        for _ in range(len(study.get_trials(deepcopy=False)), count):  # as of a random search
            trial = study.ask()
            _, draws = asking._coder.suggest(trial)
            study.tell(trial, draws["lr"])
        with ledger.change():
            pass
        while ledger._count < count:
            time.sleep(0.1)  # its thread is to have nothing to write
        for number in range(len(records), count):
            records[number] = {"number": number, "copy_of": None} | _row(number)
        seconds = []
        for _ in range(repeats):
            before = time.perf_counter()
            asking.wants_another(records, 0.0)
            asked = asking.ask()
            seconds.append(time.perf_counter() - before)
            study.tell(asked.trial, 0.5)
            records[asked.number] = {"number": asked.number, "copy_of": None} | _row(asked.number)
        found.append({"trials": count, "seconds": sorted(seconds)[len(seconds) // 2]})
    asking.close()
    return {"sampler": sampler, "asks": found}


def _row(number: int) -> Json:
    """Of a trial like no other, so that the next one is the sampler's to draw."""
    params = {"num_tokens": 1 + number % 64, "lr": 1e-3 + 1e-9 * number, "segment_length": 16}
    variant = ("rmt", "armt")[number % 2]
    return {"variant": variant, "params": params, "seed": 1, "metrics": {}, "state": "complete"}


class Host:
    """A process that holds many simulated workers: they wait, report, and return."""

    def __init__(self, mailbox: Any, seconds: float, every: float) -> None:
        self._mailbox, self._seconds, self._every = mailbox, seconds, every

    async def run(self, job: Any) -> Json:
        """A trial: like a worker's, without files and without training."""
        key, begun = (job.number, job.attempt), time.time()
        await self._mailbox.post.remote(key, [])
        length = self._seconds * (0.5 + (job.number * 0.618) % 1)  # they do not end together
        step, late = 0, 0.0
        while time.time() - begun < length:
            await asyncio.sleep(min(self._every, length))
            step += 1
            sent = time.time()
            report = {"attempt": job.attempt, "step": step, "time": sent, "metrics": {"loss": 1.0}}
            await self._mailbox.post.remote(key, [report])
            late = max(late, time.time() - sent)
        metrics = {
            "eval/kv/exact_match": _score(job.spec),
            "train/begun": begun,
            "train/ended": time.time(),
            "train/answer": late,
        }
        return {"result": {"state": "complete", "metrics": metrics}, "reports": []}


def workers(folder: str, count: int, seconds: float, every: float, trials: int) -> Json:
    """A study over simulated workers: real driver, mailbox and messages, no processes of theirs."""
    import ray

    from memarch.studies.cluster import pool
    from memarch.studies.driver import driver, sessions

    hosts: list[Any] = []
    nothing: Any = None

    class SimulatedPool(pool.Pool):
        def warm(self, size: Any, most: int | None) -> None:
            nonlocal nothing
            nothing = ray.put(0)
            made = ray.remote(Host).options(num_cpus=0, max_concurrency=count)
            hosts.extend(made.remote(self._mailbox, seconds, every) for _ in range(4))

        def fits(self, size: Any) -> bool:
            return len(self._jobs) < count

        def _idle(self, size: Any) -> pool.Seat:
            return pool.Seat(hosts[len(self._jobs) % len(hosts)], size, nothing)

        def _dismiss(self, seat: pool.Seat) -> None:
            return None

    driver.Pool = SimulatedPool  # type: ignore[misc]
    watch = Watch(folder)
    result = sessions.run_study(
        _study(folder, trials),
        storage=Path(folder) / "runs",
        on_event=watch,
        trial_function="memarch.bench.study_runs:empty",
    )
    rows = [trial["metrics"] for trial in result.trials]
    return _busy(rows, count) | {"trials": len(rows), "reports": watch.values}


def _busy(rows: list[Json], count: int) -> Json:
    """How many of the workers had a trial, between the first full house and the last ask."""
    begun = sorted(row["train/begun"] for row in rows)
    full, over = begun[min(count, len(begun)) - 1], begun[-1]
    spent = sum(
        max(0.0, min(row["train/ended"], over) - max(row["train/begun"], full)) for row in rows
    )
    window = max(over - full, 1e-9)
    return {
        "workers": count,
        "busy": spent / (window * count),
        "window": window,
        "fill": full - begun[0],
        "trials_per_second": sum(full < at <= over for at in begun) / window,
        "slowest_answer": max(row["train/answer"] for row in rows),
    }


def share(folder: str, file: str, overrides: list[str]) -> Json:
    """A study of real trainings: when its first began and its last ended."""
    from memarch.studies.driver.sessions import run_study

    begun = time.time()
    result = run_study(file, storage=Path(folder) / "runs", overrides=overrides)
    done = time.time()
    folders = sorted((Path(result.path) / "trials").iterdir())
    starts = [(each / "worker.json").stat().st_mtime for each in folders]
    ends = [(each / "result.json").stat().st_mtime for each in folders]
    return {
        "trials": len(folders),
        "states": sorted({trial["state"] for trial in result.trials}),
        "specs": [str(each / "spec.json") for each in folders],
        "seconds": max(ends) - min(starts),
        "whole": done - begun,
        "each": [end - start for start, end in zip(starts, ends, strict=True)],
    }


def by_hand(folder: str, specs: list[str]) -> Json:
    """The same trainings one after the other in one process, as `memarch train` runs them."""
    import torch

    from memarch.studies.training.trial import train_spec

    torch.set_num_threads(1)
    each, first = [], time.time()
    for index, path in enumerate(specs):
        spec = json.loads(Path(path).read_text(encoding="utf-8"))
        before = time.time()
        train_spec(spec, Path(folder) / f"hand-{os.getpid()}-{index}", lambda *_: False)
        each.append(time.time() - before)
    return {"begun": first, "ended": time.time(), "each": each}


def _megabytes(process: str) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def _logged(database: Path) -> int | None:
    """Runs that MLflow has to their end; None where it is off."""
    if not database.exists():
        return None
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10) as connection:
        query = "SELECT COUNT(*) FROM runs WHERE status IN ('FINISHED', 'FAILED')"
        (found,) = connection.execute(query).fetchone()
    return int(found)


FUNCTIONS = {f.__name__: f for f in (trials, values, ask, workers, share, by_hand)}


def main() -> None:
    request = json.loads(sys.argv[1])
    answer_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = FUNCTIONS[request.pop("function")](**request)
    print(json.dumps(answer), file=answer_to, flush=True)


if __name__ == "__main__":
    main()
