"""The memory interface: explicit state, one method, four sites.

A memory is a module that holds parameters only. What it remembers is a state, a flat dictionary of
tensors with the batch first, that goes into `step` and comes out of it.

| site | `x` | `inner` |
| --- | --- | --- |
| segment | embeddings `[B, T, D]` | the whole stack: `inner(x, valid) -> [B, T', D]`, normed |
| layer | the layer's input `[N, T, D]` | the decoder layer: `inner(x) -> [N, T, D]` |
| mixer | attention's normed input `[N, T, D]` | attention: `inner(x) -> [N, T, D]`, or None |
| attention | `(q [N, H, T, d], k, v [N, Hk, T, d])` | `inner(q, k, v, mask) -> [N, T, H, d]` |

Shapes: B batch, N = cells in a group * B, T tokens, D hidden, H heads, Hk key-value heads, d head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from memarch.components.registry import Registry
from memarch.components.strict import Strict

State = dict[str, Tensor]
Site = Literal["segment", "layer", "mixer", "attention"]


class Every(Strict):
    """Layers offset, offset + every, offset + 2 * every, ..."""

    every: Annotated[int, Field(ge=1)]
    offset: Annotated[int, Field(ge=0)] = 0


LayerChoice = Literal["all"] | list[Annotated[int, Field(ge=0)]] | Every


class MemorySettings(Strict):
    """What every memory's settings share; each memory's own have `type: Literal[its name]`."""

    type: str


class LayeredSettings(MemorySettings):
    """Settings of a memory that works inside decoder layers."""

    layers: LayerChoice = "all"
    """Layers that have this memory: `all`, a list of indices, or `{every: 2, offset: 1}`."""


@dataclass(frozen=True)
class BuildContext:
    """What a memory may know about the model it is built into."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    vocab_size: int
    segment_length: int
    norm_eps: float
    initializer_range: float
    layer: int | None = None
    """Index of the layer, or None for a memory at the segment site."""
    head_weight: Tensor | None = None
    """[vocab, D], the weight of the language model's head, to initialise a copy from."""
    impl: Literal["auto", "reference", "triton"] = "auto"
    """Which implementation the operations in kernels/ use."""


@dataclass(frozen=True)
class Segment:
    """What a cell may know about the segment that it processes. N = cells in the group * batch."""

    valid: Tensor
    """[N, T] bool. A row without a valid token leaves its state bit for bit."""
    first: Tensor
    """[N] bool: nothing was written before. Select by it per row, never branch on it."""
    positions: Tensor
    """[1 or N, T] int: the positions that the backbone sees."""
    ids: Tensor | None = None
    """[B, T] token ids, at the segment site only."""
    rope: tuple[Tensor, Tensor] | None = None
    """cos, sin `[1 or N, T, d]` where the backbone rotates queries and keys."""
    write: slice = field(default_factory=lambda: slice(0, 0))
    """Positions of the write tokens that the model appended."""
    answers: bool = True
    """The outputs are wanted, not only the state."""
    frozen: bool = False
    """A query: read the state; what the step returns as new state is thrown away."""
    full: bool = False
    """Every token is valid (known without looking at `valid`, which would wait for the device)."""
    pieces: int = 1
    """How many segments of equal length x holds: above 1 only for memories with `whole_input`."""


class Stack(Protocol):
    """The decoder stack as a memory at the segment site sees it."""

    losses: list[Tensor]
    """Auxiliary losses `[B]` that the memory adds to the training loss."""

    def __call__(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Run x `[B, T', D]`, valid `[B, T']` (None: all); the last call's layer states stay."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., D] -> [..., vocab]` by the language model's head."""
        ...


class Memory(nn.Module, ABC):
    """Base of every memory. Subclasses set `site` and `Settings` and implement the two methods."""

    site: ClassVar[Site]
    Settings: ClassVar[type[MemorySettings]]
    whole_input: ClassVar[bool] = False
    """`step` over several segments at once equals `step` over one after the other."""
    groupable: bool = True
    """States of different segments have equal shapes, so cells of different segments run as one."""
    positions: ClassVar[Literal["segment", "input"]] = "segment"
    """Whether the backbone's positions start anew in every segment or run on through the input."""
    scales_with_width: ClassVar[tuple[str, ...]] = ()
    """Settings, sizes all, that grow in proportion when a study's winner is made wider."""

    write_tokens: int = 0
    """Learned tokens that the model appends to each segment, shared by all memories that ask."""
    keeps_attention: bool = True
    """A mixer that stands in for attention says False: the layer's attention is then left out."""
    needs_ids: bool = False
    """At the segment site: `step` reads the segment's token ids, so it must be the outermost."""
    second_order: bool = False
    """`step` differentiates through gradients, so what is inside must be twice differentiable."""
    exact_gradient: bool = True
    """False where the equations treat a part as constant, so that no gradient is the true slope."""

    @abstractmethod
    def init_state(self, batch: int, like: Tensor) -> State:
        """The state before the first segment: tensors `[batch, ...]`, device and type as `like`."""

    @abstractmethod
    def step(
        self, state: State, x: Any, inner: Callable[..., Tensor] | None, segment: Segment
    ) -> tuple[Tensor, State]:
        """Read, run what is inside, write: `(outputs, new state)`. `state` is not modified."""

    def reset_parameters(self) -> None:
        """Give the parameters their initial values."""
        return None


def keep_empty_rows(old: State, new: State, segment: Segment) -> State:
    """`new`, but bit for bit `old` in rows of the segment that have no valid token."""
    if segment.full:
        return new
    some = segment.valid.any(dim=1)
    return {
        key: torch.where(some.view(-1, *[1] * (value.ndim - 1)), value, old[key])
        for key, value in new.items()
    }


memories: Registry[Memory] = Registry("memory", ("memarch.components",))
