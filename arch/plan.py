"""Which order of cells a model runs in, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memarch.arch.spec import ModelSpec
from memarch.components.errors import SpecError
from memarch.components.memory import Memory, memories

SMALL_CELL = 512
"""Tokens of a cell below which the calls themselves cost more than the arithmetic (2 CPU cores)."""


def choose_schedule(
    spec: ModelSpec,
    outer: Mapping[str, Memory],
    all_memories: Sequence[Memory],
    batch: int,
    truncated: bool = False,
) -> tuple[str, str]:
    """The schedule and the reason; an explicit request that would be wrong is a SpecError."""
    whole = all(memory.whole_input for memory in all_memories)
    if spec.schedule != "auto":
        _refuse_impossible(spec, outer, all_memories, truncated)
        return spec.schedule, "asked for in the spec"
    if outer:
        return "sequential", f"{next(iter(outer))!r} goes from the top of a segment to the next one"
    if batch * spec.segment_length > SMALL_CELL:
        return "sequential", f"cells of {batch} x {spec.segment_length} tokens fill the device"
    if whole and not truncated:
        return "layerwise", "every memory can take the whole input in one step"
    return "diagonal", "state passes from segment to segment within a layer"


def _refuse_impossible(
    spec: ModelSpec, outer: Mapping[str, Memory], all_memories: Sequence[Memory], truncated: bool
) -> None:
    if spec.schedule == "sequential":
        return
    if outer:
        raise SpecError(
            f"{spec.schedule!r} is impossible: memory {next(iter(outer))!r} carries its state "
            "from the top of a segment to the bottom of the next; use 'sequential' or 'auto'",
            path="model.schedule",
        )
    if spec.schedule == "layerwise":
        if truncated:
            raise SpecError(
                "'layerwise' runs all segments at once, so no gradient can be cut between them "
                "(truncate); use 'diagonal' or 'auto'",
                path="model.schedule",
            )
        chosen: Mapping[str, Any] = spec.memory
        for name, settings in chosen.items():
            cls = memories[settings.type].cls
            if any(isinstance(m, cls) and not m.whole_input for m in all_memories):
                raise SpecError(
                    f"'layerwise' is impossible: memory {name!r} takes one segment at a time; use "
                    "'diagonal' or 'auto'",
                    path="model.schedule",
                )
