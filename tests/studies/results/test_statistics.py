"""The numbers behind conclusions: against scipy where it has the same, else by simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from memarch.search_spaces.ablation import smallest_p
from memarch.studies.results.statistics import (
    Difference,
    Ends,
    compare,
    detectable,
    hedges,
    holm,
    mean_interval,
    permutation,
    sign_flip,
)

RANDOM = np.random.default_rng(20)


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_permutation_is_exact(n: int) -> None:
    one, other = RANDOM.normal(size=n), RANDOM.normal(0.5, 1, size=n)
    result = stats.permutation_test(
        (one, other), lambda a, b: a.mean() - b.mean(), n_resamples=np.inf
    )
    assert permutation(one, other) == pytest.approx(result.pvalue)


def test_many_scores_are_permuted_at_random_and_always_in_the_same_way() -> None:
    one, other = RANDOM.normal(size=14), RANDOM.normal(0.8, 1, size=14)
    assert permutation(one, other) == permutation(one, other)
    welch = stats.ttest_ind(one, other).pvalue
    assert permutation(one, other) == pytest.approx(welch, abs=0.02)


@pytest.mark.parametrize("n", [3, 5, 9])
def test_sign_flips_are_exact(n: int) -> None:
    pairs = RANDOM.normal(0.7, 1, size=n)
    result = stats.permutation_test(
        (pairs, np.zeros(n)), lambda a, b: a.mean() - b.mean(), permutation_type="samples"
    )
    assert sign_flip(pairs) == pytest.approx(result.pvalue)


def test_five_sign_flips_cannot_show_anything_but_five_against_five_scores_can() -> None:
    ones, zeros = np.ones(5), np.zeros(5)
    assert sign_flip(ones - zeros) == 2 / 2**5
    assert permutation(ones, zeros) == smallest_p(5) == 2 / 252


def test_three_pairs_have_students_interval_and_no_smaller_p_than_three_allow() -> None:
    one, other = np.array([2.0, 2.3, 2.1]), np.array([1.0, 1.1, 1.2])
    found = compare(one, other)
    assert found is not None
    student = stats.ttest_rel(one, other).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(student))
    assert found.p == smallest_p(3) == 0.1


def test_pairs_take_out_what_seeds_have_in_common() -> None:
    seeds = np.array([1.0, 5.0, 9.0, 2.0, 7.0])
    found = compare(seeds + np.array([0.5, 0.6, 0.4, 0.55, 0.45]), seeds)
    assert found is not None
    assert 0 < found.low < 0.5 < found.high
    assert found.p == smallest_p(5)


def test_equal_scores_differ_by_nothing() -> None:
    found = compare([0.5] * 4, [0.5] * 4, ends=Ends(0.5, 0.5))
    assert found is not None
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.effect_size is None


def test_one_seed_shows_nothing() -> None:
    assert compare([1.0], [0.0]) is None
    assert mean_interval([1.0]) is None
    assert mean_interval([0.4, 0.6], Ends(0.0, 1.0)) is None


def test_hedges_corrects_cohens_d_for_few_pairs() -> None:
    pairs = np.array([0.3, 0.5, 0.4, 0.7, 0.1])
    d = pairs.mean() / pairs.std(ddof=1)
    assert hedges(pairs) == pytest.approx(d * (1 - 3 / (4 * 4 - 1)), rel=0.01)
    exact = math.gamma(2) / (math.sqrt(2) * math.gamma(1.5))
    assert hedges(pairs) == pytest.approx(d * exact)


def test_superiority_counts_ties_half() -> None:
    found = compare([1.0, 1.0, 0.0], [1.0, 0.0, 0.0], ends=Ends(0, 1))
    assert found is not None
    assert found.superiority == pytest.approx((4 + 0.5 * 4) / 9)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def bimodal(share: float) -> Callable[[int], np.ndarray]:
    """Recall over seeds: a share of them solves the task, the others guess."""

    def draw(n: int) -> np.ndarray:
        solved = RANDOM.random(n) < share
        guess = 0.34 + RANDOM.normal(0, 0.01, n)
        return np.where(solved, 1 - np.abs(RANDOM.normal(0, 0.002, n)), guess)

    return draw


def mean_of(share: float) -> float:
    return share * (1 - 0.002 * math.sqrt(2 / math.pi)) + (1 - share) * 0.34


def ends(*sides: np.ndarray) -> Ends:
    """As `replicates.ends_of` says it: where all have solved, a failing seed falls to a guess."""
    scores = np.concatenate(sides)
    return Ends(0.34 if scores.min() > 0.98 else float(scores.min()), float(scores.max()))


SIMULATED = 500
ALLOWED = 2.5 * math.sqrt(0.05 * 0.95 / SIMULATED)
"""How far a share of 0.05 strays in so many simulations."""


@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize(("one", "other"), [(0.5, 0.5), (0.9, 0.5), (0.9, 0.1), (0.8, 0.8)])
def test_intervals_of_shares_cover_what_jumps(one: float, other: float, n: int) -> None:
    held = 0
    for _ in range(SIMULATED):
        a, b = bimodal(one)(n), bimodal(other)(n)
        found = compare(a, b, ends=ends(a, b))
        assert found is not None
        held += found.low <= mean_of(one) - mean_of(other) <= found.high
    assert held / SIMULATED >= 0.935 - ALLOWED  # measured over 4,000: 0.934 and more


DIFFERENCES: dict[str, Callable[[int], np.ndarray]] = {
    "normal": lambda n: RANDOM.normal(size=n),
    "skewed scores": lambda n: RANDOM.lognormal(size=n) - RANDOM.lognormal(size=n),
    "skewed": lambda n: RANDOM.gamma(4, size=n) - 4,
    "bimodal": lambda n: 1.0 * (RANDOM.random(n) < 0.5) - 1.0 * (RANDOM.random(n) < 0.5),
    "jumps and noise": lambda n: 3.0 * (RANDOM.random(n) < 0.5) - 1.5 + RANDOM.normal(size=n),
}


@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize("kind", DIFFERENCES)
def test_intervals_of_pairs_cover(kind: str, n: int) -> None:
    held = wrong = 0
    for _ in range(SIMULATED):
        found = compare(DIFFERENCES[kind](n), np.zeros(n))
        assert found is not None
        held += found.low <= 0 <= found.high
        wrong += found.p <= 0.05
    assert held / SIMULATED >= 0.95 - ALLOWED
    assert wrong / SIMULATED <= 0.05 + ALLOWED


@pytest.mark.parametrize("n", [4, 5, 8])
@pytest.mark.parametrize("kind", ["bimodal", "rarely failing", "normal"])
def test_the_permutation_of_shares_keeps_its_error(kind: str, n: int) -> None:
    draw = {
        "bimodal": bimodal(0.5),
        "rarely failing": bimodal(0.9),
        "normal": lambda n: RANDOM.normal(0.8, 0.05, n),
    }[kind]
    wrong = 0
    for _ in range(SIMULATED):
        a, b = draw(n), draw(n)
        found = compare(a, b, ends=ends(a, b))
        assert found is not None
        wrong += found.p <= 0.05
    assert wrong / SIMULATED <= 0.05 + ALLOWED


def test_a_detectable_difference_is_found_four_times_in_five() -> None:
    def study(shift: float) -> Difference:
        found = compare(RANDOM.normal(shift, 1, size=8), np.zeros(8))
        assert found is not None
        return found

    size = float(np.median([detectable(study(0), 0.05) for _ in range(SIMULATED)]))
    found = sum(study(size).p <= 0.05 for _ in range(SIMULATED))
    assert 0.7 <= found / SIMULATED <= 0.9


def test_a_mean_that_is_always_solved_is_not_certain() -> None:
    interval = mean_interval([1.0] * 5, Ends(0.3, 1.0))
    assert interval is not None
    assert interval[0] < 0.8
    assert interval[1] == 1.0


def test_equivalence_needs_the_difference_inside_on_both_sides() -> None:
    base = RANDOM.normal(2, 0.001, 6)
    shifts = {0.0: True, 0.02: False, -0.02: False}
    for (shift, inside), _ in itertools.product(shifts.items(), range(3)):
        found = compare(base + shift + RANDOM.normal(0, 0.001, 6), base, margin=0.01)
        assert found is not None
        assert found.equivalence_p is not None
        assert (found.equivalence_p < 0.05) == inside
