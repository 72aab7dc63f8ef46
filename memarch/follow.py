"""Running a study in sight: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from memarch.inputs import open_study
from memarch.output import WorkFailedError
from memarch.studies.driver import events
from memarch.studies.records.store import StudyFolder
from memarch.studies.results import leaderboard as board

QUIET_SECONDS = 15.0
"""Without a terminal, a line about what is running comes after this long a silence."""

BEST_ROWS = 5

SUMMARY_SHARE = 20.0
LONG_SUMMARY = 0.02
"""Without a terminal, a summary that takes longer comes again after so many times its time."""

TOLD_COSTS = ("cost/state_bytes", "cost/wall_seconds")


def run(
    file: Path,
    storage: Path,
    overrides: Sequence[str],
    name: str | None,
    or_resume: bool = False,
    **where: Any,
) -> dict[str, Any]:
    """Run a study file, by `run_study`'s other arguments; the study's document."""
    study = open_study(file, overrides, storage)
    study.validate()  # a mistake is told before all the imports
    known = StudyFolder(storage, name or study.study["name"])
    if or_resume and known.exists():
        new = [each for each in overrides if each not in known.info["overrides"]]
        return resume(known.name, storage, new, **where)

    from memarch.studies.driver.sessions import run_study

    return _followed(
        lambda display: run_study(
            file, storage=storage, overrides=overrides, name=name, on_event=display, **where
        ),
        storage,
    )


def resume(name: str, storage: Path, overrides: Sequence[str], **where: Any) -> dict[str, Any]:
    """Go on with a study, by `resume_study`'s other arguments; the study's document."""
    if where.get("file") is not None:  # a mistake is told before all the imports
        open_study(where["file"], overrides, storage).validate()

    from memarch.studies.driver.sessions import resume_study

    return _followed(
        lambda display: resume_study(
            name, storage=storage, overrides=overrides, on_event=display, **where
        ),
        storage,
    )


def _followed(
    work: Callable[[Callable[[events.Event], None]], events.StudyResult], storage: Path
) -> dict[str, Any]:
    from memarch.studies.driver.failures import StudyStoppedError
    from memarch.studies.records.store import show_study

    console = Console(stderr=True)
    with _display(console) as display:
        try:
            result = work(_without_farewell(display))
        except StudyStoppedError as error:
            raise WorkFailedError(str(error)) from error
    return show_study(result.name, storage)


def _without_farewell(display: Callable[[events.Event], None]) -> Callable[[events.Event], None]:
    """All events but the notice of how to go on: the command's last line says it, with options."""

    def take(event: events.Event) -> None:
        if not (isinstance(event, events.Notice) and event.message.startswith("interrupted;")):
            display(event)

    return take


def _display(console: Console) -> Lines | Screen:
    return Screen(console) if console.is_terminal else Lines(console)


@dataclass
class Running:
    """A trial that a worker has now."""

    variant: str
    params: dict[str, Any]
    step: int = 0
    share: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


class Progress:
    """What is known about a running study, from its events."""

    def __init__(self) -> None:
        self.name = ""
        self.path = ""
        self.objective: dict[str, str] = {}
        self.total: int | None = None
        self.before = 0
        """Trials that were finished when this driver began."""
        self.started = self.first_trial = time.monotonic()
        self.running: dict[int, Running] = {}
        self.finished: dict[int, dict[str, Any]] = {}
        """By number, because finalists finish again with their test scores."""
        self.notices: list[str] = []

    def take(self, event: events.Event) -> None:
        """Note an event."""
        if isinstance(event, events.StudyStarted):
            self.name, self.path, self.objective = event.name, event.path, event.objective
            self.total = event.trials
            if event.finished:  # a study goes on
                self.finished = _finished(Path(event.path))
            self.before = len(self.finished)
        elif isinstance(event, events.TrialStarted):
            if not self.running and self.done == self.before:
                self.first_trial = time.monotonic()
            self.running[event.number] = Running(event.variant, dict(event.params))
        elif isinstance(event, events.TrialProgress) and event.number in self.running:
            trial = self.running[event.number]
            trial.step, trial.metrics = event.step, event.metrics
            trial.share = event.share or trial.share
        elif isinstance(event, events.TrialFinished):
            self.running.pop(event.record["number"], None)
            if not board.is_copy(event.record):
                self.finished[event.record["number"]] = event.record
        elif isinstance(event, events.Notice):
            self.notices.append(event.message)

    @property
    def document(self) -> dict[str, Any]:
        """What is finished so far, as `study show` would have it."""
        return {
            "name": self.name,
            "state": "running",
            "objective": self.objective,
            "trials": list(self.finished.values()),
            "best": [],
        }

    @property
    def done(self) -> int:
        return len(self.finished)

    def seconds_left(self) -> float | None:
        """From the pace so far; None where the study has no number of trials, or none is done."""
        new = self.done - self.before
        if self.total is None or not new:
            return None
        under_way = sum(trial.share for trial in self.running.values())
        pace = (time.monotonic() - self.first_trial) / (new + under_way)
        return max(0.0, pace * (self.total - self.done - under_way))

    def summary(self) -> str:
        """`4 of 12 trials done, 2 running, best 0.930 (003 gradmem; floor 0.250), …`."""
        total = "" if self.total is None else f" of {self.total}"
        parts = [f"{self.done}{total} trials done", f"{len(self.running)} running"]
        rows = board.ranked(self.document) if self.objective else []
        if rows:
            parts.append(self._best(rows))
        left = self.seconds_left()
        if left is not None:
            parts.append(f"about {board.duration(left)} left")
        return ", ".join(parts)

    def _best(self, rows: Sequence[board.Trial]) -> str:
        metric, _ = board.main_objective(self.document)
        floors = board.floors(rows, metric)
        best = board.best_memory(rows)
        value = board.figure(best, metric, digits=3)
        against = f"; floor {max(floors.values()):.3f}" if floors else ""
        return f"best {value} ({best['number']:03d} {best['variant']}{against})"

    def _costs(self) -> list[str]:
        """The costs of a trial that are told, each once."""
        objectives = (metric for metric in self.objective if board.is_cost(metric))
        return list(dict.fromkeys([*TOLD_COSTS, *objectives]))

    def row(self, record: dict[str, Any]) -> str:
        """A finished trial in one line."""
        parts = [f"{record['number']:03d}", record["variant"] or "-", board.settings(record)]
        if record["state"] != "complete":
            parts.append(f"{record['state']}: {record['reason']}")
        tests = [metric.replace("eval/", "test/", 1) for metric in self.objective]
        for metric in (*self.objective, *tests):
            if board.score(record, metric) is not None and not board.is_cost(metric):
                parts.append(f"{metric} {board.figure(record, metric)}")
        for cost in self._costs():
            if board.score(record, cost) is not None:
                name = "" if cost in TOLD_COSTS else f"{cost} "  # a unit says what those are
                parts.append(name + board.cost(record, cost))
        return "  ".join(part for part in parts if part)


