"""The sequential order: a segment goes through all layers, then the next one enters.

Shapes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from memarch.arch.cells import Cell
from memarch.arch.graphs import Repeating
from memarch.arch.work import How, States, Work, flatten, unflatten
from memarch.components.memory import Segment


class Sweep:
    """One segment after the other through all layers."""

    def __init__(self, cells: Sequence[Cell], states: States, how: How) -> None:
        self.how = how
        self._cells, self._form = cells, states
        self._carried = flatten(states)
        self._segment: Segment | None = None
        self._count = 0
        self._repeating = Repeating(self.step)

    def push(self, item: Work) -> Tensor:
        """Run a segment: its top outputs `[B, T, D]`."""
        self._segment = item.segment
        if self.how.forgets(self._count):
            self._carried = [tensor.detach() for tensor in self._carried]
        self._count += 1
        if self.how.graphs:
            top, carried = self._repeating(item.segment, item.x, self._carried)
        else:
            top, carried = self.step(item.x, self._carried)
        if not item.segment.frozen:
            self._carried = carried
        return top

    def states(self) -> States:
        """Each layer's states after the segments so far."""
        return unflatten(self._carried, self._form)

    def step(self, fed: Tensor, carried: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One segment as a function of its input and of the states before it."""
        x, written = fed, []
        for cell, own in zip(self._cells, unflatten(carried, self._form), strict=True):
            x, new = self.how.call(cell, x, own, self._segment)
            written.append(new)
        return x, flatten(written)
