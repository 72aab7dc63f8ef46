"""What schedules run on: segments with their embeddings, and how the run is to be carried out.

Shapes: B batch, T tokens, D hidden, G cells in a group, N = G * B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from memarch.components.memory import Segment, State

States = list[dict[str, State]]
"""By layer, then by the memory's name."""
Outputs = tuple[Tensor, dict[str, State]]


@dataclass(frozen=True)
class Work:
    """One segment for the cells: the first layer's input `[B, T, D]` and what cells may know."""

    x: Tensor
    segment: Segment


@dataclass(frozen=True)
class How:
    """The settings of a run that change its cost, not its outputs."""

    truncate: int | None = None
    """Cut the gradient through the state every so many segments."""
    checkpoint: bool = False
    """Keep no activations inside cells: the backward pass computes them again."""
    graphs: bool = False
    """Run equal steps that follow one another from still buffers, on a GPU as a CUDA graph."""

    def forgets(self, s: int) -> bool:
        """Whether segment s is entered without the history of the state."""
        return self.truncate is not None and s > 0 and s % self.truncate == 0

    def call(self, cell: Callable[..., Outputs], *inputs: object) -> Outputs:
        """A cell, or a group of cells."""
        if self.checkpoint and torch.is_grad_enabled():
            outputs: Outputs = checkpoint(cell, *inputs, use_reentrant=False)
            return outputs
        return cell(*inputs)


def concatenate(parts: Sequence[Tensor]) -> Tensor:
    """Rows of several cells as one batch."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def map_states(function: Callable[[Any], Any], states: Mapping[str, State]) -> dict[str, State]:
    """`function` of every tensor."""
    return {
        name: {key: function(value) for key, value in state.items()}
        for name, state in states.items()
    }


def flatten(states: Sequence[Mapping[str, State]]) -> list[Tensor]:
    """The tensors of several cells' states, each cell's in the order of their names."""
    return [own[name][key] for own in states for name in sorted(own) for key in sorted(own[name])]


def unflatten(tensors: Sequence[Tensor], like: Sequence[Mapping[str, State]]) -> States:
    """The inverse of `flatten` for states of this form."""
    rest = iter(tensors)
    return [
        {name: {key: next(rest) for key in sorted(own[name])} for name in sorted(own)}
        for own in like
    ]


def pad_to(item: Work, length: int) -> Work:
    """The same work with pads before its write tokens, so that all segments are equally long."""
    segment, tokens = item.segment, item.segment.write.start or item.x.shape[1]
    missing = length - item.x.shape[1]
    if missing == 0:
        return item
    rope = segment.rope
    return Work(
        _insert(item.x, tokens, missing),
        replace(
            segment,
            valid=_insert(segment.valid, tokens, missing),
            positions=_insert(segment.positions, tokens, missing),
            rope=None
            if rope is None
            else (_insert(rope[0], tokens, missing), _insert(rope[1], tokens, missing)),
            write=slice(segment.write.start + missing, segment.write.stop + missing)
            if segment.write.stop
            else segment.write,
            full=False,
        ),
    )


def _insert(x: Tensor, at: int, count: int) -> Tensor:
    """Zeros (False) of size `count` at index `at` of dimension 1."""
    before, after = x[:, :at], x[:, at:]
    pads = x.new_zeros(x.shape[0], count, *x.shape[2:])
    return torch.cat([before, pads, after], dim=1)


def join(segments: Sequence[Segment]) -> Segment:
    """Segments of several cells as one, row by row; equally long by `pad_to`."""
    first = segments[0]
    if len(segments) == 1:
        return first
    rows = first.valid.shape[0]
    one_row = first.positions.shape[0] == 1
    same = one_row and all(segment.positions is first.positions for segment in segments)
    return Segment(
        valid=torch.cat([segment.valid for segment in segments]),
        first=torch.cat([segment.first for segment in segments]),
        positions=first.positions if same else _cat([s.positions for s in segments], rows, dim=0),
        rope=first.rope if same else _cat_ropes(segments, rows, dim=0),
        write=next((segment.write for segment in segments if segment.write.stop), first.write),
        answers=any(segment.answers for segment in segments),
        frozen=all(segment.frozen for segment in segments),
        full=all(segment.full for segment in segments),
    )


def lay_out(segments: Sequence[Segment]) -> Segment:
    """Equally long segments as one long one of `pieces` pieces."""
    first = segments[0]
    if len(segments) == 1:
        return first
    one_row = all(segment.positions.shape[0] == 1 for segment in segments)
    rows = 1 if one_row else first.valid.shape[0]
    return Segment(
        valid=torch.cat([segment.valid for segment in segments], dim=1),
        first=first.first,
        positions=_cat([segment.positions for segment in segments], rows, dim=1),
        rope=_cat_ropes(segments, rows, dim=1),
        answers=True,
        frozen=all(segment.frozen for segment in segments),
        full=all(segment.full for segment in segments),
        pieces=len(segments),
    )


def _cat(parts: Sequence[Tensor], rows: int, dim: int) -> Tensor:
    return torch.cat([part.expand(rows, *part.shape[1:]) for part in parts], dim)


def _cat_ropes(segments: Sequence[Segment], rows: int, dim: int) -> tuple[Tensor, Tensor] | None:
    ropes = [segment.rope for segment in segments if segment.rope is not None]
    if not ropes:
        return None
    return _cat([cos for cos, _ in ropes], rows, dim), _cat([sin for _, sin in ropes], rows, dim)
