"""The cell: one decoder layer with its memories, on one segment. Every schedule runs this function.

    (outputs, states) = cell(inputs, states, segment)

Memories at the layer site wrap the decoder layer, those at the mixer site stand in for or beside
its attention, those at the attention site act on rotated queries, keys and values. The last two
are reached through the `cell` argument of transformers' own layers, local to the call, so that no
state lives in a module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from memarch.arch.attention import causal_mask, fused_attention, plain_attention
from memarch.components.memory import Memory, Segment, Site, State
from memarch.kernels.checks import Impl

Inner = Callable[..., Tensor]


class Cell(nn.Module):
    """A decoder layer and the memories that act on it, in the spec's order, the first outermost."""

    def __init__(
        self,
        layer: nn.Module,
        memories: dict[str, Memory],
        *,
        impl: Impl = "auto",
        twice_differentiable: bool = False,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.memories = nn.ModuleDict(memories)
        self.impl = impl
        self.twice_differentiable = twice_differentiable

    def at(self, site: Site) -> list[tuple[str, Memory]]:
        """This cell's memories at a site, by name."""
        return [
            (name, memory)
            for name, memory in self.memories.items()
            if isinstance(memory, Memory) and memory.site == site
        ]

    def forward(
        self, x: Tensor, states: dict[str, State], segment: Segment
    ) -> tuple[Tensor, dict[str, State]]:
        """x `[N, T, D]` and each memory's state `[N, ...]` to the same after this segment."""
        call = CellCall(self, states, segment)
        run = nest(self.at("layer"), call, self._run_layer(call))
        return run(x), states | call.written

    def _run_layer(self, call: CellCall) -> Inner:
        return partial(
            self.layer,
            attention_mask=None,
            position_ids=call.segment.positions,
            position_embeddings=call.segment.rope,
            cell=call,
        )


class CellCall:
    """One run of a cell: the states that go in, the states that come out, and attention."""

    def __init__(self, cell: Cell, states: dict[str, State], segment: Segment) -> None:
        self.cell, self.states, self.segment = cell, states, segment
        self.written: dict[str, State] = {}

    def mix(self, x: Tensor, attention: Inner | None) -> Tensor:
        """Token mixing of the layer: its mixers around its attention, if that was kept."""
        return nest(self.cell.at("mixer"), self, attention)(x)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float, window: int | None
    ) -> Tensor:
        """Attention of the layer, through its memories at the attention site. `[N, T, H, d]`."""
        inner = partial(self._attend_plainly, scale=scale, dropout=dropout, window=window)
        found = self.cell.at("attention")
        if not found:
            return inner(q, k, v)
        name, memory = found[0]
        outputs, self.written[name] = memory.step(self.states[name], (q, k, v), inner, self.segment)
        return outputs

    def _attend_plainly(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        *,
        scale: float,
        dropout: float,
        window: int | None,
    ) -> Tensor:
        repeats = q.shape[1] // k.shape[1]
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        attend = plain_attention if self.cell.twice_differentiable else fused_attention
        if mask is not None:
            return attend(q, k, v, mask, scale, dropout).transpose(1, 2)
        pieces, valid = self.segment.pieces, self.segment.valid
        q, k, v = (_fold(tensor, pieces) for tensor in (q, k, v))
        length = q.shape[2]
        if not self.segment.full or (window is not None and window < length):
            mask = causal_mask(valid.reshape(-1, length), window)
        outputs = attend(q, k, v, mask, scale, dropout).transpose(1, 2)  # [N * pieces, T, H, d]
        return outputs.reshape(-1, pieces * length, *outputs.shape[2:])


def nest(memories: list[tuple[str, Memory]], call: CellCall, inner: Inner | None) -> Any:
    """`inner` inside the memories, the first outermost; new states go to `call.written`."""
    for name, memory in reversed(memories):
        inner = partial(_step, name, memory, call, inner)
    return inner


def _step(name: str, memory: Memory, call: CellCall, inner: Inner | None, x: Tensor) -> Tensor:
    outputs, call.written[name] = memory.step(call.states[name], x, inner, call.segment)
    return outputs


def _fold(x: Tensor, pieces: int) -> Tensor:
    """[N, H, pieces * T, d] -> [N * pieces, H, T, d]: attention stays within its segment."""
    if pieces == 1:
        return x
    heads, head_dim = x.shape[1], x.shape[3]
    return (
        x.unflatten(2, (pieces, -1))
        .transpose(1, 2)
        .reshape(-1, heads, x.shape[2] // pieces, head_dim)
    )


class MixerSlot(nn.Module):
    """Stands where a layer's attention stood and lets the layer's mixers run there."""

    def __init__(self, attention: nn.Module | None) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, hidden_states: Tensor, *, cell: CellCall, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """The layer's call of its attention."""
        return cell.mix(
            hidden_states, None if self.attention is None else self._attend(cell, kwargs)
        ), None

    def _attend(self, cell: CellCall, kwargs: dict[str, Any]) -> Inner:
        attention = self.attention
        assert attention is not None

        def attend(x: Tensor) -> Tensor:
            outputs: Tensor = attention(x, cell=cell, **kwargs)[0]
            return outputs

        return attend
