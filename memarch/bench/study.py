"""`bench study`: what orchestration costs, part by part, each in processes of its own.

    trials    empty trials a second with MLflow off and on; time and memory by number of trials
    values    reported values a second, from trials that do nothing else
    ask       the sampler's own time for one trial, by the number of trials that it knows
    workers   1,000 simulated workers: real driver, mailbox and messages; a worker is a coroutine
              that waits, reports and returns, so that none has a process or files of its own
    share     real trainings on all cores against the same by hand, one process a core

A rate is the study's, so it holds what Ray, Optuna, files and workers take on the same machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from memarch.output import WorkFailedError

if TYPE_CHECKING:
    from memarch.bench.result import Document, Row

PARTS = ("trials", "values", "ask", "workers", "share")
ASKS = {"random": [10, 1000, 5000], "tpe": [10, 100, 300, 1000, 2000], "nsga2": [10, 1000, 5000]}

TRAINING = """
study: {{name: share, design: grid, objective: {{eval/kv/exact_match: maximize}}, finalists: 0}}
variants:
  rmt: {{model.memory.main: {{type: rmt, num_tokens: 4}}}}
task: {{type: kv_retrieval, pairs: 8, format: compact}}
model:
  backbone: {{type: llama, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4}}
  segment_length: 16
  schedule: sequential
