"""`study.first`: points of the space that a search runs before it draws any.

    first: [{variant: gradmem, num_tokens: 8}, {variant: rmt}]

An entry names a variant and values for some of what that variant searches; the rest is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memarch.arch.settings import join, show
from memarch.components.errors import SpecError, did_you_mean
from memarch.search_spaces.ranges import Choice, Range, Subset, as_written

VARIANT = "variant"


def first_points(
    given: Sequence[Mapping[str, Any]], spaces: Mapping[str, Mapping[str, Range]]
) -> list[tuple[str, dict[str, Any]]]:
    """Variants and draws; an error's path is below `study.first`."""
    return [_point(entry, spaces, str(index)) for index, entry in enumerate(given)]


def _point(
    entry: Mapping[str, Any], spaces: Mapping[str, Mapping[str, Range]], path: str
) -> tuple[str, dict[str, Any]]:
    named = list(spaces) != [""]
    draws = {name: value for name, value in entry.items() if not (named and name == VARIANT)}
    variant = ""
    if named:
        variants = ", ".join(spaces)
        if VARIANT not in entry:
            raise SpecError(f"must name its `variant`, one of {variants}", path=path)
        variant = str(entry[VARIANT])
        if variant not in spaces:
            hint = did_you_mean(variant, spaces)
            raise SpecError(f"there is no variant {variant!r}; {hint}", path=join(path, VARIANT))
    space = spaces[variant]
    who = f"variant {variant!r}" if named else "this study"
    for name, value in draws.items():
        where = join(path, name)
        if name not in space:
            hint = did_you_mean(name, space) if space else "it has nothing to search"
            raise SpecError(f"{who} does not search {name!r}; {hint}", path=where)
        if not _holds(space[name], value):
            range_ = as_written(space[name])
            raise SpecError(f"{show(value)} lies outside the range {show(range_)}", path=where)
    return variant, draws


def _holds(range_: Range, value: Any) -> bool:
    """Whether the range holds the value; True is not 1."""
    if isinstance(range_, Choice):
        return any(one == value and type(one) is type(value) for one in range_.values)
    if isinstance(range_, Subset) and not isinstance(value, list):
        return False
    return range_.contains(value)