def _finished(folder: Path) -> dict[int, dict[str, Any]]:
    """Records of the trials that an earlier driver finished, by number."""
    from memarch.studies.records.store import FINISHED, StudyFolder

    records = StudyFolder(folder.parent.parent, folder.name).records()
    return {number: record for number, record in records.items() if record["state"] in FINISHED}


class Lines:
    """Plain lines: one a finished trial, and a sign of life when there is nothing else to tell."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress()
        self.last = time.monotonic()
        self.summary_due = 0.0
        self.told: set[int] = set()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, event: events.Event) -> None:
        progress = self.progress
        progress.take(event)
        if isinstance(event, events.StudyStarted):
            done = event.trials is not None and event.finished >= event.trials
            what = f"all {event.finished} trials are there" if done else "the workers are starting"
            self._say(f"study {event.name} in {event.path}: {what}")
        elif isinstance(event, events.TrialFinished) and not board.is_copy(event.record):
            again = event.record["number"] in self.told
            self.told.add(event.record["number"])
            self._say(progress.row(event.record))
            if not again:
                self._summarise()
        elif isinstance(event, events.Notice):
            self._say(event.message)
        elif time.monotonic() - self.last > QUIET_SECONDS and progress.running:
            now = [f"{n:03d} {t.variant} {t.share:.0%}" for n, t in progress.running.items()]
            self._say(f"running: {', '.join(now)}")

    def _summarise(self) -> None:
        """After each trial, and less often where there are so many that ranking them takes long."""
        before = time.monotonic()
        if before >= self.summary_due:
            self._say(f"    {self.progress.summary()}")
            took = self.last - before
            self.summary_due = self.last + (SUMMARY_SHARE * took if took > LONG_SUMMARY else 0)

    def _say(self, line: str) -> None:
        self.last = time.monotonic()
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class Screen:
    """The live display: what runs, the best so far, and how long it will take."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress()
        self.live = Live(
            console=console, get_renderable=self.render, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> Screen:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def __call__(self, event: events.Event) -> None:
        self.progress.take(event)
        if isinstance(event, events.Notice):
            self.live.console.print(Text(event.message))
        elif isinstance(event, events.TrialFinished) and not board.is_copy(event.record):
            self.live.console.print(Text(self.progress.row(event.record)))

    def render(self) -> RenderableType:
        """The part of the screen that is drawn anew."""
        progress = self.progress
        elapsed = board.duration(time.monotonic() - progress.started)
        head = Text.assemble((progress.name or "starting", "bold"), f"  {elapsed}  ")
        head.append(progress.summary() if progress.objective else "the workers are starting")
        parts: list[RenderableType] = [head]
        if progress.total:
            under_way = sum(trial.share for trial in progress.running.values())
            bar = Table.grid()  # a bar by itself does not end its line
            bar.add_row(ProgressBar(progress.total, progress.done + under_way, width=60))
            parts.append(bar)
        if progress.running:
            parts.append(self._running())
        if progress.finished and progress.objective:
            parts.append(self._best())
        return Group(*parts)

    def _running(self) -> Table:
        made = Table.grid(padding=(0, 2))
        for number, trial in sorted(progress_items(self.progress)):
            made.add_row(
                Text(f"{number:03d}", style="cyan"),
                Text(trial.variant or "-"),
                Text(board.settings({"params": trial.params})),
                ProgressBar(1.0, trial.share, width=20),
                f"step {trial.step}",
                Text(self._scores(trial.metrics)),
            )
        return made

    def _best(self) -> Table:
        made = Table.grid(padding=(0, 2))
        for trial in board.ranked(self.progress.document)[:BEST_ROWS]:
            style = "cyan" if board.is_baseline(trial) else None
            made.add_row(
                f"{trial['number']:03d}",
                Text(trial["variant"] or "-"),
                Text(board.settings(trial)),
                Text(self._scores(trial["metrics"])),
                board.cost(trial, "cost/state_bytes"),
                style=style,
            )
        return made

    def _scores(self, metrics: dict[str, float]) -> str:
        trial = {"metrics": metrics}
        names = [n for n in self.progress.objective if board.score(trial, n) is not None]
        return ", ".join(
            f"{name.rpartition('/')[2]} {board.figure(trial, name, digits=3)}"
            for name in names
            if name != "cost/state_bytes"  # has a column
        )


def progress_items(progress: Progress) -> list[tuple[int, Running]]:
    """Running trials; a copy, because events arrive while the screen is drawn."""
    return list(progress.running.items())
