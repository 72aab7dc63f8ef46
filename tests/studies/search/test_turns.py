"""Whose turn it is: first points, every variant once, replicates, racing, resumed as if never cut.

A study is played in memory: each trial that is asked gets a score by its point and seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memarch.search_spaces.ranges import Choice, Float, Int
from memarch.studies.search.racing import Race
from memarch.studies.search.sampling import Point
from memarch.studies.search.turns import Turns

OBJECTIVE = {"eval/kv/exact_match": "maximize"}
SPACES = {"none": {}, "rmt": {"tokens": Choice((2, 4, 8))}, "armt": {"d_mem": Int(1, 4)}}


def settings(**given: Any) -> dict[str, Any]:
    seeds = {"model": given.pop("seeds", [1]), "search": 3}
    defaults = {"design": "search", "sampler": {"type": "random"}, "seeds": seeds}
    return defaults | given


def record(number: int, point: Point, score: float | None, state: str = "complete") -> dict:
    metrics = {} if score is None else {"eval/kv/exact_match": score}
    return {
        "number": number,
        "variant": point.variant,
        "params": point.draws,
        "seed": point.seed,
        "state": state,
        "metrics": metrics,
    }


def play(turns: Turns, score: Any, most: int = 100, drawn: Any = None, begun: Any = ()) -> list:
    """The records of a study on one worker: each trial ends before the next is asked."""
    records = {row["number"]: row for row in begun}
    while len(records) < most and (turn := turns.next(records)) is not None:
        variant = turn.variant if turn.variant is not None else "rmt"
        draws = dict(turn.draws)
        for name in SPACES.get(variant, {}):
            draws.setdefault(name, drawn(len(records)) if drawn else 2)
        point = Point(variant, draws, turn.seed)
        number = len(records)
        turns.note(number, point)
        records[number] = record(number, point, score(point))
    return list(records.values())


def told(rows: list) -> list[tuple]:
    return [(row["variant"], *row["params"].values(), row["seed"]) for row in rows]


def grid(seeds: list[int], folder: Path | None = None, **given: Any) -> Turns:
    race = None if folder is None else Race(2, given.pop("objective", OBJECTIVE), folder)
    spaces = given.pop("spaces", {"": {"x": Choice((0, 1, 2, 3))}})
    return Turns(settings(design="grid", seeds=seeds), spaces, race=race, **given)


def test_first_points_come_first_then_every_variant_that_is_left():
    turns = Turns(settings(), SPACES, first=[("armt", {"d_mem": 3}), ("armt", {})])
    assert told(play(turns, lambda point: 0, 4)) == [
        ("armt", 3, 1),
        ("armt", 2, 1),
        ("none", 1),
        ("rmt", 2, 1),
    ]


def test_a_search_gives_a_point_all_its_seeds_before_the_next():
    turns = Turns(settings(seeds=[1, 2]), SPACES)
    assert told(play(turns, lambda point: 0, 5)) == [
        ("none", 1),
        ("none", 2),
        ("rmt", 2, 1),
        ("rmt", 2, 2),
        ("armt", 2, 1),
    ]


def test_a_search_that_repeats_itself_takes_a_new_point_of_the_variant_tried_least():
    turns = Turns(settings(), {"rmt": SPACES["rmt"]})
    rows = told(play(turns, lambda point: 0, 5))
    assert [rows[n] for n in (0, 1, 3)] == [("rmt", 2, 1)] * 3
    assert {rows[n][1] for n in (2, 4)} == {4, 8}


def test_a_space_too_large_to_list_is_left_to_the_sampler():
    spaces = {"": {f"x{n}": Choice(tuple(range(10))) for n in range(9)} | {"lr": Float(0, 1)}}
    turns = Turns(settings(), spaces)
    point = Point("", {"lr": 0.5}, 1)
    turns.note(0, point)
    turns.note(1, point)
    turn = turns.next({})
    assert turn is not None
    assert turn.draws == {}
    without_lr = {"": {name: r for name, r in spaces[""].items() if name != "lr"}}
    turns = Turns(settings(), without_lr)
    turns.note(0, point)
    turns.note(1, point)
    assert turns.next({}).draws == {}  # 10^9 points


@pytest.mark.parametrize("cut", [3, 8, 13])
def test_a_study_cut_off_goes_on_as_an_uninterrupted_one_would(tmp_path, cut):
    def score(point: Point) -> float:
        return point.draws["x"] / 3

    whole = play(grid([1, 2, 3, 4, 5], tmp_path / "whole"), score)
    begun = play(grid([1, 2, 3, 4, 5], tmp_path / "cut"), score, most=cut)
    assert told(play(grid([1, 2, 3, 4, 5], tmp_path / "cut"), score, begun=begun)) == told(whole)
    assert len(whole) < 20


def test_more_seeds_for_every_point_and_for_some():
    rows = play(grid([1]), lambda point: 0)
    every = told(play(grid([1, 7]), lambda point: 0, begun=rows))[4:]
    assert every == [("", x, 7) for x in range(4)]
    more = [{"variant": "", "params": {"x": x}, "seeds": [8, 9]} for x in (3, 1)]
    turns = grid([1], more_seeds=more)
    assert turns.planned == 8
    assert told(play(turns, lambda point: 0, begun=rows))[4:] == [
        ("", 1, 8),
        ("", 1, 9),
        ("", 3, 8),
        ("", 3, 9),
    ]


# Racing


def table(scores: dict[int, list[float]]) -> Any:
    """Scores by point and seed."""
    return lambda point: scores[point.draws["x"]][point.seed - 1]


def seeds_of(rows: list, x: int) -> list[int]:
    return [row["seed"] for row in rows if row["params"] == {"x": x}]


def test_what_cannot_win_gets_no_more_seeds_and_the_rest_all_of_them(tmp_path):
    scores = {0: [0.0] * 5, 1: [1.0] * 5, 2: [0.0, 1.0, 1.0, 0.0, 1.0], 3: [0.9] * 5}
    turns = grid([1, 2, 3, 4, 5], tmp_path)
    rows = play(turns, table(scores))
    assert {x: len(seeds_of(rows, x)) for x in scores} == {0: 3, 1: 5, 2: 5, 3: 5}
    assert turns.race is not None
    (dropped,) = turns.race.dropped
    assert (dropped["params"], dropped["trials"], dropped["seeds"]) == ({"x": 0}, [0, 4, 8], 5)
    assert "after 3 of 5 seeds its median of eval/kv/exact_match can reach 0" in dropped["reason"]
    assert "racing: the point of trial 0 gets no more seeds" in turns.race.notices()[0]
    assert turns.race.notices() == []


def test_one_bad_seed_drops_nothing_and_two_of_five_neither(tmp_path):
    scores = {0: [0.0, 0.0, 1.0, 1.0, 1.0], 1: [1.0] * 5, 2: [0.0, 1, 1, 1, 1], 3: [1.0] * 5}
    rows = play(grid([1, 2, 3, 4, 5], tmp_path), table(scores))
    assert len(rows) == 20


def test_of_three_seeds_two_bad_ones_decide(tmp_path):
    scores = {0: [0.0, 0.1, 1.0], 1: [0.9, 0.8, 1.0], 2: [0.0, 0.9, 0.9], 3: [0.7, 0.7, 0.8]}
    rows = play(grid([1, 2, 3], tmp_path), table(scores))
    assert {x: len(seeds_of(rows, x)) for x in scores} == {0: 2, 1: 3, 2: 3, 3: 3}


def test_racing_never_loses_the_winner_by_median_or_by_mean(tmp_path):
    """Bimodal results over many points and draws: whoever wins all seeds wins the race."""
    import random
    import statistics

    saved = 0
    for trial in range(60):
        chance = random.Random(trial)
        solves = {x: chance.random() for x in range(4)}
        scores = {
            x: [chance.uniform(0.8, 1) if chance.random() < p else chance.uniform(0, 0.3)
                for _ in range(5)]
            for x, p in solves.items()
        }  # fmt: skip
        rows = play(grid([1, 2, 3, 4, 5], tmp_path / str(trial)), table(scores))
        saved += 20 - len(rows)
        for centre in (statistics.median, statistics.fmean):
            winner = max(scores, key=lambda x: centre(scores[x]))
            assert len(seeds_of(rows, winner)) == 5, (trial, scores)
    assert saved > 60


def test_a_failed_seed_counts_as_the_worst_and_a_pruned_one_as_unknown(tmp_path):
    for state, dropped in (("pruned", [2]), ("failed", [0, 2])):
        turns = grid([1, 2, 3], tmp_path / state, spaces={"": {"x": Choice((0, 1, 2))}})
        scores = {0: None if state == "failed" else 0.1, 1: 0.9, 2: 0.1}
        rows = {}
        for number in range(6):
            x = number % 3
            point = Point("", {"x": x}, number // 3 + 1)
            rows[number] = record(number, point, scores[x], "complete" if x else state)
        while turn := turns.next(rows):
            point = Point("", turn.draws, turn.seed)
            rows[len(rows)] = record(len(rows), point, 0.9)
        assert turns.race is not None
        assert [row["params"]["x"] for row in turns.race.dropped] == dropped


def test_a_running_seed_is_waited_for_and_others_go_on(tmp_path):
    turns = grid([1, 2, 3], tmp_path, spaces={"": {"x": Choice((0, 1))}})
    rows = {
        n: record(n, Point("", {"x": n % 2}, n // 2 + 1), 0.5, "running" if n == 2 else "complete")
        for n in range(4)
    }
    turn = turns.next(rows)
    assert turn is not None
    assert (turn.draws, turn.seed) == ({"x": 1}, 3)
    turns.note(4, Point("", {"x": 1}, 3))
    rows[4] = record(4, Point("", {"x": 1}, 3), None, "running")
    assert turns.next(rows) is None  # nothing that could be decided now
    rows[2] = record(2, Point("", {"x": 0}, 2), 0.5)
    turn = turns.next(rows)
    assert turn is not None
    assert (turn.draws, turn.seed) == ({"x": 0}, 3)


def test_a_point_that_is_worse_but_cheaper_stays_in_a_race_of_two_objectives(tmp_path):
    objective = OBJECTIVE | {"cost/state_bytes": "minimize"}
    race = Race(2, objective, tmp_path)
    turns = Turns(
        settings(design="grid", seeds=[1, 2, 3]), {"": {"x": Choice((0, 1, 2))}}, race=race
    )
    scores = {0: (0.1, 64.0), 1: (0.9, 128.0), 2: (0.1, 128.0)}
    rows = {}
    for number in range(6):
        point = Point("", {"x": number % 3}, number // 3 + 1)
        rows[number] = record(number, point, scores[number % 3][0])
        rows[number]["metrics"]["cost/state_bytes"] = scores[number % 3][1]
    while (turn := turns.next(rows)) is not None:
        number = len(rows)
        point = Point("", turn.draws, turn.seed)
        turns.note(number, point)
        rows[number] = record(number, point, scores[point.draws["x"]][0])
        rows[number]["metrics"]["cost/state_bytes"] = scores[point.draws["x"]][1]
    assert [row["params"] for row in race.dropped] == [{"x": 2}]
