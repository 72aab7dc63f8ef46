"""What few seeds can say about a difference: intervals, tests and effect sizes that hold at n = 3.

Two kinds of scores are met, and each has the method that keeps its promise at 3 to 10 seeds.

Shares (exact match, accuracy: between 0 and 1, more is better) are learned by jumps: a seed solves
the task or it does not, which seeds do is chance, and a mode that no seed has shown may exist.

    interval  Agresti and Caffo's: each side gets two more seeds, one at either end of what was
              reached, so that five of five is not taken for always
    p         exact permutation of the 2 n scores: one configuration under two names is found
              different in at most 5 % of studies, however its scores are distributed. Sign flips
              of the pairs, given beside it, cannot go below 0.0625 with five seeds

Everything else (losses, costs, times) differs by a roughly continuous amount, and pairs by seed.

    interval  of the paired differences, on each side the wider of Student's and the studentised
              bootstrap: the first holds where the second is unstable, the second where differences
              are skewed; BCa and percentile intervals cover 70 to 90 % at these n and are not used
    p         the level at which that interval would touch zero

No p is below 2 / C(2n, n), the share of the most extreme arrangement of 2 n scores: what no
rearrangement could show is not claimed from an assumption about tails either. docs/ablations.md has
the measured coverage and error rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from scipy import special

from memarch.search_spaces.ablation import smallest_p

LEVEL = 0.95
ERROR = 0.05
POWER = 0.8
"""How surely a difference is found that counts as one that could have been found."""

RESAMPLES = 4999
FEWEST_RESAMPLED = 4
"""Of three differences one resample in nine has no spread: the bootstrap says nothing."""

MOST_EXACT = 10
"""With more seeds a side, permutations are drawn at random."""

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Ends:
    """The scores are shares; between these values they may jump."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The difference of two sets of scores over the same seeds, in the scores' own unit."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided; not corrected for other comparisons."""
    p_sign_flip: float
    """Exact sign flips of the paired differences; cannot be below 2 ** (1 - n)."""
    effect_size: float | None
    """Mean over deviation of the paired differences, with Hedges' correction; None without spread.
    """
    superiority: float
    """How often a seed of the first has more than one of the second; ties count half."""
    error: float
    """Standard error behind the interval."""
    freedom: float
    """Its degrees of freedom; infinite for shares."""
    equivalence_p: float | None = None
    """Two one-sided tests against the margin, if one was given."""


def compare(
    scores: Sequence[float],
    others: Sequence[float],
    *,
    ends: Ends | None = None,
    margin: float | None = None,
) -> Difference | None:
    """`scores` minus `others`, seed by seed; None below two seeds.

    `ends` where the scores are shares. `margin`: also test that the means differ by less.
    """
    one, other = np.asarray(scores, float), np.asarray(others, float)
    pairs, n = one - other, len(one)
    if n < 2:
        return None
    interval = _shares(one, other, ends) if ends is not None else _paired(pairs)
    smallest = smallest_p(n)
    outside = None if margin is None else max(interval.tail(-margin, 1), interval.tail(margin, -1))
    return Difference(
        mean=float(pairs.mean()),
        low=interval.low,
        high=interval.high,
        p=1.0 if not pairs.any() else max(interval.p, smallest),
        p_sign_flip=sign_flip(pairs),
        effect_size=hedges(pairs),
        superiority=float((one[:, None] > other).mean() + (one[:, None] == other).mean() / 2),
        error=interval.error,
        freedom=interval.freedom,
        equivalence_p=outside,
    )


def detectable(found: Difference, level: float) -> float:
    """The smallest true difference that so many seeds find at this level with 80 % power."""
    usual = _quantile(0.5 + LEVEL / 2, found.freedom)
    wider = max(1.0, (found.high - found.low) / (2 * usual * found.error)) if found.error else 1.0
    needed = wider * _quantile(1 - level / 2, found.freedom) + _quantile(POWER, found.freedom)
    return found.error * needed


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number: the chance of any false one stays at the level."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    corrected = [1.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected


def mean_interval(scores: Sequence[float], ends: Ends | None = None) -> tuple[float, float] | None:
    """95 % interval of a mean over seeds, by the same two methods; None below three seeds.

    Of two seeds no method here holds what it states.
    """
    values = np.asarray(scores, float)
    if len(values) < 3:
        return None
    if ends is None:
        interval = _paired(values)
        return interval.low, interval.high
    more = np.append(values, [ends.low, ends.high])
    half = _quantile(0.5 + LEVEL / 2) * more.std() / math.sqrt(len(more))
    low, high = max(ends.low, more.mean() - half), min(ends.high, more.mean() + half)
    return min(float(low), float(values.mean())), max(float(high), float(values.mean()))


def hedges(pairs: Floats) -> float | None:
    """Cohen's d of paired differences with Hedges' correction for few of them."""
    n, spread = len(pairs), float(pairs.std(ddof=1))
    if spread <= _tiny(pairs):
        return None
    freedom = n - 1
    log = special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2) if n > 2 else -math.inf
    return float(pairs.mean() / spread * math.exp(log) / math.sqrt(freedom / 2))


def sign_flip(pairs: Floats) -> float:
    """Two-sided p of paired differences whose signs were chance: exact up to 12 of them."""
    n, total = len(pairs), abs(float(pairs.sum()))
    if n <= 12:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ pairs) >= total - _tiny(pairs)).mean())
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (RESAMPLES, n))
    found = int((np.abs(signs @ pairs) >= total - _tiny(pairs)).sum())
    return (found + 1) / (RESAMPLES + 1)


@dataclass(frozen=True)
class _Interval:
    low: float
    high: float
    p: float
    center: float
    error: float
    freedom: float

    def tail(self, bound: float, sign: int) -> float:
        """One-sided p that the difference lies beyond the bound: above it 1, below it -1."""
        if self.error == 0:
            return 0.0 if sign * (self.center - bound) > 0 else 1.0
        t = sign * (self.center - bound) / self.error
        return float(1 - _probability(t, self.freedom))


# Shares


def _shares(one: Floats, other: Floats, ends: Ends) -> _Interval:
    """Each side with two more seeds, one at either end; the mean stays inside."""
    first, second = (np.append(side, [ends.low, ends.high]) for side in (one, other))
    center = float(first.mean() - second.mean())
    error = math.sqrt(float(first.var() + second.var()) / len(first))
    half, widest = float(_quantile(0.5 + LEVEL / 2)) * error, ends.high - ends.low
    mean = float(one.mean() - other.mean())
    low, high = max(-widest, center - half), min(widest, center + half)
    p = permutation(one, other)
    return _Interval(min(low, mean), max(high, mean), p, center, error, math.inf)


def permutation(one: Floats, other: Floats) -> float:
    """Two-sided p of the difference of means when which scores are whose is chance."""
    n, scores = len(one), np.concatenate([one, other])
    if n != len(other):
        raise ValueError("needs as many scores on both sides")
    tiny, half = _tiny(scores) * n, scores.sum() / 2
    found = abs(one.sum() - half)
    if n <= MOST_EXACT:
        sums = scores[_halves(n)].sum(axis=1)
        return float((np.abs(sums - half) >= found - tiny).mean())
    draws = np.random.default_rng(0).random((RESAMPLES, 2 * n)).argsort(axis=1)[:, :n]
    more = int((np.abs(scores[draws].sum(axis=1) - half) >= found - tiny).sum())
    return (more + 1) / (RESAMPLES + 1)


@cache
def _halves(n: int) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
    return np.array(list(combinations(range(2 * n), n)), dtype=np.intp)


# Paired differences


def _paired(pairs: Floats) -> _Interval:
    """The wider of Student's and the studentised bootstrap, on each side."""
    n, mean = len(pairs), float(pairs.mean())
    error = float(pairs.std(ddof=1)) / math.sqrt(n)
    if error <= _tiny(pairs):
        return _Interval(mean, mean, 0.0 if mean else 1.0, mean, 0.0, n - 1)
    above = below = float(_quantile(0.5 + LEVEL / 2, n - 1))
    t = mean / error
    p = 2 * (1 - float(_probability(abs(t), n - 1)))
    if n >= FEWEST_RESAMPLED:
        studentised = _studentised(pairs, mean)
        rank = round((RESAMPLES + 1) * (1 - LEVEL) / 2)
        if np.isfinite(studentised[[rank - 1, -rank]]).all():
            above = max(above, -float(studentised[rank - 1]))
            below = max(below, float(studentised[-rank]))
            beyond = studentised >= t if t > 0 else studentised <= t
            p = max(p, 2 * (int(beyond.sum()) + 1) / (RESAMPLES + 1))
    return _Interval(mean - below * error, mean + above * error, min(1.0, p), mean, error, n - 1)


def _studentised(pairs: Floats, mean: float) -> Floats:
    """The t statistics of resamples about the mean, in order."""
    n = len(pairs)
    drawn = pairs[_resamples(n)]
    off, error = drawn.mean(axis=1) - mean, drawn.std(axis=1, ddof=1) / math.sqrt(n)
    flat = error <= _tiny(pairs)
    statistics = off / np.where(flat, 1.0, error)
    statistics[flat] = np.where(off[flat] == 0, 0.0, np.copysign(np.inf, off[flat]))
    return np.sort(statistics)


@cache
def _resamples(n: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The same draws for every comparison, so that a report says the same each time."""
    return np.random.default_rng(n).integers(0, n, (RESAMPLES, n))


def _tiny(values: Floats) -> float:
    """Below this a difference is rounding."""
    return 1e-12 * max(1e-300, float(np.abs(values).max(initial=0.0)))


def _quantile(share: float, freedom: float = math.inf) -> float:
    return float(special.ndtri(share) if freedom == math.inf else special.stdtrit(freedom, share))


def _probability(t: float, freedom: float) -> float:
    return float(special.ndtr(t) if freedom == math.inf else special.stdtr(freedom, t))
