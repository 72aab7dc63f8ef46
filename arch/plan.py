"""Which order of cells a model runs in, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memarch.arch.measured import LAYERWISE_TOKENS, measured_times
from memarch.arch.spec import refuse_impossible
from memarch.arch.work import How
from memarch.components.errors import SpecError

if TYPE_CHECKING:
    from memarch.arch.model import MemarchModel

LONG_INPUT = 16
"""Segments per layer that an input of unknown length is taken to have."""
MARGIN = 1.1
"""How much faster than sequential an order has to be by measurements, which err by so much."""


@dataclass(frozen=True)
class Plan:
    """An order, why it was taken, and how many groups of cells (or single ones) run in turn."""

    schedule: str
    reason: str
    grouped_steps: int


def choose_schedule(model: MemarchModel, batch: int, length: int | None, how: How) -> Plan:
    """The order for `batch` rows of so many tokens (None: no one knows yet).

    An explicit request that would be wrong is a SpecError that names the memory at fault.
    """
    if batch < 1 or (length is not None and length < 0):
        raise ValueError(f"batch must be at least 1 and length 0, got {batch} and {length}")
    layers, outer = len(model.view.layers), model.outer_memories
    count = LONG_INPUT * layers if length is None else -(-length // model.spec.segment_length)

    def plan(schedule: str, reason: str) -> Plan:
        return Plan(schedule, reason, grouped_steps(schedule, count, layers))

    if model.spec.schedule != "auto":
        refuse_impossible(model.spec.schedule, model.spec.memory, "model")
        if model.spec.schedule == "layerwise" and how.truncate is not None:
            raise SpecError(
                "'layerwise' runs all segments at once, so no gradient can be cut between them "
                "(truncate); use 'diagonal', 'sequential' or 'auto'",
                path="model.schedule",
            )
        return plan(model.spec.schedule, "asked for in the spec")
    if outer:
        return plan(
            "sequential", f"{next(iter(outer))!r} goes from the top of a segment to the next one"
        )
    if count <= 1:
        return plan("sequential", "one segment: nothing to group")
    whole = (
        length is not None
        and how.truncate is None
        and all(memory.whole_input for memory in model.all_memories())
        and batch * count * model.spec.segment_length <= LAYERWISE_TOKENS
    )
    return plan(*_fastest(model, batch, count, how, whole))


def grouped_steps(schedule: str, segments: int, layers: int) -> int:
    """Groups of cells that run one after the other: S * L of one cell, S + L - 1, or L."""
    counts = {
        "sequential": segments * layers,
        "diagonal": segments + layers - 1,
        "layerwise": layers,
    }
    return counts[schedule]


def _fastest(
    model: MemarchModel, batch: int, segments: int, how: How, whole: bool
) -> tuple[str, str]:
    rows = 2 ** (batch - 1).bit_length()
    seconds = measured_times(model, rows, segments, how, layerwise=whole).seconds(segments)
    best = min(seconds, key=lambda name: seconds[name])
    close = best != "sequential" and seconds["sequential"] < MARGIN * seconds[best]
    if close:
        best = "sequential"
    others = ", ".join(
        f"{name} {seconds[name] / seconds[best]:.2g} times as long"
        for name in seconds
        if name != best
    )
    return best, f"measured: {others}" + (", not worth leaving it for" if close else "")