train: {{budget: {{steps: {steps}}}, batch_size: 64, lr: {{choice: [{rates}]}}}}
eval: {{kv: {{task: same, size: 256}}}}
resources: {{cpus: 1}}
"""


@dataclass(frozen=True)
class Settings:
    """What to measure, and how much of it."""

    parts: Sequence[str] = PARTS
    trials: int = 5000
    seconds: float = 15.0
    """Of reporting."""
    workers: int = 1000
    worker_trials: int = 3000
    worker_seconds: float = 40.0
    steps: int = 300
    """Of a training of the share."""
    trainings: int = 4
    """A core."""


def run(settings: Settings, note: Callable[[str], None]) -> Iterator[Document]:
    """What is found so far, after every part; `note` is told of each as it begins."""
    import torch

    from memarch.bench.result import document, duration

    rows: list[Row] = []
    start = perf_counter()
    for part in settings.parts:
        for name, measure in _MEASURES[part](settings):
            note(f"[{duration(perf_counter() - start)}] {part}: {name}")
            rows += measure()
            yield document("study", torch.device("cpu"), rows)


def text(found: Document) -> str:
    """One line a figure."""
    lines = [f"{row['part']:8} {row['case']:58} {row['figure']}" for row in found["rows"]]
    packages = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return "\n".join([*lines, "", f"{found['device']}; {packages}"])


Measures = Iterator[tuple[str, Callable[[], "list[Row]"]]]


def _trials(settings: Settings) -> Measures:
    for name, uri in (("MLflow off", "off"), ("MLflow on", "")):
        yield f"{settings.trials} empty trials, {name}", partial(_rates, settings, name, uri)


def _rates(settings: Settings, name: str, uri: str) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="memarch-bench-") as folder:
        marks = _ask("trials", folder, uri, count=settings.trials)["marks"]
    rows, before = [], {"trials": 0, "seconds": 0.0}
    for mark in marks:
        count, seconds = mark["trials"], mark["seconds"]
        apart = (seconds - before["seconds"]) / (count - before["trials"])
        figure = f"{count / seconds:.1f} trials/s, {1000 * apart:.1f} ms each since the last, "
        figure += f"{mark['megabytes']:.0f} MB"
        behind = None if mark["logged"] is None else count - mark["logged"]
        if behind is not None:
            figure += f", MLflow has all but {behind}"
        rows.append(
            _row(
                "trials",
                f"{name}, up to {count} trials",
                figure,
                mlflow=not uri,
                trials=count,
                per_second=count / seconds,
                seconds_each_since_last=apart,
                megabytes=mark["megabytes"],
                not_logged_yet=behind,
            )
        )
        before = mark
    return rows


def _values(settings: Settings) -> Measures:
    def measure() -> list[Row]:
        with tempfile.TemporaryDirectory(prefix="memarch-bench-") as folder:
            found = _ask("values", folder, "", seconds=settings.seconds)
        rate = found["values"] / found["seconds"]
        figure = f"{rate:.0f} values/s; the trials took {found['slowdown']:.2f}x their time"
        case = f"{found['workers']} workers, 1,000 values/s each, MLflow on"
        return [_row("values", case, figure, per_second=rate, slowdown=found["slowdown"])]

    yield f"{settings.seconds:g} s of reports", measure


def _asks(settings: Settings) -> Measures:
    for sampler, counts in ASKS.items():
        yield sampler, partial(_curve, sampler, counts)


def _curve(sampler: str, counts: list[int]) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="memarch-bench-") as folder:
        found = _ask("ask", folder, "off", sampler=sampler, counts=counts)
    return [
        _row(
            "ask",
            f"{sampler}, {ask['trials']} trials known",
            f"{1000 * ask['seconds']:.1f} ms",
            sampler=sampler,
            trials=ask["trials"],
            seconds=ask["seconds"],
        )
        for ask in found["asks"]
    ]


def _workers(settings: Settings) -> Measures:
    def measure() -> list[Row]:
        with tempfile.TemporaryDirectory(prefix="memarch-bench-") as folder:
            found = _ask(
                "workers",
                folder,
                "off",
                count=settings.workers,
                seconds=settings.worker_seconds,
                every=10.0,
                trials=settings.worker_trials,
            )
        figure = (
            f"{found['busy']:.1%} busy at {found['trials_per_second']:.1f} trials/s; all had a "
            f"trial after {found['fill']:.0f} s; slowest answer {found['slowest_answer']:.2f} s"
        )
        length = f"{settings.worker_seconds / 2:.0f} to {1.5 * settings.worker_seconds:.0f} s"
        case = f"{settings.workers} simulated workers, trials of {length}"
        return [_row("workers", case, figure, **found)]

    yield f"{settings.worker_trials} trials over {settings.workers} simulated workers", measure


def _share(settings: Settings) -> Measures:
    def measure() -> list[Row]:
        cores = os.cpu_count() or 1
        with tempfile.TemporaryDirectory(prefix="memarch-bench-") as folder:
            file = Path(folder) / "share.yaml"
            rates = ", ".join(f"{0.001 * (n + 1):g}" for n in range(cores * settings.trainings))
            file.write_text(TRAINING.format(steps=settings.steps, rates=rates), encoding="utf-8")
            study = _ask("share", folder, "", file=str(file), overrides=[])
            if study["states"] != ["complete"]:
                raise WorkFailedError(f"trainings ended as {study['states']}")
            processes = [
                _start("by_hand", folder, "off", specs=study["specs"][core::cores])
                for core in range(cores)
            ]
            hands = [_answer(process) for process in processes]
        by_hand = max(h["ended"] for h in hands) - min(h["begun"] for h in hands)
        more = study["seconds"] / by_hand - 1
        figure = f"{more:+.1%}: {study['seconds']:.1f} s in the study, {by_hand:.1f} s by hand"
        case = f"{study['trials']} trainings on {cores} cores, first begun to last ended"
        return [
            _row(
                "share",
                case,
                figure,
                study_seconds=study["seconds"],
                whole_seconds=study["whole"],
                by_hand_seconds=by_hand,
                more=more,
            )
        ]

    yield "real trainings in a study and by hand", measure


_MEASURES = dict(zip(PARTS, (_trials, _values, _asks, _workers, _share), strict=True))


def _row(part: str, case: str, figure: str, **more: object) -> Row:
    return {"part": part, "case": case, "figure": figure, **more}


def _ask(function: str, folder: str, uri: str, **arguments: object) -> Row:
    return _answer(_start(function, folder, uri, **arguments))


def _start(function: str, folder: str, uri: str, **arguments: object) -> subprocess.Popen[str]:
    """A process of its own for one measurement; MLflow where `uri` says, or in the folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name in ("MLFLOW_TRACKING_URI", "MEMARCH_DATABASE", "MEMARCH_ARTIFACTS"):
        environment.pop(name, None)
    if uri:
        environment["MLFLOW_TRACKING_URI"] = uri
    request = json.dumps({"function": function, "folder": folder, **arguments})
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "memarch.bench.study_runs", request],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )


def _answer(process: subprocess.Popen[str]) -> Row:
    answer, _ = process.communicate()
    if process.returncode:
        raise WorkFailedError(f"a measurement ended with exit code {process.returncode}")
    found: Row = json.loads(answer)
    return found
