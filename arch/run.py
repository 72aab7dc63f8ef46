"""One run of a model over a batch: segments are cut, embedded, and sent through a schedule.

Memories at the segment site wrap the whole stack and are nested in the spec's order, the first
outermost; with one of them the order is sequential. Shapes: B batch, W tokens of the whole input,
T tokens of a segment, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memarch.arch.schedules import SCHEDULES, Work, pad_to, sequential
from memarch.arch.state import RunState
from memarch.components.memory import Memory, Segment, Stack, State

if TYPE_CHECKING:
    from memarch.arch.model import MemarchModel


@dataclass
class Run:
    """The settings of one run, and what it collects."""

    model: MemarchModel
    schedule: str
    truncate: int | None = None
    """Cut the gradient through the state every so many segments."""
    losses: list[Tensor] = field(default_factory=list)
    """Auxiliary losses `[B]` that memories report."""

    def over(
        self, ids: Tensor, valid: Tensor | None, state: RunState, *, answers: bool, write_last: bool
    ) -> tuple[Tensor | None, RunState]:
        """Run ids `[B, W]` segment by segment: final hidden states `[B, W, D]` and the new state.

        Without `answers` no hidden states are returned. Without `write_last` the last segment is
        only read for, so the state is that before it.
        """
        cuts = [
            Cut(piece, None if valid is None else valid_piece)
            for piece, valid_piece in self._cut(ids, valid)
        ]
        run = self._run_nested if self.model.outer_memories else self._run_cells
        hidden = run(cuts, state, answers, write_last)
        return (torch.cat(hidden, dim=1) if answers else None), state

    def _cut(self, ids: Tensor, valid: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        length = self.model.spec.segment_length
        pieces = ids.split(length, dim=1)
        masks = pieces if valid is None else valid.split(length, dim=1)
        return list(zip(pieces, masks, strict=True))

    def _run_cells(
        self, cuts: list[Cut], state: RunState, answers: bool, write_last: bool
    ) -> list[Tensor]:
        """Memories inside layers only: all segments are known beforehand, in any order of cells."""
        backbone, cells = self.model.view, self.model.cells()
        uniform = self.schedule != "sequential"
        work = []
        for index, cut in enumerate(cuts):
            last = index == len(cuts) - 1
            item = self.enter(
                backbone.embed(cut.ids),
                self._segment(cut, state),
                state,
                write=uniform or write_last or not last,
            )
            frozen = last and not write_last
            work.append(
                replace(item, segment=replace(item.segment, answers=answers, frozen=frozen))
            )
            if not frozen:
                self._count(cut, state)
        if uniform:
            longest = max(item.x.shape[1] for item in work)
            work = [pad_to(item, longest) for item in work]
        outputs, state.layers = SCHEDULES[self.schedule](cells, work, state.layers, self.truncate)
        if not answers:
            return []
        return [
            backbone.leave(h[:, : cut.ids.shape[1]]) for h, cut in zip(outputs, cuts, strict=True)
        ]

    def _run_nested(
        self, cuts: list[Cut], state: RunState, answers: bool, write_last: bool
    ) -> list[Tensor]:
        """Memories around the stack: one segment after the other."""
        outputs = []
        for index, cut in enumerate(cuts):
            if self.truncate is not None and index > 0 and index % self.truncate == 0:
                state.detach()
            frozen = index == len(cuts) - 1 and not write_last
            segment = replace(
                self._segment(cut, state), ids=cut.ids, answers=answers, frozen=frozen
            )
            stack: Stack = LayerStack(self, segment, state)
            for name, memory in reversed(self.model.outer_memories.items()):
                stack = MemoryStack(stack, name, memory, segment, state.outer[name])
            hidden = stack(self.model.view.embed(cut.ids), None if segment.full else segment.valid)
            if answers:
                outputs.append(hidden)
            if not frozen:
                _commit(stack, state)
                self._count(cut, state)
        return outputs

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
        tokens, valid, length = self.model.write_tokens, segment.valid, x.shape[1]
        if write and tokens is not None:
            x = torch.cat([x, tokens.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)
            real = valid.any(dim=1, keepdim=True).expand(-1, len(tokens))
            valid = torch.cat([valid, real], dim=1)
        positions = self._positions(valid, segment.full, state)
        x, rope = self.model.view.enter(x, positions)
        return Work(
            x,
            replace(
                segment,
                valid=valid,
                positions=positions,
                rope=rope,
                write=slice(length, x.shape[1]) if x.shape[1] > length else slice(0, 0),
            ),
        )

    def _positions(self, valid: Tensor, full: bool, state: RunState) -> Tensor:
        """Positions `[1 or B, T]` of valid tokens: from 0 in each segment, or through the input."""
        if full:
            positions = torch.arange(valid.shape[1], device=valid.device).unsqueeze(0)
        else:
            positions = (valid.cumsum(dim=1) - 1).clamp(min=0)
        return (
            positions + state.tokens.unsqueeze(1) if self.model.positions == "input" else positions
        )

    def _count(self, cut: Cut, state: RunState) -> None:
        valid, _ = cut.mask()
        state.segments = state.segments + valid.any(dim=1).long()
        state.tokens = state.tokens + valid.sum(dim=1)


@dataclass(frozen=True)
class Cut:
    """The tokens `[B, T]` of one segment and which of them are no pads (None: all)."""

    ids: Tensor
    valid: Tensor | None

    def mask(self) -> tuple[Tensor, bool]:
        """valid `[B, T]`, and whether all are."""
        if self.valid is None:
            return torch.ones_like(self.ids, dtype=torch.bool), True
        return self.valid, bool(self.valid.all())


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
        segment = replace(self.segment, valid=valid, full=full)
        item = self.run.enter(x, segment, self.state, write=not segment.frozen)
        outputs, self.written = sequential(self.run.model.cells(), [item], self.state.layers, None)
        return self.run.model.view.leave(outputs[0][:, : x.shape[1]])

    def logits(self, hidden: Tensor) -> Tensor:
        """The language model's head."""
        logits: Tensor = self.run.model.view.head(hidden)
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
