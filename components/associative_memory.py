"""Associative memory of a layer: a matrix and its normaliser, read before the layer, written after.

The preset `armt` is the Associative Recurrent Memory Transformer (arXiv 2407.04841, eq. 1-4). For
layer l and segment s, with h the layer's input and phi a feature map:

    read    y_j = A_{s-1}^T phi(W_Q h_j) / (z_{s-1} . phi(W_Q h_j) + eps),  h_j <- h_j + y_j
    layer   o = layer(h)
    write   (A_s, z_s) from (A_{s-1}, z_{s-1}) by a writer over k_i = W_K o_i, v_i = W_V o_i,
            beta_i = sigmoid(W_beta o_i), where i runs over the memory tokens, or over all tokens

W_V starts at zero, so a fresh memory leaves the backbone's outputs as they are. Nothing is read in
the first segment. The writers' equations are in `kernels/associative_write`.

State, per layer: `matrix` `[N, F, D]`, `normalizer` `[N, F]`; none for the writer `none`.
Shapes: N group * batch, T tokens, D hidden, F features (2 nu d_mem for dpfp).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from memarch.components.memory import (
    BuildContext,
    LayeredSettings,
    Memory,
    Segment,
    Site,
    State,
    Strict,
    keep_empty_rows,
    memories,
)
from memarch.kernels.associative_read import associative_read
from memarch.kernels.associative_write import Rule, associative_write
from memarch.kernels.feature_maps import FeatureMap, num_features

Source = Literal["memory_tokens", "all_tokens"]


class DeltaWrite(Strict):
    """Replace what a key recalls (the delta rule)."""

    type: Literal["delta"] = "delta"
    correction: bool = True
    """Keep erased keys out of the normaliser (gamma in the paper)."""
    source: Source = "memory_tokens"
    """Which of the layer's outputs write."""


class HebbianWrite(Strict):
    """Add each key's value to what is stored."""

    type: Literal["hebbian"] = "hebbian"
    source: Source = "memory_tokens"
    """Which of the layer's outputs write."""


class NoWrite(Strict):
    """Write nothing: the control with the same tokens and no memory."""

    type: Literal["none"] = "none"


class ResidualRead(Strict):
    """Add what the query recalls to the layer's input."""

    type: Literal["residual"] = "residual"


@memories.register("associative")
class AssociativeMemory(Memory):
    """Matrix and normaliser per layer; see the module's docstring for the equations."""

    site: ClassVar[Site] = "layer"
    scales_with_width: ClassVar[tuple[str, ...]] = ("d_mem", "num_tokens")

    class Settings(LayeredSettings):
        """A matrix of associations in every chosen layer."""

        type: Literal["associative"] = "associative"
        d_mem: Annotated[int, Field(ge=1)] = 64
        """Size of keys and queries before the feature map."""
        num_tokens: Annotated[int, Field(ge=1)] = 8
        """Learned memory tokens at the end of each segment (unused when all tokens write)."""
        feature_map: FeatureMap = "dpfp3"
        """phi, applied to keys and queries."""
        write: Annotated[DeltaWrite | HebbianWrite | NoWrite, Field(discriminator="type")] = (
            DeltaWrite()
        )
        read: ResidualRead = ResidualRead()

    def __init__(self, settings: Settings, context: BuildContext) -> None:
        super().__init__()
        self.settings = settings
        self.hidden_size, self.impl = context.hidden_size, context.impl
        write = settings.write
        self.writes = not isinstance(write, NoWrite)
        self.from_all = not isinstance(write, NoWrite) and write.source == "all_tokens"
        self.rule: Rule = "delta" if isinstance(write, DeltaWrite) else "hebbian"
        self.correction = isinstance(write, DeltaWrite) and write.correction
        self.exact_gradient = not self.correction  # gamma is a constant for the gradient
        self.write_tokens = 0 if self.from_all else settings.num_tokens
        if self.writes:
            self.query = nn.Linear(context.hidden_size, settings.d_mem, bias=False)
            self.key = nn.Linear(context.hidden_size, settings.d_mem, bias=False)
            self.value = nn.Linear(context.hidden_size, context.hidden_size, bias=False)
        if isinstance(write, DeltaWrite):
            self.beta = nn.Linear(context.hidden_size, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linear layers as PyTorch does, values zero."""
        for linear in self.children():
            assert isinstance(linear, nn.Linear)
            linear.reset_parameters()
        if self.writes:
            nn.init.zeros_(self.value.weight)

    def init_state(self, batch: int, like: Tensor) -> State:
        """An empty matrix and normaliser."""
        if not self.writes:
            return {}
        features = num_features(self.settings.feature_map, self.settings.d_mem)
        return {
            "matrix": like.new_zeros(batch, features, self.hidden_size),
            "normalizer": like.new_zeros(batch, features),
        }

    def step(
        self, state: State, x: Tensor, inner: Callable[..., Tensor] | None, segment: Segment
    ) -> tuple[Tensor, State]:
        """Read into x `[N, T, D]`, run the layer, write from its outputs."""
        assert inner is not None
        if not self.writes:
            return inner(x), state
        x = associative_read(
            x,
            self.query(x),
            state["matrix"],
            state["normalizer"],
            segment.first,
            feature_map=self.settings.feature_map,
            impl=self.impl,
        )
        outputs = inner(x)
        if segment.frozen:
            return outputs, state
        return outputs, keep_empty_rows(state, self._write(state, outputs, segment), segment)

    def _write(self, state: State, outputs: Tensor, segment: Segment) -> State:
        sources, valid = outputs, segment.valid
        if not self.from_all:
            mine = slice(segment.write.start, segment.write.start + self.write_tokens)
            sources, valid = outputs[:, mine], segment.valid[:, mine]
        matrix, normalizer = associative_write(
            state["matrix"],
            state["normalizer"],
            self.key(sources),
            self.value(sources),
            torch.sigmoid(self.beta(sources)) if self.rule == "delta" else None,
            None if segment.full else valid.unsqueeze(-1).to(outputs.dtype),
            segment.first,
            rule=self.rule,
            correction=self.correction,
            feature_map=self.settings.feature_map,
            impl=self.impl,
        )
        return {"matrix": matrix, "normalizer": normalizer}


memories.preset("armt", AssociativeMemory, {"write": {"type": "delta"}}, paper="2407.04841")
