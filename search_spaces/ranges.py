"""Ranges: what may stand where a value stands, so that a search draws it.

{choice: [16, 32, 64]}                 one of the values
{int: [1, 5]}                          an integer, ends included; also `log: true`, `step: 2`
{float: [1e-3, 1e-2], log: true}       a number; also `step: 0.1`
{subset: [0, 1, 2, 3], size: [1, 2]}   a list of some of the values
{sample: {int: [1, 4]}}                drawn anew for every training batch
{solve: [1, 512]}                      a size that `match` solves for; also `step: 8`, or any
                                       finite range: {solve: {choice: [dpfp1, dpfp3]}}

`sample` stands under `task` only and is no parameter of a search: training draws it for every
batch, evaluations take its largest value (of a choice the last), unless their own task or sweep
sets it.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from memarch.arch.settings import show
from memarch.arch.units import parse_number
from memarch.components.errors import SpecError, did_you_mean

LEVEL = "match.level"
"""Name of the parameter that says at which level of `match` a trial is."""


class Range(Protocol):
    """What all ranges can do."""

    def contains(self, value: Any) -> bool:
        """Whether the value may be drawn."""
        ...

    def extremes(self) -> list[Any]:
        """All values of a choice; the ends of anything else."""
        ...

    def grid(self) -> list[Any] | None:
        """Every value, or None where there are infinitely many."""
        ...


@dataclass(frozen=True)
class Choice:
    values: tuple[Any, ...]

    def contains(self, value: Any) -> bool:
        return value in self.values

    def extremes(self) -> list[Any]:
        return list(self.values)

    def grid(self) -> list[Any] | None:
        return list(self.values)


@dataclass(frozen=True)
class Int:
    low: int
    high: int
    log: bool = False
    step: int = 1

    def contains(self, value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def extremes(self) -> list[Any]:
        return list(dict.fromkeys([self.low, self.high - (self.high - self.low) % self.step]))

    def grid(self) -> list[Any] | None:
        return list(range(self.low, self.high + 1, self.step))


@dataclass(frozen=True)
class Float:
    low: float
    high: float
    log: bool = False
    step: float | None = None

    def contains(self, value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high

    def extremes(self) -> list[Any]:
        return list(dict.fromkeys([self.low, self.high]))

    def grid(self) -> list[Any] | None:
        if self.step is None:
            return [self.low] if self.low == self.high else None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return [self.low + index * self.step for index in range(count)]


@dataclass(frozen=True)
class Subset:
    """`low` to `high` of the values, in their order."""

    values: tuple[Any, ...]
    low: int
    high: int

    def contains(self, value: Any) -> bool:
        if not isinstance(value, list | tuple) or not self.low <= len(value) <= self.high:
            return False
        return list(value) == [one for one in self.values if one in value]

    def extremes(self) -> list[Any]:
        ends = (self.values[: self.low], self.values[-self.low :], self.values[: self.high])
        return [list(end) for end in dict.fromkeys(ends)]

    def grid(self) -> list[Any] | None:
        sizes = range(self.low, self.high + 1)
        return [list(c) for size in sizes for c in itertools.combinations(self.values, size)]


@dataclass(frozen=True)
class Sample:
    """Drawn anew for every training batch."""

    inner: Range

    @property
    def evaluated(self) -> Any:
        """The value in evaluations."""
        return self.extremes()[-1]

    def contains(self, value: Any) -> bool:
        return self.inner.contains(value)

    def extremes(self) -> list[Any]:
        return self.inner.extremes()

    def grid(self) -> list[Any] | None:
        return None


@dataclass(frozen=True)
class Solve:
    """A size that a budget determines: one value of a finite range."""

    inner: Range

    def contains(self, value: Any) -> bool:
        return self.inner.contains(value)

    def extremes(self) -> list[Any]:
        return self.inner.extremes()

    def grid(self) -> list[Any]:
        values = self.inner.grid()
        assert values is not None, "checked when it was parsed"
        return values


_MODIFIERS: dict[str, tuple[str, ...]] = {
    "choice": (),
    "int": ("log", "step"),
    "float": ("log", "step"),
    "subset": ("size",),
    "sample": (),
    "solve": ("step",),
}
KINDS = tuple(_MODIFIERS)
_SHARED = {name for names in _MODIFIERS.values() for name in names}


def is_range(raw: object) -> bool:
    """Whether a map means a range: it has the name of a kind of range among its keys."""
    return isinstance(raw, Mapping) and any(kind in raw for kind in KINDS)


def near_range(raw: Mapping[str, Any]) -> str:
    """What to say of a map that looks like a range with its kind misspelt; else nothing."""
    names = [str(name) for name in raw if name not in _SHARED]
    return _near_kind(names[0]) if len(names) == 1 else ""


@functools.lru_cache
def _near_kind(name: str) -> str:
    near = difflib.get_close_matches(name, KINDS, n=1)
    return f"unknown range {name!r}; did you mean {near[0]!r}?" if near else ""


def parse_range(raw: Mapping[str, Any]) -> Range:
    """A range, or a SpecError whose path is the key inside the range."""
    kinds = [kind for kind in KINDS if kind in raw]
    if len(kinds) > 1:
        raise SpecError(f"is two ranges at once: {' and '.join(kinds)}")
    kind = kinds[0]
    for name in raw:
        if name != kind and name not in _MODIFIERS[kind]:
            known = (kind, *_MODIFIERS[kind])
            raise SpecError(
                f"unknown key {name!r} for the range {kind!r}; {did_you_mean(name, known)}",
                path=name,
            )
    return _PARSERS[kind](raw)


def as_written(known: Range) -> dict[str, Any]:
    """The map that `parse_range` reads as this range; equal for equal ranges."""
    match known:
        case Choice(values):
            return {"choice": list(values)}
        case Int(low, high, log, step):
            written: dict[str, Any] = {"int": [low, high]}
            return written | ({"log": True} if log else {}) | ({"step": step} if step != 1 else {})
        case Float(low, high, log, step):
            written = {"float": [low, high]}
            return written | ({"log": True} if log else {}) | ({"step": step} if step else {})
        case Subset(values, low, high):
            return {"subset": list(values), "size": [low, high]}
        case Sample(inner):
            return {"sample": as_written(inner)}
        case Solve(Int(low, high, step=step)):
            return {"solve": [low, high]} | ({"step": step} if step != 1 else {})
        case Solve(inner):
            return {"solve": as_written(inner)}
    raise TypeError(f"no range: {known!r}")


def described(known: Range) -> str:
    """A range in words: `2, 4, 8`, `1 to 5`, `0.001 to 0.01, logarithmic`."""
    match known:
        case Choice(values):
            return ", ".join(str(value) for value in values)
        case Int() | Float():
            step = f", in steps of {known.step:g}" if known.step not in (None, 1) else ""
            return f"{known.low:g} to {known.high:g}{step}" + (", logarithmic" * known.log)
        case Subset(values, low, high):
            count = str(low) if low == high else f"{low} to {high}"
            return f"{count} of {', '.join(str(value) for value in values)}"
        case Sample(inner):
            return f"{described(inner)}, anew in every batch"
        case Solve(inner):
            return f"{described(inner)}, solved for"
    return str(known)


def _choice(raw: Mapping[str, Any]) -> Range:
    return Choice(_values(raw["choice"], "choice"))


def _int(raw: Mapping[str, Any]) -> Range:
    low, high = _ends(raw["int"], "int", whole=True)
    log, step = _log(raw, low), _number(raw.get("step", 1))
    if not _is_number(step, whole=True) or step < 1:
        raise SpecError(f"must be an integer of at least 1, got {show(step)}", path="step")
    if log and step != 1:
        raise SpecError("a logarithmic range has no step", path="step")
    return Int(int(low), int(high), log, step)


def _float(raw: Mapping[str, Any]) -> Range:
    low, high = _ends(raw["float"], "float")
    log, step = _log(raw, low), _number(raw.get("step"))
    if step is not None and (not _is_number(step) or step <= 0):
        raise SpecError(f"must be a number above 0, got {show(step)}", path="step")
    if log and step is not None:
        raise SpecError("a logarithmic range has no step", path="step")
    return Float(float(low), float(high), log, None if step is None else float(step))


def _subset(raw: Mapping[str, Any]) -> Range:
    values = _values(raw["subset"], "subset")
    size = raw.get("size", [1, len(values)])
    low, high = (size, size) if _is_number(size, whole=True) else _ends(size, "size", whole=True)
    if not 0 <= low <= high <= len(values):
        raise SpecError(f"must lie between 0 and {len(values)}, got {low} to {high}", path="size")
    return Subset(values, int(low), int(high))


def _sample(raw: Mapping[str, Any]) -> Range:
    inner = raw["sample"]
    if not is_range(inner) or "sample" in inner or "solve" in inner:
        raise SpecError("must hold a range, such as {sample: {int: [1, 4]}}", path="sample")
    return Sample(parse_range(inner))


def _solve(raw: Mapping[str, Any]) -> Range:
    given = raw["solve"]
    if not is_range(given):
        _ends(given, "solve", whole=True)
        rest = {name: value for name, value in raw.items() if name != "solve"}
        return Solve(_int({"int": given, **rest}))
    if "step" in raw:
        raise SpecError("belongs into the range that `solve` holds", path="step")
    if "sample" in given or "solve" in given:
        raise SpecError("must hold [low, high] or a choice, int, float or subset", path="solve")
    inner = parse_range(given)
    if inner.grid() is None:
        raise SpecError("needs finitely many values: give the range a `step`", path="solve")
    return Solve(inner)


_PARSERS: dict[str, Callable[[Mapping[str, Any]], Range]] = {
    "choice": _choice,
    "int": _int,
    "float": _float,
    "subset": _subset,
    "sample": _sample,
    "solve": _solve,
}


def _values(raw: Any, kind: str) -> tuple[Any, ...]:
    if not isinstance(raw, list) or not raw:
        raise SpecError(f"must be a list of values, got {show(raw)}", path=kind)
    for index, value in enumerate(raw):
        if is_range(value):
            raise SpecError(
                "a range cannot stand inside a range; alternatives of maps are `variants`",
                path=kind,
            )
        same = [one for one in raw[:index] if one == value and type(one) is type(value)]
        if same:
            raise SpecError(f"holds {show(value)} twice", path=kind)
    return tuple(raw)


def _ends(raw: Any, kind: str, *, whole: bool = False) -> tuple[Any, Any]:
    what = "two integers" if whole else "two numbers"
    if not isinstance(raw, list) or len(raw) != 2:
        raise SpecError(f"must be {what}, [low, high], got {show(raw)}", path=kind)
    low, high = (_number(end) for end in raw)
    for end, given in ((low, raw[0]), (high, raw[1])):
        if not _is_number(end, whole=whole):
            raise SpecError(f"must be {what}, [low, high], got {show(given)}", path=kind)
    if low > high:
        raise SpecError(f"the low end {low} is above the high end {high}", path=kind)
    return low, high


def _log(raw: Mapping[str, Any], low: float) -> bool:
    log = raw.get("log", False)
    if not isinstance(log, bool):
        raise SpecError(f"must be true or false, got {show(log)}", path="log")
    if log and low <= 0:
        raise SpecError(f"a logarithmic range must start above 0, got {low}", path="log")
    return log


def _number(value: Any) -> Any:
    parsed = parse_number(value) if isinstance(value, str) else None
    return value if parsed is None else parsed


def _is_number(value: Any, *, whole: bool = False) -> bool:
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
