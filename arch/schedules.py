"""The three orders in which a model's cells (segment s, layer l) run: one function, three loops.

- sequential: segment by segment, layer by layer; S * L calls of one cell
- diagonal: all cells with s + l = d at once; S + L - 1 grouped calls (arXiv 2506.05229). A cell
  needs only (s, l - 1) and (s - 1, l), so this order is exact wherever no state goes from the top
  of one segment to the bottom of the next
- layerwise: each layer once over the whole input; L calls. Exact wherever every memory can take
  several segments in one step, attention staying within its segment

All take the same work and give the same result: the top outputs of the segments whose answers are
wanted, and the states at the end. Sequential and diagonal take work as it comes and hold no more of
it than runs. Shapes: B batch, T tokens, D hidden, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from memarch.arch.cells import Cell
from memarch.arch.diagonal import Diagonal
from memarch.arch.sweep import Sweep
from memarch.arch.work import How, States, Work, lay_out

Result = tuple[list[Tensor], States]
Schedule = Callable[[Sequence[Cell], Iterable[Work], States, How], Result]


def sequential(cells: Sequence[Cell], work: Iterable[Work], states: States, how: How) -> Result:
    """Segment by segment, layer by layer."""
    sweep, outputs = Sweep(cells, states, how), []
    for item in work:
        top = sweep.push(item)
        if item.segment.answers:
            outputs.append(top)
    return outputs, sweep.states()


def diagonal(cells: Sequence[Cell], work: Iterable[Work], states: States, how: How) -> Result:
    """All cells (s, d - s) of diagonal d at once, grouped by structure."""
    inside = Diagonal(cells, states, how)
    tops = [top for top in map(inside.push, work) if top is not None]
    return tops + inside.drain(), inside.states()


def layerwise(cells: Sequence[Cell], work: Iterable[Work], states: States, how: How) -> Result:
    """Each layer once over all segments, laid one behind the other."""
    items = list(work)
    if how.truncate is not None and how.truncate < len(items):
        raise ValueError("the layerwise order cannot truncate backpropagation between segments")
    lengths = [item.x.shape[1] for item in items]
    x = torch.cat([item.x for item in items], dim=1)
    segment, written = lay_out([item.segment for item in items]), []
    for cell, own in zip(cells, states, strict=True):
        x, new = how.call(cell, x, own, segment)
        written.append(new)
    tops = zip(x.split(lengths, dim=1), items, strict=True)
    return [top for top, item in tops if item.segment.answers], written


SCHEDULES: dict[str, Schedule] = {
    "sequential": sequential,
    "diagonal": diagonal,
    "layerwise": layerwise,
}
