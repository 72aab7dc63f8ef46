"""What a running study shows: progress, the best against the floor, time left, a row a trial."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from memarch.follow import Lines, Progress, Screen
from memarch.studies.driver import events
from memarch.studies.results import leaderboard as board

METRIC = "eval/kv/exact_match"


def record(number: int, variant: str, score: float, **more: Any) -> dict[str, Any]:
    metrics = {METRIC: score, "eval/kv/floor/blind": 0.25, "cost/state_bytes": 256}
    return {
        "number": number,
        "variant": variant,
        "state": "complete",
        "params": {"variant": variant, "num_tokens": 4},
        "metrics": metrics,
        "reason": "",
        "attempts": 1,
    } | more


EVENTS = [
    events.StudyStarted("s", "/runs/s", {METRIC: "maximize"}, "search", 4, 0),
    events.TrialStarted(0, "none", {}),
    events.TrialStarted(1, "rmt", {"num_tokens": 4}),
    events.TrialProgress(1, 50, {METRIC: 0.5}, 0.5),
    events.TrialFinished(record(0, "none", 0.24)),
    events.Notice("the worker of trial 2 died; it starts again"),
    events.TrialFinished(record(1, "rmt", 0.93)),
    events.TrialStarted(2, "gradmem", {"num_tokens": 8}),
]


def told(display_class: type[Lines] | type[Screen], more: list[events.Event]) -> str:
    console = Console(file=io.StringIO(), width=150, force_terminal=display_class is Screen)
    with display_class(console) as display:
        for event in [*EVENTS, *more]:
            display(event)
        if isinstance(display, Screen):
            console.print(display.render())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_lines_tell_every_finished_trial_and_where_the_study_stands() -> None:
    text = told(Lines, [])
    assert "000  none  num_tokens 4  eval/kv/exact_match 0.2400  256 B" in text
    assert "1 of 4 trials done, 1 running, best 0.240 (000 none; floor 0.250)" in text
    assert "2 of 4 trials done, 0 running, best 0.930 (001 rmt; floor 0.250), about" in text
    assert "the worker of trial 2 died; it starts again" in text


def test_a_cost_that_is_an_objective_is_told_once_and_in_its_unit() -> None:
    progress = Progress()
    goals = {METRIC: "maximize", "cost/state_bytes": "minimize"}
    progress.take(events.StudyStarted("s", "/runs/s", goals, "search", 4, 0))
    trial = record(0, "none", 0.24)
    assert progress.row(trial) == "000  none  num_tokens 4  eval/kv/exact_match 0.2400  256 B"
    document = progress.document | {"trials": [trial]}
    assert board.columns(document, [trial]) == ([METRIC], {"cost/state_bytes": "state"})


def test_a_failed_trial_is_told_with_its_reason() -> None:
    failed = record(2, "gradmem", 0.0, state="failed", reason="NaN loss at step 3", metrics={})
    text = told(Lines, [events.TrialFinished(failed)])
    assert "002  gradmem  num_tokens 4  failed: NaN loss at step 3" in text


def test_a_finalist_that_gets_its_test_score_is_not_counted_twice() -> None:
    again = record(1, "rmt", 0.93)
    again["metrics"] = again["metrics"] | {"test/kv/exact_match": 0.91}
    text = told(Lines, [events.TrialFinished(again)])
    assert "test/kv/exact_match 0.9100" in text
    assert "3 of 4" not in text


def test_the_screen_shows_what_runs_and_the_best() -> None:
    text = told(Screen, [events.TrialProgress(2, 70, {METRIC: 0.4}, 0.25)])
    assert "gradmem" in text
    assert "step 70" in text
    assert "best 0.930" in text


def test_time_left_needs_a_number_of_trials() -> None:
    progress = Progress()
    for event in EVENTS:
        progress.take(event)
    assert progress.seconds_left() is not None
    progress.total = None
    assert progress.seconds_left() is None
    assert "2 trials done" in progress.summary()
