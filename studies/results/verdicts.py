"""The words of an ablation: what a comparison's numbers allow to be said, and no more.

A difference is claimed where its p, corrected for all comparisons of the study (Holm), is at most
0.05 and its 95 % interval excludes zero. Equivalence is claimed where two one-sided tests,
corrected in the same way, put the difference within the margin, and the interval lies within it.
All else is "no difference shown", with the smallest difference that so many seeds could have shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from memarch.search_spaces.ablation import smallest_p
from memarch.studies.results.replicates import is_lost, is_unconverged
from memarch.studies.results.statistics import ERROR, Difference, detectable

Outcome = Literal["better", "worse", "equivalent", "undecided", "too few seeds", "same", "none"]
"""`same`: equal to another setting, so not run. `none`: nothing to compare."""


@dataclass(frozen=True)
class Question:
    """What is asked of every setting of a study."""

    maximize: bool
    margin: float | None
    """Differences below it do not matter; None where that is not asked."""
    tests: int
    """Comparisons that p values are corrected for."""


def verdict(
    question: Question,
    differences: Sequence[float],
    found: Difference | None,
    p: float,
    equivalent: float,
) -> tuple[Outcome, str]:
    """What differences over seeds say; both p corrected."""
    n = len(differences)
    if found is None:
        if n == 1:
            return "none", f"one seed, which shows nothing: {_number(differences[0], 3, sign=True)}"
        return "none", "nothing to compare: no seed that both completed"
    holds_zero = found.low <= 0 <= found.high
    claimed = p <= ERROR and not holds_zero
    if question.margin is not None and equivalent <= ERROR and _is_inside(question.margin, found):
        within = f"equivalent within {question.margin:g}"
        if claimed:
            return "equivalent", f"{_size(question, found, p)}, but {within}"
        return "equivalent", f"{within}: {_signed(found)}"
    if claimed:
        return "better" if _is_better(question, found) else "worse", _size(question, found, p)
    least = smallest_p(n)
    if least * question.tests > ERROR:
        corrected = _after(question, min(1.0, least * question.tests))
        return "too few seeds", (
            f"too few seeds for a conclusion: {_signed(found)}; with {n} seeds the smallest "
            f"possible p is {_p(least)}{corrected}"
        )
    if not any(differences):
        return "undecided", f"no difference at all on {n} seeds"
    if found.p <= ERROR and not holds_zero:
        return "undecided", (
            f"no difference shown{_after(question)}: {_signed(found)}, p = {_p(found.p)} by "
            f"itself, {_p(p)} corrected"
        )
    could = detectable(found, ERROR / question.tests)
    return "undecided", (
        f"no difference shown: {_signed(found)}, p = {_p(found.p)}; {n} seeds could have shown "
        f"{_number(could, 2 if could >= 0.01 else 4)}"
    )


def remarks(
    trials: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    solved: tuple[int, int] | None,
    n: int,
) -> list[str]:
    """What else must be known: jumps, seeds without a result, trials that were not done."""
    notes = []
    if solved is not None and any(solved):
        notes.append(f"solved {solved[0]} of {n} seeds, the baseline {solved[1]}")
    for whose, side in (("", trials), (" of the baseline", baseline)):
        lost = [trial for trial in side if is_lost(trial)]
        if lost:
            why = sorted({str(trial.get("failure") or trial["state"]) for trial in lost})
            shown = ", ".join(word.replace("_", " ") for word in why)
            notes.append(f"{len(lost)} of {len(side)} seeds{whose} gave no result ({shown})")
        late = sum(is_unconverged(trial) for trial in side)
        if late:
            notes.append(f"{late} of {len(side)} trials{whose} had not converged")
        waiting = sum(trial["state"] in ("running", "waiting") for trial in side)
        if waiting:
            notes.append(f"{waiting} of {len(side)} seeds{whose} are not done")
    return notes


def _is_better(question: Question, found: Difference) -> bool:
    return (found.mean > 0) == question.maximize


def _is_inside(margin: float, found: Difference) -> bool:
    return -margin <= found.low and found.high <= margin


def _size(question: Question, found: Difference, p: float) -> str:
    """`worse by 0.31 [0.22, 0.40], p = 0.004 after correction over 6 comparisons`."""
    digits = _digits(found)
    low, high = sorted(abs(end) for end in (found.low, found.high))
    return (
        f"{'better' if _is_better(question, found) else 'worse'} by "
        f"{_number(abs(found.mean), digits)} [{_number(low, digits)}, {_number(high, digits)}], "
        f"p = {_p(p)}{_after(question)}"
    )


def _signed(found: Difference) -> str:
    """`-0.03 [-0.15, +0.09]`."""
    digits = _digits(found)
    mean, low, high = (
        _number(value, digits, sign=True) for value in (found.mean, found.low, found.high)
    )
    return f"{mean} [{low}, {high}]"


def _after(question: Question, value: float | None = None) -> str:
    if question.tests < 2:
        return ""
    shown = "" if value is None else f", {_p(value)}"
    return f"{shown} after correction over {question.tests} comparisons"


def _digits(found: Difference) -> int:
    """As many decimals as the width of the interval makes meaningful: 2 to 5."""
    width, digits = found.high - found.low, 2
    while digits < 5 and width < 2 * 10 ** (1 - digits):
        digits += 1
    return digits


def _number(value: float, digits: int, *, sign: bool = False) -> str:
    """A difference of scores with decimals, a large one (bytes, FLOPs) with four digits."""
    form = ".4g" if abs(value) >= 1000 else f".{digits}f"
    text = format(value, f"+{form}" if sign else form)
    return text if float(text) else text.lstrip("+-")


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else f"{value:.1g}"
