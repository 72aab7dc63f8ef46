"""Settings over their seeds: order, ties, what is solved, and what did not finish."""

from __future__ import annotations

from typing import Any

import pytest
from ablation_documents import LOSS, document

from memarch.studies.results.replicates import at_levels, replicates, solved_at


def names(shown: dict[str, Any]) -> list[str]:
    return [row.variant for row in replicates(shown)]


def test_a_setting_has_mean_median_range_and_how_many_seeds_solved() -> None:
    row = replicates(document({"a": [1.0, 1.0, 0.3, 1.0, 0.2]}))[0]
    assert (row.mean, row.median, row.solved) == (pytest.approx(0.7), 1.0, 3)
    shown = row.row()
    assert shown["scores"] == [1.0, 1.0, 0.3, 1.0, 0.2]
    assert shown["seeds"] == [1, 2, 3, 4, 5]
    assert shown["range"] == [0.2, 1.0]
    low, high = shown["interval"]
    assert low < 0.5 < 0.7 < high < 1


def test_always_comes_before_mostly_and_that_before_steady_but_poor() -> None:
    scores = {"mostly": [1, 1, 1, 0.3, 0.3], "always": [1.0] * 5, "poor": [0.6] * 5}
    assert names(document(scores)) == ["always", "mostly", "poor"]


def test_one_bad_seed_leaves_a_setting_tied_with_the_best() -> None:
    scores = {"steady": [0.97, 0.98, 0.97, 0.98, 0.97], "jumps": [1, 1, 1, 1, 0.3], "no": [0.3] * 5}
    tied = {row.variant: row.tied for row in replicates(document(scores))}
    assert tied == {"steady": True, "jumps": True, "no": False}


def test_a_loss_is_best_where_it_is_least_and_has_nothing_to_solve() -> None:
    rows = replicates(document({"a": [2.5, 2.6, 2.4], "b": [2.1, 2.2, 2.1]}, metric=LOSS))
    assert [row.variant for row in rows] == ["b", "a"]
    assert rows[0].solved is None


def test_a_failed_seed_is_counted_and_does_not_drop_the_setting() -> None:
    shown = document({"a": [0.9, None, 0.9], "b": [0.5, 0.5, 0.5]})
    first = replicates(shown)[0].row()
    assert first["variant"] == "a"
    assert first["not_complete"] == {"failed": 1}
    assert len(first["trials"]) == 3


def test_unconverged_trials_are_counted() -> None:
    shown = document({"a": [0.9, 0.8]})
    shown["trials"][0]["converged"] = False
    assert replicates(shown)[0].unconverged == 1


def test_what_counts_as_solved_is_what_stops_training_early() -> None:
    shown = document({"a": [0.95, 0.96]})
    for row in shown["trials"]:
        row["spec"]["train"]["early_stop"] = {"on": None, "above": 0.94, "patience": 2}
    assert replicates(shown)[0].solved == 2
    assert solved_at({"spec": {"train": {"early_stop": "none"}}}, "eval/kv/exact_match") == 0.999


def test_settings_of_several_levels_are_compared_level_by_level() -> None:
    shown = document({"a": [0.9, 0.8], "b": [0.5, 0.6], "c": [0.2, 0.2], "none": [0.0, 0.0]})
    places = {"a": ("rmt", 4096), "b": ("armt", 1024), "c": ("rmt", 1024)}
    for row in shown["trials"]:
        if row["variant"] in places:
            row["variant"], level = places[row["variant"]]
            row["params"] = {"match.level": level}
    found = at_levels(replicates(shown))
    assert {level: [one.variant for one in rows] for level, rows in found.items()} == {
        1024: ["armt", "rmt"],
        4096: ["rmt"],
    }
    assert at_levels(replicates(document({"a": [0.9], "b": [0.5]}))) == {}


def test_single_seeds_are_neither_tied_nor_given_an_interval() -> None:
    rows = replicates(document({"a": [0.9], "b": [0.89]}))
    assert [row.tied for row in rows] == [True, False]
    assert rows[0].interval is None


def test_several_objectives_are_ordered_by_the_front_of_the_means() -> None:
    shown = document({"big": [0.9, 0.9], "small": [0.8, 0.8], "bad": [0.7, 0.7]})
    shown["objective"]["cost/state_bytes"] = "minimize"
    for row in shown["trials"]:
        row["metrics"]["cost/state_bytes"] = {"big": 100, "small": 10, "bad": 50}[row["variant"]]
    assert names(shown) == ["big", "small", "bad"]
