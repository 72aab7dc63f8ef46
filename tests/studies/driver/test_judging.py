"""What makes a trial feasible, good, and best."""

from __future__ import annotations

import random

import pytest

from memarch.studies.driver.judging import Judge, Verdict, share_of_budget
from memarch.studies.records.tracking import run_name
from memarch.studies.results.ranking import ranking

JUDGE = Judge(
    {
        "objective": {"eval/kv/exact_match": "maximize"},
        "constraints": {"cost/state_bytes": {"max": 100, "min": 10}},
    }
)


@pytest.mark.parametrize(
    ("state_bytes", "verdict"),
    [
        (100, ("complete", "")),
        (10, ("complete", "")),
        (101, ("infeasible", "cost/state_bytes is 101, max 100")),
        (9, ("infeasible", "cost/state_bytes is 9, min 10")),
        (None, ("failed", "cost/state_bytes is not a finite number", "not_finite")),
        (float("inf"), ("failed", "cost/state_bytes is not a finite number", "not_finite")),
    ],
)
def test_constraints_hold_at_their_limits(state_bytes, verdict):
    metrics = {"eval/kv/exact_match": 0.5, "cost/state_bytes": state_bytes}
    assert JUDGE.verdict({"state": "complete", "metrics": metrics}) == Verdict(*verdict)


def test_violations_are_zero_or_less_where_a_constraint_holds():
    assert JUDGE.violations({"cost/state_bytes": 120}) == {
        "cost/state_bytes/max": 20,
        "cost/state_bytes/min": -110,
    }


def test_what_failed_or_was_pruned_stays_so():
    for state in ("failed", "pruned"):
        verdict = JUDGE.verdict({"state": state, "reason": "why", "metrics": {}})
        assert verdict[:2] == (state, "why")


def test_only_costs_that_do_not_change_are_judged_early():
    judge = Judge({"objective": {}, "constraints": {"cost/wall_seconds": {"max": 1}}})
    assert judge.early_verdict({"cost/wall_seconds": 5}) is None
    assert JUDGE.early_verdict({"cost/state_bytes": 200}) is not None


@pytest.mark.parametrize(
    ("budget", "share"),
    [({"steps": 200}, 0.5), ({"tokens": 4000.0}, 0.25), ({"hours": 0.1, "steps": None}, 0.1)],
)
def test_the_share_of_a_budget_is_told_in_its_unit(budget, share):
    metrics = {"train/tokens": 1000.0, "train/seconds": 36.0}
    assert share_of_budget({"train": {"budget": budget}}, 100, metrics) == pytest.approx(share)
    assert share_of_budget({"train": {"budget": {"flops": 1e9}}}, 100, metrics) is None


def row(number: int, *values: float, state: str = "complete", **other: object) -> dict:
    metrics = dict(zip("ab", values, strict=False))
    params = {"n": number}
    base = {"number": number, "variant": "v", "params": params, "copy_of": None, "seed": 0}
    return base | {"state": state, "metrics": metrics} | other


def ranked(rows: list[dict], **objective: str) -> tuple[list[list[int]], ...]:
    """The numbers of each setting."""
    sides = ranking(rows, objective)
    return tuple([[record["number"] for record in setting] for setting in side] for side in sides)


def test_the_best_of_one_objective_is_one():
    rows = [row(0, 0.5), row(1, 0.9), row(2, 0.9), row(3, 1.0, state="pruned")]
    assert ranked(rows, a="maximize") == ([[1]], [[2], [0]])
    assert ranked(rows, a="minimize") == ([[0]], [[1], [2]])
    rows[1]["metrics"]["cost/state_bytes"] = 512.0  # of equals the smaller state
    assert ranked(rows, a="maximize") == ([[2]], [[1], [0]])


def test_replicates_count_by_their_mean():
    lucky = [row(0, 1.0, params={}), row(1, 0.0, params={})]
    assert ranked([*lucky, row(2, 0.6)], a="maximize") == ([[2]], [[0, 1]])


def test_copies_and_trials_without_a_score_are_not_ranked():
    assert ranked([row(0, 0.5), row(1, 0.9, copy_of=0), row(2)], a="maximize") == ([[0]], [])
    assert ranked([], a="maximize") == ([], [])


def test_the_front_holds_what_nothing_beats():
    draw = random.Random(1)
    rows = [row(n, draw.randint(0, 9), draw.randint(0, 9)) for n in range(60)]
    front, others = (
        [number for one in side for number in one]
        for side in ranked(rows, a="maximize", b="minimize")
    )
    points = {r["number"]: (-r["metrics"]["a"], r["metrics"]["b"]) for r in rows}

    def beaten(number: int) -> bool:
        mine = points[number]
        return any(p != mine and p[0] <= mine[0] and p[1] <= mine[1] for p in points.values())

    assert sorted([*front, *others]) == sorted(points)
    assert {number for number in points if not beaten(number)} == set(front)


def test_runs_are_named_for_people():
    assert run_name(7, "gradmem", {"num_tokens": 8, "write_steps": 2}) == "007 gradmem nt8 ws2"
    assert run_name(1234, "", {"lr": 0.00123456, "layers": [1, 2]}) == "1234 l0.0012 l1+2"
    assert run_name(9, "rmt", {"model.segment_length": 8, "seed": 2}, 7) == "009 rmt sl8 s2 = 007"
