"""Settings of a search beyond its sampler: first points, earlier studies, racing over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from memarch.studies.settings.strict import Strict


class WarmStart(Strict):
    """An earlier study whose finished trials the sampler learns from."""

    study: Annotated[str, Field(min_length=1)]
    """Its name, in the same storage folder."""
    top: Annotated[int, Field(ge=1)] | None = None
    """Only so many of its best trials; by default all that fit."""


class Racing(Strict):
    """Points that cannot win any more get no further seeds."""

    after: Annotated[int, Field(ge=2)] = 2
    """Seeds that every point gets."""


def named_study(value: object) -> object:
    """`earlier` -> `{study: earlier}`."""
    return {"study": value} if isinstance(value, str) else value


def switched(value: object) -> object:
    """`true` -> `{}`, `false` -> nothing."""
    if isinstance(value, Mapping) or value is None:
        return value
    return {True: {}, False: None}.get(value, value) if isinstance(value, bool) else value
