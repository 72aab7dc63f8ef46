"""Tables on narrow terminals and in pipes: nothing is cut, and what has no room is named."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from memarch.show import leaderboard
from memarch.studies.results.leaderboard import headings
from memarch.tables import heading

METRIC = "eval/kv/exact_match"
TRIALS = [
    {
        "number": number,
        "variant": variant,
        "state": "complete",
        "params": {"segment_length": 16, "num_tokens": number},
        "metrics": {
            METRIC: 0.9 - number / 10,
            "test/kv/exact_match": 0.8,
            "eval/kv/write_steps-2/exact_match": 0.7,
            "cost/state_bytes": 1024.0,
            "cost/parameters": 136_000.0,
            "cost/wall_seconds": 123.0,
        },
        "reason": "",
    }
    for number, variant in enumerate(["gradmem", "full_attention"])
]
STUDY = {
    "name": "s",
    "state": "complete",
    "objective": {METRIC: "maximize", "eval/kv/write_steps-2/exact_match": "maximize"},
    "trials": TRIALS,
    "best": [0],
}


def printed(width: int, *, terminal: bool) -> str:
    out = Console(file=io.StringIO(), width=width, force_terminal=terminal, no_color=True)
    out.print(leaderboard(STUDY), crop=False)
    return re.sub(r"\x1b\[[\d;]*m", "", out.file.getvalue())


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_terminal_shows_the_columns_that_fit_and_names_the_others(width: int) -> None:
    text = printed(width, terminal=True)
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert ("no room for" in text) == (width < 140)
    assert all(word in text for word in ("0.9000", "full_attention", "segment_length"))
    if width < 140:
        missing = re.findall(r"no room for ([^:]*):", text.replace("\n", " "))[0].split(", ")
        assert missing[-1] == "time"


def test_a_pipe_is_as_wide_as_the_table() -> None:
    text = printed(60, terminal=False)
    assert "…" not in text
    assert "no room" not in text
    assert all(word in text for word in ("0.8000", "136k", "2 min 03 s"))


def test_headings_are_short_and_no_two_read_the_same() -> None:
    assert headings([METRIC]) == {METRIC: "exact_match"}
    names = [METRIC, "test/kv/exact_match", "eval/kv/write_steps-2/exact_match", "eval/qa/loss"]
    assert list(headings(names).values()) == [
        "eval/exact_match",
        "test/exact_match",
        "eval/write_steps-2/exact_match",
        "loss",
    ]
    assert list(headings(["a/b/x", "b/a/x"]).values()) == ["a/b/x", "b/a/x"]
    assert headings(["eval/kv/state"], taken=["state"]) == {"eval/kv/state": "eval/kv/state"}


def test_a_long_heading_goes_on_in_the_next_line() -> None:
    assert heading("exact_match") == "exact_match"
    assert heading("test/exact_match") == "test/exact_\nmatch"
    assert heading("peak_activation_bytes") == "peak_\nactivation_\nbytes"
