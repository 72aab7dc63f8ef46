"""What an ablation says: the words for the numbers, and how often it says something wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from ablation_documents import LOSS, document, trial

from memarch.search_spaces.ranges import LEVEL
from memarch.studies.results.ablation import Comparison, comparisons, conclusions

RANDOM = np.random.default_rng(3)
SOLVED, GUESS = [1.0] * 5, [0.31, 0.34, 0.33, 0.35, 0.32]


def one(shown: dict[str, Any], name: str = "change") -> Comparison:
    return {found.name: found for found in comparisons(shown)}[name]


def test_a_planted_effect_is_worse_with_its_interval_away_from_zero() -> None:
    found = one(document({"base": SOLVED, "change": GUESS}))
    assert found.outcome == "worse"
    assert found.high is not None
    assert found.high < -0.2
    assert found.difference == pytest.approx(-0.67)
    assert found.solved == (0, 5)
    assert found.verdict.startswith("worse by 0.67 [0.23, 0.69], p = 0.0079; solved 0 of 5 seeds")


def test_more_of_a_loss_is_worse_and_less_is_better() -> None:
    base = [2.31, 2.29, 2.33, 2.30, 2.32]
    more = [value + step for value, step in zip(base, [0.2, 0.21, 0.19, 0.22, 0.2], strict=True)]
    assert one(document({"base": base, "change": more}, metric=LOSS)).outcome == "worse"
    found = one(document({"base": more, "change": base}, metric=LOSS))
    assert (found.outcome, found.n) == ("better", 5)
    assert found.verdict.startswith("better by 0.204 [")
    assert found.p_sign_flip == 0.0625  # what five signs can show at most


def test_two_comparisons_correct_each_other() -> None:
    found = comparisons(document({"base": SOLVED, "change": GUESS, "same": SOLVED}))
    assert found[0].p_corrected == pytest.approx(2 * 2 / 252)
    assert "after correction over 2 comparisons" in found[0].verdict
    assert found[1].verdict.startswith("no difference at all on 5 seeds")


def test_what_correction_takes_away_is_said() -> None:
    base = [2.0, 2.1, 2.2, 2.3, 2.4, 2.5]
    near = [2.2, 2.12, 2.3, 2.34, 2.55, 2.52]
    others = {f"other{index}": list(reversed(base)) for index in range(4)}
    found = one(document({"base": base, "change": near} | others, metric=LOSS))
    assert found.outcome == "undecided"
    assert "no difference shown after correction over 5 comparisons: +0.088 [" in found.verdict
    assert "by itself" in found.verdict


def test_three_seeds_are_too_few_and_the_verdict_says_why() -> None:
    found = one(document({"base": SOLVED[:3], "change": GUESS[:3]}))
    assert found.outcome == "too few seeds"
    assert "with 3 seeds the smallest possible p is 0.1" in found.verdict


def test_no_difference_shown_says_what_could_have_been() -> None:
    found = one(document({"base": [1, 1, 0.4, 1, 1], "change": [0.4, 1, 1, 1, 0.4]}))
    assert found.outcome == "undecided"
    assert found.detectable is not None
    assert f"5 seeds could have shown {found.detectable:.2f}" in found.verdict


def test_equivalence_is_claimed_only_where_the_interval_lies_inside() -> None:
    base = [0.500, 0.501, 0.499, 0.502, 0.500]
    near = [0.501, 0.500, 0.500, 0.501, 0.501]
    assert one(document({"base": base, "change": near}, equivalence=0.01)).outcome == "equivalent"
    assert one(document({"base": base, "change": near})).outcome == "undecided"
    assert one(document({"base": base, "change": near}, equivalence=0.001)).outcome != "equivalent"


def test_five_of_five_twice_is_not_equivalent() -> None:
    """A seed that fails one time in three goes unseen in five seeds one time in seven."""
    scores = {"base": SOLVED, "change": [0.9995] * 5, "broken": GUESS}
    assert one(document(scores, equivalence=0.01)).outcome == "undecided"


def test_a_small_certain_difference_may_be_equivalent_too() -> None:
    base = [2.301, 2.302, 2.303, 2.304, 2.305]
    near = [value + step for value, step in zip(base, [4e-3, 5e-3, 4e-3, 5e-3, 4e-3], strict=True)]
    found = one(document({"base": base, "change": near}, metric=LOSS, equivalence=0.02))
    assert found.outcome == "equivalent"
    assert found.verdict.startswith("worse by 0.00440 [0.0037")
    assert "but equivalent within 0.02" in found.verdict


def test_failed_seeds_are_counted_and_their_pairs_left_out() -> None:
    shown = document({"base": [*SOLVED, 1.0], "change": [*GUESS[:4], None, None]})
    for row in shown["trials"]:
        if row["state"] == "failed":
            row["failure"] = "not_finite"
    found = one(shown)
    assert (found.n, found.failed, found.seeds) == (4, 2, (1, 2, 3, 4))
    assert "2 of 6 seeds gave no result (not finite)" in found.verdict
    shown = document({"base": [1.0, None], "change": [None, 0.5]})
    assert one(shown).verdict.startswith("nothing to compare: no seed that both completed; 1 of 2")


def test_unconverged_trials_are_marked_on_both_sides() -> None:
    shown = document({"base": SOLVED, "change": GUESS})
    for row in shown["trials"][4:7]:
        row["converged"] = False
    found = one(shown)
    assert found.unconverged == 2
    assert found.verdict.endswith(
        "2 of 5 trials had not converged; 1 of 5 trials of the baseline had not converged"
    )


def test_seeds_that_are_not_done_are_said() -> None:
    shown = document({"base": SOLVED, "change": GUESS})
    shown["trials"][-1] |= {"state": "running", "metrics": {}, "converged": None}
    assert "1 of 5 seeds are not done" in one(shown).verdict


def test_a_setting_equal_to_another_is_no_comparison() -> None:
    shown = document({"base": SOLVED, "change": GUESS})
    for seed in range(1, 6):
        copy = {"copy_of": 1, "reason": "equal to trial 1, whose result this is"}
        shown["trials"].append(trial("copy", seed, 1.0) | copy)
    shown["ablation"]["settings"]["copy"] = "nothing"
    found = one(shown, "copy")
    assert (found.outcome, found.p) == ("same", None)
    assert found.verdict == "not run: equal to trial 1, whose result this is"
    assert one(shown).p_corrected == one(shown).p


def at_levels(scores: dict[float | None, dict[str, list[float]]]) -> dict[str, Any]:
    """Settings by level of size, then by name; those under None are without levels."""
    by_level = {level: document(own)["trials"] for level, own in scores.items()}
    shown = document({name: [] for own in scores.values() for name in own})
    for level, trials in by_level.items():
        params = {} if level is None else {LEVEL: level}
        shown["trials"] += [
            one | {"params": params, "number": len(shown["trials"]) + place}
            for place, one in enumerate(trials)
        ]
    return shown


def test_pairs_are_of_one_level_and_one_seed() -> None:
    small, large = {"base": SOLVED, "change": GUESS}, {"base": GUESS, "change": GUESS[::-1]}
    shown = at_levels({256: small, 1024: large})
    found = comparisons(shown)
    assert [(one.label, one.level, one.n) for one in found] == [
        ("change at 256", 256, 5),
        ("change at 1024", 1024, 5),
    ]
    for one_level, scores in zip(found, (small, large), strict=True):
        (alone,) = comparisons(document(scores))
        assert one_level.differences == alone.differences
        assert (one_level.low, one_level.high, one_level.p) == (alone.low, alone.high, alone.p)
    assert [one.outcome for one in found] == ["worse", "undecided"]
    assert "after correction over 2 comparisons" in found[0].verdict


def test_a_side_without_levels_is_compared_at_each() -> None:
    levels = {256: {"base": GUESS}, 1024: {"base": SOLVED}}
    shown = at_levels({**levels, None: {"none": GUESS}})
    shown["ablation"] = {"baseline": "base", "settings": {"none": ""}}
    assert [(one.level, one.outcome) for one in comparisons(shown)] == [
        (256, "undecided"),
        (1024, "worse"),
    ]
    shown["ablation"] = {"baseline": "none", "settings": {"base": ""}}
    assert [(one.level, one.outcome) for one in comparisons(shown)] == [
        (256, "undecided"),
        (1024, "better"),
    ]


def test_a_level_that_one_side_does_not_reach_is_no_comparison() -> None:
    shown = at_levels({256: {"base": SOLVED}, 1024: {"base": SOLVED, "change": GUESS}})
    first, second = comparisons(shown)
    assert first.verdict == "nothing to compare: only one side reaches this level"
    assert (second.outcome, "correction" in second.verdict) == ("worse", False)


def test_other_designs_have_no_comparisons() -> None:
    shown = document({"base": SOLVED, "change": GUESS}) | {"ablation": None}
    assert comparisons(shown) == []
    assert [row["variant"] for row in conclusions(shown)["settings"]] == ["base", "change"]


def jumping(share: float, n: int) -> list[float]:
    solved = RANDOM.random(n) < share
    guesses = 0.34 + RANDOM.normal(0, 0.01, n)
    return list(np.where(solved, 1 - np.abs(RANDOM.normal(0, 0.0004, n)), guesses))


NULLS = {
    "jumps": lambda n: jumping(0.5, n),
    "rare failures": lambda n: jumping(0.85, n),
    "accuracy": lambda n: list(RANDOM.normal(0.8, 0.03, n)),
    "loss": lambda n: list(RANDOM.normal(2.3, 0.05, n)),
    "skewed loss": lambda n: list(RANDOM.lognormal(0.5, 0.6, n)),
}
STUDIES = 300


@pytest.mark.parametrize("n", [5, 7])
@pytest.mark.parametrize("kind", NULLS)
def test_one_configuration_under_other_names_is_found_different_in_five_percent_at_most(
    kind: str, n: int
) -> None:
    """Studies of four comparisons, all of them null: how many claim any effect or less."""
    draw = NULLS[kind]
    metric = LOSS if "loss" in kind else "eval/kv/exact_match"
    wrong = 0
    for _ in range(STUDIES):
        scores = {name: draw(n) for name in ("base", "a", "b", "c", "d")}
        found = comparisons(document(scores, metric=metric))
        wrong += any(one.outcome in ("better", "worse") for one in found)
    assert wrong / STUDIES <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / STUDIES)


def test_planted_effects_are_found() -> None:
    found = 0
    for _ in range(100):
        scores = {"base": jumping(0.98, 6), "broken": jumping(0.0, 6), "null": jumping(0.98, 6)}
        found += one(document(scores), "broken").outcome == "worse"
    assert found >= 80


def test_another_metric_has_its_usual_direction() -> None:
    shown = document({"base": SOLVED, "change": GUESS})
    for row in shown["trials"]:
        row["metrics"]["cost/state_bytes"] = 512.0 + row["number"] // 100 * 64
    (found,) = comparisons(shown, "cost/state_bytes")
    assert (found.outcome, found.difference) == ("worse", 64)
