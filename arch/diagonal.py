"""The diagonal order: all cells (s, l) with s + l = d at once (arXiv 2506.05229).

A segment enters at the bottom with every step and all that are inside move up by one layer:

    d = 0   (0, 0)
    d = 1   (1, 0) (0, 1)                       ramp up: only the live cells run
    d = 2   (2, 0) (1, 1) (0, 2)                L cells from here on
    ...
    S + L - 2             (S - 1, L - 1)        ramp down

Inside are never more than L segments, so the input may be of any length. States lie stacked by
group, `[G * B, ...]` in the order of the layers, and pass from step to step as they are; hidden
states pass by layer. Shapes: B batch, T tokens, D hidden, L layers, G cells of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from memarch.arch.cells import Cell
from memarch.arch.graphs import Repeating
from memarch.arch.groups import group_cells
from memarch.arch.work import (
    How,
    States,
    Work,
    concatenate,
    flatten,
    join,
    map_states,
    unflatten,
)
from memarch.components.memory import Segment, State

NOTHING = torch.empty(0)
"""Stands where a layer has no segment."""


@dataclass(frozen=True)
class Entered:
    """A segment inside, and its number."""

    s: int
    segment: Segment


class Diagonal:
    """The cells between a segment that enters at the bottom and the one that leaves at the top."""

    def __init__(self, cells: Sequence[Cell], states: States, how: How) -> None:
        self.how = how
        self.groups = group_cells(cells)
        self._live: list[Entered | None] = [None] * len(cells)
        self._hidden = [NOTHING] * len(cells)
        """Each live layer's next input `[B, T, D]`."""
        self._states = [_stack([states[layer] for layer in group.layers]) for group in self.groups]
        self._joined: list[tuple[list[Segment], Segment] | None] = [None] * len(self.groups)
        self._count = 0
        self._repeating = Repeating(self.step)

    def push(self, item: Work) -> Tensor | None:
        """A segment enters; the top outputs of the one that leaves, if they are wanted."""
        self._hidden[0] = item.x
        entered = Entered(self._count, item.segment)
        self._count += 1
        return self._advance(entered)

    def drain(self) -> list[Tensor]:
        """What is inside leaves: the wanted top outputs."""
        tops = []
        while any(self._live[:-1]):
            tops.append(self._advance(None))
        return [top for top in tops if top is not None]

    def states(self) -> States:
        """Each layer's states, as far as segments have come."""
        by_layer: States = [{} for _ in self._live]
        for group, states in zip(self.groups, self._states, strict=True):
            for layer, own in zip(group.layers, _unstack(states, len(group.layers)), strict=True):
                by_layer[layer] = own
        return by_layer

    def step(self, fed: Tensor, carried: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One diagonal as a function of the entering segment and of all that the last one left."""
        above = len(self._live) - 1
        states = unflatten(carried[above:], self._states)
        top, hidden, states = self._step([fed, *carried[:above]], states)
        return top, [*hidden[1:], *flatten(states)]

    def _advance(self, entered: Entered | None) -> Tensor | None:
        self._live = [entered, *self._live[:-1]]
        steady = self._steady_segment() if self.how.graphs else None
        if steady is None:
            top, self._hidden, self._states = self._step(self._hidden, self._states)
        else:
            carried = [*self._hidden[1:], *flatten(self._states)]
            top, carried = self._repeating(steady, self._hidden[0], carried)
            self._keep(carried)
        last = self._live[-1]
        if last is None or not last.segment.answers:
            return None
        return top.clone()  # a part of the group's output, which it would keep

    def _steady_segment(self) -> Segment | None:
        """The one segment object that all cells of this step have, if it is one."""
        first = self._live[0]
        if first is None or any(e is None or e.segment is not first.segment for e in self._live):
            return None
        return first.segment

    def _keep(self, carried: Sequence[Tensor]) -> None:
        above = len(self._live) - 1
        self._hidden = [NOTHING, *carried[:above]]
        self._states = unflatten(carried[above:], self._states)

    def _step(
        self, hidden: Sequence[Tensor], states: Sequence[dict[str, State]]
    ) -> tuple[Tensor, list[Tensor], list[dict[str, State]]]:
        """One diagonal: the top outputs, the layers' next inputs and the groups' new states."""
        above = [NOTHING] * (len(self._live) + 1)
        written = []
        for index, (group, old) in enumerate(zip(self.groups, states, strict=True)):
            cells = [(layer, self._live[layer]) for layer in group.layers]
            live = [(layer, entered) for layer, entered in cells if entered is not None]
            if not live:
                written.append(old)
                continue
            x = concatenate([hidden[layer] for layer, _ in live])
            start = group.layers.index(live[0][0])
            rows = _Rows(start, start + len(live), len(group.layers), x.shape[0] // len(live))
            entering = _forget(rows.of(old), [self.how.forgets(e.s) for _, e in live])
            segment = self._join(index, [entered.segment for _, entered in live])
            y, new = self.how.call(group.run, rows.start, rows.stop, x, entering, segment)
            for (layer, _), part in zip(live, y.split(rows.batch), strict=True):
                above[layer + 1] = part
            written.append(rows.put(old, new, skip=int(live[0][1].segment.frozen)))
        return above[-1], above[:-1], written

    def _join(self, group: int, segments: list[Segment]) -> Segment:
        """The segments of a group's cells as one; in the steady state it is always the same."""
        kept = self._joined[group]
        if kept is not None and [id(s) for s in kept[0]] == [id(s) for s in segments]:
            return kept[1]
        joined = join(segments)
        self._joined[group] = (segments, joined)
        return joined


@dataclass(frozen=True)
class _Rows:
    """Cells start to stop of the G of a group, as rows of tensors `[G * B, ...]`."""

    start: int
    stop: int
    size: int
    batch: int

    @property
    def all(self) -> bool:
        return self.stop - self.start == self.size

    def of(self, states: dict[str, State]) -> dict[str, State]:
        """These cells' rows."""
        if self.all:
            return states
        rows = slice(self.start * self.batch, self.stop * self.batch)
        return map_states(lambda value: value[rows], states)

    def put(self, old: dict[str, State], new: dict[str, State], skip: int) -> dict[str, State]:
        """`old` with these cells' rows from `new`, without the first `skip` of them."""
        if self.stop - self.start == skip:
            return old
        if self.all and not skip:
            return new
        before, after = (self.start + skip) * self.batch, self.stop * self.batch
        return {
            name: {
                key: torch.cat([value[:before], new[name][key][skip * self.batch :], value[after:]])
                for key, value in state.items()
            }
            for name, state in old.items()
        }


def _forget(states: dict[str, State], forgets: Sequence[bool]) -> dict[str, State]:
    """`[len(forgets) * B, ...]` without history where `forgets` says so."""
    if not any(forgets):
        return states

    def cut(value: Tensor) -> Tensor:
        parts = zip(value.chunk(len(forgets)), forgets, strict=True)
        return concatenate([part.detach() if forget else part for part, forget in parts])

    return map_states(cut, states)


def _stack(states: Sequence[dict[str, State]]) -> dict[str, State]:
    """Several layers' states as those of a group."""
    return {
        name: {key: concatenate([own[name][key] for own in states]) for key in state}
        for name, state in states[0].items()
    }


def _unstack(states: dict[str, State], size: int) -> States:
    """A group's states as those of its layers."""
    parts = map_states(lambda value: value.chunk(size), states)
    return [map_states(itemgetter(index), parts) for index in range(size)]
