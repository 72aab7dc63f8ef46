"""The three orders in which a model's cells (segment s, layer l) run: one function, three loops.

- sequential: segment by segment, layer by layer; S * L calls of one cell
- diagonal: all cells with s + l = d at once; S + L - 1 grouped calls (arXiv 2506.05229). A cell
  needs only (s, l - 1) and (s - 1, l), so this order is exact wherever no state goes from the top
  of one segment to the bottom of the next
- layerwise: each layer once over the whole input; L calls. Exact wherever every memory can take
  several segments in one step, attention staying within its segment

All take the same work and give the same result. Shapes: B batch, T tokens, D hidden, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memarch.arch.cells import Cell, concatenate
from memarch.arch.groups import Group, group_cells
from memarch.arch.state import detach_states
from memarch.components.memory import Segment, State

States = list[dict[str, State]]
Result = tuple[list[Tensor], States]


@dataclass(frozen=True)
class Work:
    """One segment for the cells: the first layer's input `[B, T, D]` and what cells may know."""

    x: Tensor
    segment: Segment


Schedule = Callable[[Sequence[Cell], Sequence[Work], States, int | None], Result]


def sequential(
    cells: Sequence[Cell], work: Sequence[Work], states: States, truncate: int | None
) -> Result:
    """Segment by segment: each segment's top outputs, and the layers' states at the end."""
    states, outputs = list(states), []
    for s, (x, segment) in enumerate((item.x, item.segment) for item in work):
        for layer, cell in enumerate(cells):
            x, new = cell(x, _enter(states[layer], s, truncate), segment)
            if not segment.frozen:
                states[layer] = new
        outputs.append(x)
    return outputs, states


def diagonal(
    cells: Sequence[Cell], work: Sequence[Work], states: States, truncate: int | None
) -> Result:
    """All cells (s, d - s) of diagonal d at once, grouped by structure."""
    states, groups = list(states), group_cells(cells)
    segments, num_layers = [item.segment for item in work], len(cells)
    hidden = [item.x for item in work]  # [B, T, D] of each segment, as far up as it has come
    for d in range(len(work) + num_layers - 1):
        live = range(max(0, d - len(work) + 1), min(num_layers - 1, d) + 1)
        for group in groups:
            mine = [layer for layer in group.layers if layer in live]
            if mine:
                _run_group(group, mine, d, hidden, states, segments, truncate)
    return hidden, states


def layerwise(
    cells: Sequence[Cell], work: Sequence[Work], states: States, truncate: int | None
) -> Result:
    """Each layer once over all segments, laid one behind the other."""
    if truncate is not None and truncate < len(work):
        raise ValueError("the layerwise order cannot truncate backpropagation between segments")
    states, lengths = list(states), [item.x.shape[1] for item in work]
    x = torch.cat([item.x for item in work], dim=1)
    segment = _lay_out([item.segment for item in work])
    for layer, cell in enumerate(cells):
        x, new = cell(x, states[layer], segment)
        states[layer] = new
    return list(x.split(lengths, dim=1)), states


SCHEDULES: dict[str, Schedule] = {
    "sequential": sequential,
    "diagonal": diagonal,
    "layerwise": layerwise,
}


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


def _enter(states: dict[str, State], s: int, truncate: int | None) -> dict[str, State]:
    """A layer's states on entering segment s, without history every `truncate` segments."""
    return detach_states(states) if truncate is not None and s > 0 and s % truncate == 0 else states


def _run_group(
    group: Group,
    layers: list[int],
    d: int,
    hidden: list[Tensor],
    states: States,
    segments: Sequence[Segment],
    truncate: int | None,
) -> None:
    """Run the cells (d - l, l) for l in layers as one; results go to `hidden` and `states`."""
    mine = [d - layer for layer in layers]
    entering = [_enter(states[layer], s, truncate) for layer, s in zip(layers, mine, strict=True)]
    joined = {
        name: {
            key: concatenate([state[name][key] for state in entering]) for key in entering[0][name]
        }
        for name in entering[0]
    }
    x, new = group.run(
        layers, concatenate([hidden[s] for s in mine]), joined, _join([segments[s] for s in mine])
    )
    batch = hidden[mine[0]].shape[0]
    for index, (layer, s) in enumerate(zip(layers, mine, strict=True)):
        rows = slice(index * batch, (index + 1) * batch)
        hidden[s] = x[rows]
        if not segments[s].frozen:
            states[layer] = {
                name: {key: value[rows] for key, value in state.items()}
                for name, state in new.items()
            }


def _join(segments: list[Segment]) -> Segment:
    """Segments of several cells as one, row by row; equally long by `pad_to`."""
    if len(segments) == 1:
        return segments[0]
    first = segments[0]
    same = all(segment.positions is first.positions for segment in segments)
    batch = first.valid.shape[0]
    rows = [segment.positions.expand(batch, -1) for segment in segments]
    rope = first.rope
    if rope is not None and not same:
        ropes = [segment.rope for segment in segments if segment.rope is not None]
        rope = (
            torch.cat([cos.expand(batch, -1, -1) for cos, _ in ropes]),
            torch.cat([sin.expand(batch, -1, -1) for _, sin in ropes]),
        )
    return Segment(
        valid=torch.cat([segment.valid for segment in segments]),
        first=torch.cat([segment.first for segment in segments]),
        positions=first.positions if same else torch.cat(rows),
        rope=rope,
        write=next((segment.write for segment in segments if segment.write.stop), first.write),
        answers=any(segment.answers for segment in segments),
        frozen=all(segment.frozen for segment in segments),
        full=all(segment.full for segment in segments),
    )


def _lay_out(segments: list[Segment]) -> Segment:
    """Equally long segments as one long one of `pieces` pieces."""
    if len(segments) == 1:
        return segments[0]
    first, batch = segments[0], segments[0].valid.shape[0]
    one_row = all(segment.positions.shape[0] == 1 for segment in segments)
    rows = 1 if one_row else batch
    rope = first.rope
    if rope is not None:
        ropes = [segment.rope for segment in segments if segment.rope is not None]
        rope = (
            torch.cat([cos.expand(rows, -1, -1) for cos, _ in ropes], dim=1),
            torch.cat([sin.expand(rows, -1, -1) for _, sin in ropes], dim=1),
        )
    return Segment(
        valid=torch.cat([segment.valid for segment in segments], dim=1),
        first=first.first,
        positions=torch.cat([segment.positions.expand(rows, -1) for segment in segments], dim=1),
        rope=rope,
        answers=True,
        frozen=all(segment.frozen for segment in segments),
        full=all(segment.full for segment in segments),
        pieces=len(segments),
    )
