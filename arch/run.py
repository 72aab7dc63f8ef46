"""One run of a model over a batch: segments are cut, embedded, and sent through a schedule.

Memories at the segment site wrap the whole stack and are nested in the spec's order, the first
outermost; with one of them the order is sequential. Shapes: B batch, W tokens of the whole input,
T tokens of a segment, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memarch.arch.schedules import SCHEDULES, Schedule, sequential
from memarch.arch.state import RunState
from memarch.arch.work import How, Work, pad_to
from memarch.components.memory import Memory, Segment, Stack, State

if TYPE_CHECKING:
    from memarch.arch.model import MemarchModel


@dataclass
class Run:
    """The settings of one run, and what it collects."""

    model: MemarchModel
    how: How = field(default_factory=How)
    losses: list[Tensor] = field(default_factory=list)
    """Auxiliary losses `[B]` that memories report."""
    _alike: dict[object, Segment] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.view = self.model.view
        self._running_positions = self.model.positions == "input"

    def over(
        self,
        cuts: Iterable[Cut],
        state: RunState,
        *,
        schedule: str,
        answers: bool,
        write_last: bool,
    ) -> tuple[Tensor | None, RunState]:
        """Run segment after segment: final hidden states `[B, W, D]` and the new state.

        Without `answers` no hidden states are returned, and no more of the input is held than runs
        at once. Without `write_last` the last segment is only read for, so the state is that before
        it.
        """
        wanted = Wanted(answers, write_last, uniform=schedule != "sequential")
        if self.model.outer_memories:
            return self._run_nested(cuts, state, wanted), state
        return self._run_cells(cuts, state, wanted, SCHEDULES[schedule]), state

    def work(self, cuts: Iterable[Cut], state: RunState, wanted: Wanted) -> Iterator[Work]:
        """The first layer's inputs, one segment at a time; `state` counts them."""
        longest = 0
        for index, (cut, last) in enumerate(_with_last(cuts)):
            frozen = last and not wanted.write_last
            x = self.view.embed(cut.ids)
            role = Role(wanted.uniform or not frozen, wanted.answers, frozen)
            segment = self._cells_segment(cut, state, x, index, role)
            item = Work(self._place(x, segment), segment)
            longest = longest or item.x.shape[1]
            if not frozen:
                self._count(cut, state)
            yield pad_to(item, longest) if wanted.uniform else item

    def _run_cells(
        self, cuts: Iterable[Cut], state: RunState, wanted: Wanted, schedule: Schedule
    ) -> Tensor | None:
        """Memories inside layers only: cells in any order that the schedule likes."""
        lengths: list[int] = []

        def noted() -> Iterator[Cut]:
            for cut in cuts:
                if wanted.answers:
                    lengths.append(cut.ids.shape[1])
                yield cut

        work = self.work(noted(), state, wanted)
        outputs, state.layers = schedule(self.model.cells(), work, state.layers, self.how)
        tops = [h[:, :length] for h, length in zip(outputs, lengths, strict=True)]
        return self.view.leave(torch.cat(tops, dim=1)) if wanted.answers else None

    def _run_nested(self, cuts: Iterable[Cut], state: RunState, wanted: Wanted) -> Tensor | None:
        """Memories around the stack: one segment after the other."""
        outputs = []
        for index, (cut, last) in enumerate(_with_last(cuts)):
            if self.how.forgets(index):
                state.detach()
            frozen = last and not wanted.write_last
            segment = replace(
                self._segment(cut, state), ids=cut.ids, answers=wanted.answers, frozen=frozen
            )
            stack: Stack = LayerStack(self, segment, state)
            for name, memory in reversed(self.model.outer_memories.items()):
                stack = MemoryStack(stack, name, memory, segment, state.outer[name])
            hidden = stack(self.view.embed(cut.ids), None if segment.full else segment.valid)
            if wanted.answers:
                outputs.append(hidden)
            if not frozen:
                _commit(stack, state)
                self._count(cut, state)
        return torch.cat(outputs, dim=1) if wanted.answers else None

    def _cells_segment(
        self, cut: Cut, state: RunState, x: Tensor, index: int, role: Role
    ) -> Segment:
        """What cells may know of a segment: one object for all segments of which it is the same."""
        key = (cut.ids.shape, role, index == 0)
        alike = cut.valid is None and not self._running_positions
        if alike and key in self._alike:
            return self._alike[key]
        segment = replace(self._segment(cut, state), answers=role.answers, frozen=role.frozen)
        segment = self._inside(segment, state, x, write=role.write)
        if alike:
            self._alike[key] = segment
        return segment

    def _segment(self, cut: Cut, state: RunState) -> Segment:
        """The segment's own tokens, nothing around them."""
        valid, full = cut.mask()
        return Segment(
            valid=valid,
            first=state.segments == 0,
            positions=self._positions(valid, full, state),
            full=full,
        )

    def enter(self, x: Tensor, segment: Segment, state: RunState, *, write: bool) -> Work:
        """x `[B, T, D]` to the first layer's input, positions and write tokens added."""
        segment = self._inside(segment, state, x, write=write)
        return Work(self._place(x, segment), segment)

    def _inside(self, segment: Segment, state: RunState, x: Tensor, *, write: bool) -> Segment:
        """The segment with write tokens behind it, where they `write`, and with its positions."""
        tokens, valid, length = self.model.write_tokens, segment.valid, segment.valid.shape[1]
        writing = slice(0, 0)
        if write and tokens is not None:
            real = valid.any(dim=1, keepdim=True).expand(-1, len(tokens))
            valid = torch.cat([valid, real], dim=1)
            writing = slice(length, valid.shape[1])
        positions = self._positions(valid, segment.full, state)
        rope = self.view.rope(x, positions)
        return replace(segment, valid=valid, positions=positions, rope=rope, write=writing)

    def _place(self, x: Tensor, segment: Segment) -> Tensor:
        """Embeddings `[B, T, D]` to the first layer's input for this segment."""
        tokens = self.model.write_tokens
        if segment.write.stop and tokens is not None:
            x = torch.cat([x, tokens.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)
        return self.view.enter(x, segment.positions)

    def _positions(self, valid: Tensor, full: bool, state: RunState) -> Tensor:
        """Positions `[1 or B, T]` of valid tokens: from 0 in each segment, or through the input."""
        if full:
            positions = torch.arange(valid.shape[1], device=valid.device).unsqueeze(0)
        else:
            positions = (valid.cumsum(dim=1) - 1).clamp(min=0)
        return positions + state.tokens.unsqueeze(1) if self._running_positions else positions

    def _count(self, cut: Cut, state: RunState) -> None:
        if cut.valid is None:
            state.segments, state.tokens = state.segments + 1, state.tokens + cut.ids.shape[1]
        else:
            state.segments = state.segments + cut.valid.any(dim=1).long()
            state.tokens = state.tokens + cut.valid.sum(dim=1)


@dataclass(frozen=True)
class Cut:
    """The tokens `[B, T]` of one segment and which of them are no pads (None: all)."""

    ids: Tensor
    valid: Tensor | None = None

    def mask(self) -> tuple[Tensor, bool]:
        """valid `[B, T]`, and whether all are."""
        if self.valid is None:
            return torch.ones_like(self.ids, dtype=torch.bool), True
        return self.valid, bool(self.valid.all())


@dataclass(frozen=True)
class Wanted:
    """What a run is for."""

    answers: bool = True
    """Outputs of all segments."""
    write_last: bool = True
    """The state after the last segment, not only before it."""
    uniform: bool = False
    """Segments of equal length, the last one included: they run together."""


@dataclass(frozen=True)
class Role:
    """What a segment is run for."""

    write: bool
    answers: bool
    frozen: bool


def cut_whole(ids: Tensor, valid: Tensor | None, length: int) -> Iterator[Cut]:
    """ids `[B, W]` in segments of `length`, the last one with what is left."""
    pieces = ids.split(length, dim=1)
    masks = [None] * len(pieces) if valid is None else valid.split(length, dim=1)
    return (Cut(piece, mask) for piece, mask in zip(pieces, masks, strict=True))


def cut_blocks(blocks: Iterable[Tensor], length: int) -> Iterator[Cut]:
    """The same for an input that comes in blocks `[B, any]`, of which no more is held than one."""
    left: list[Tensor] = []
    for block in blocks:
        *whole, rest = torch.cat([*left, block], dim=1).split(length, dim=1)
        yield from (Cut(piece) for piece in whole)
        left = [rest]
        if rest.shape[1] == length:
            yield Cut(rest)
            left = []
    if left and left[0].shape[1]:
        yield Cut(left[0])


def _with_last(cuts: Iterable[Cut]) -> Iterator[tuple[Cut, bool]]:
    """Each cut, and whether it is the last one."""
    rest = iter(cuts)
    previous = next(rest, None)
    for cut in rest:
        assert previous is not None
        yield previous, False
        previous = cut
    if previous is not None:
        yield previous, True


class LayerStack:
    """The decoder layers on one segment, always from the states at its start."""

    def __init__(self, run: Run, segment: Segment, state: RunState) -> None:
        self.run, self.segment, self.state = run, segment, state
        self.losses = run.losses
        self.written: list[dict[str, State]] | None = None

    def __call__(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """x `[B, T', D]` to the same after the final norm; the last call's layer states stay."""
        full = valid is None
        if valid is None:
            valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        segment = replace(self.segment, valid=valid, full=full, answers=True)
        item = self.run.enter(x, segment, self.state, write=not segment.frozen)
        how = How(checkpoint=self.run.how.checkpoint)
        cells, states = self.run.model.cells(), self.state.layers
        outputs, self.written = sequential(cells, [item], states, how)
        return self.run.view.leave(outputs[0][:, : x.shape[1]])

    def logits(self, hidden: Tensor) -> Tensor:
        """The language model's head."""
        logits: Tensor = self.run.view.head(hidden)
        return logits


class MemoryStack:
    """A stack inside a memory at the segment site: again a stack, for the memory around it."""

    def __init__(
        self, inner: Stack, name: str, memory: Memory, segment: Segment, state: State
    ) -> None:
        self.inner, self.name, self.memory = inner, name, memory
        self.segment, self.state, self.written = segment, state, state
        self.losses, self.logits = inner.losses, inner.logits

    def __call__(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Run the memory on what the memory around it hands down."""
        segment = self.segment
        if x.shape[1] != segment.valid.shape[1]:
            segment = _widen(segment, x, valid)
        outputs, self.written = self.memory.step(self.state, x, self.inner, segment)
        return outputs


def _widen(segment: Segment, x: Tensor, valid: Tensor | None) -> Segment:
    full = valid is None
    if valid is None:
        valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return replace(segment, valid=valid, full=full)


def _commit(stack: Stack, state: RunState) -> None:
    """What the stacks wrote in their last call becomes the state."""
    while isinstance(stack, MemoryStack):
        state.outer[stack.name] = stack.written
        stack = stack.inner
    assert isinstance(stack, LayerStack)
    if stack.written is not None:
        state.layers = stack.written
