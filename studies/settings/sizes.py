"""The sections `match` and `scale`: which cost sets which sizes. See `search_spaces.sizing`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from memarch.arch.settings import join, show
from memarch.arch.units import parse_number
from memarch.components.errors import SpecError, did_you_mean
from memarch.studies.driver.judging import FIXED_COSTS
from memarch.studies.settings.strict import Strict

Tolerance = Annotated[float, Field(gt=0, lt=1)]
Level = Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0)]


class MatchSettings(Strict):
    """`{cost/state_floats: [1024, 4096], tolerance: 5%}`: comparisons at equal size.

    Every value marked `{solve: [low, high]}` is set so that the cost is nearest to a level.
    """

    cost: str
    """Which cost; written as the key of the levels."""
    levels: Annotated[list[Level], Field(min_length=1)]
    """The sizes that are compared, each a value of the parameter `match.level`."""
    tolerance: Tolerance = 0.05
    """How far from a level a model may be, as a share of it; others are left out."""

    @model_validator(mode="before")
    @classmethod
    def _by_cost(cls, raw: object) -> object:
        cost, given, rest = _split(raw, ("tolerance",))
        levels = given if isinstance(given, list) else [given]
        numbers = [_level(level, cost, index) for index, level in enumerate(levels)]
        if not numbers:
            raise SpecError("needs at least one level", path=cost)
        if len(set(numbers)) < len(numbers):
            raise SpecError(f"names a level twice: {levels}", path=cost)
        return {"cost": cost, "levels": numbers, **rest}


class ScaleSettings(Strict):
    """`{cost/parameters: 160M, rule: width}`: the model made larger by a rule."""

    cost: str
    """Which cost; written as the key of its value."""
    level: Level
    """The size that the model is to have."""
    rule: Literal["width", "depth", "width_and_depth"]
    """What grows: heads, hidden size and MLP together; layers; or both in proportion."""
    keep: list[str] = Field(default_factory=list)
    """Key paths that stay as they are, such as `model.memory.main.num_tokens`."""
    lr: Literal["1/width", "1/sqrt(width)", "keep"] = "1/width"
    """How the learning rate follows the width."""
    tolerance: Tolerance = 0.1
    """How far from the size the nearest model may be, as a share of it."""

    @model_validator(mode="before")
    @classmethod
    def _by_cost(cls, raw: object) -> object:
        known = ("rule", "keep", "lr", "tolerance")
        cost, given, rest = _split(raw, known)
        return {"cost": cost, "level": _level(given, cost), **rest}


def _split(raw: object, known: tuple[str, ...]) -> tuple[str, Any, dict[str, Any]]:
    """The cost that a section is about, what is said of it, and the section's other keys."""
    if not isinstance(raw, Mapping):
        raise SpecError(f"must be a map such as {{cost/state_floats: [1024]}}, got {show(raw)}")
    costs = [str(name) for name in raw if str(name).startswith("cost/")]
    for name in raw:
        if name not in known and str(name) not in costs:
            listed = (*known, "cost/state_floats", "cost/parameters")
            raise SpecError(
                f"unknown key {name!r}; {did_you_mean(str(name), listed)}", path=str(name)
            )
    if len(costs) != 1:
        got = " and ".join(costs) or "none"
        raise SpecError(f"needs one cost, such as cost/state_floats; got {got}")
    if costs[0] not in FIXED_COSTS:
        raise SpecError(
            f"there is no cost {costs[0]!r} that a model has before it trains; "
            f"{did_you_mean(costs[0], FIXED_COSTS)}",
            path=costs[0],
        )
    rest = {name: _number(value) for name, value in raw.items() if name in known}
    return costs[0], raw[costs[0]], rest


def _level(value: Any, *path: str | int) -> int | float:
    number = _number(value)
    right = isinstance(number, int | float) and not isinstance(number, bool) and number > 0
    if not right:
        raise SpecError(f"must be a number above 0, got {show(value)}", path=join(*path))
    return int(number) if float(number).is_integer() else float(number)


def _number(value: Any) -> Any:
    parsed = parse_number(value) if isinstance(value, str) else None
    return value if parsed is None else parsed
