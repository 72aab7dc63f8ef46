"""Keys and values themselves as memory: full attention over the whole input, and a sliding window.

    y_t = attention(q_t, {(k_j, v_j) : j <= t, j valid})                            full
    y_t = attention(q_t, {(k_j, v_j) : j <= t, j valid, rank_t - rank_j < window})  sliding window

rank counts valid tokens. The first is what the bare backbone computes on the whole input; both are
the baselines of every comparison. Keys and values are stored as they arrive, rotated by positions
that run on through the input.

State: k, v `[N, Hk, S, d]` and valid `[N, S]`. Full: S grows with the input, valid tokens stand
first. Window: S = window - 1, valid tokens stand last. Invalid entries are zeros.
Shapes: N rows, H heads, Hk key-value heads, T tokens, S stored tokens, d head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from memarch.components.memory import (
    BuildContext,
    LayeredSettings,
    Memory,
    Segment,
    Site,
    State,
    memories,
)
from memarch.components.token_order import take, valid_first, valid_last


def causal_mask(past: Tensor, valid: Tensor, window: int | None = None) -> Tensor:
    """Which stored and which new tokens each new token may see: bool `[N, 1, T, S + T]`.

    past `[N, S]` and valid `[N, T]` are bool. A token sees valid tokens up to itself, and no more
    than the last `window` of them. Every token sees itself, so that no row of the mask is empty;
    what invalid tokens see does not matter.
    """
    stored, time = past.shape[1], valid.shape[1]
    keys = torch.cat([past, valid], dim=1)
    mask = torch.ones(time, stored + time, dtype=torch.bool, device=valid.device).tril(stored)
    mask = mask & keys.unsqueeze(1)
    if window is not None:
        rank = keys.cumsum(dim=1)
        mask = mask & (rank[:, stored:, None] - rank[:, None, :] < window)
    itself = torch.eye(time, dtype=torch.bool, device=valid.device)
    mask = mask | torch.nn.functional.pad(itself, (stored, 0))
    return mask.unsqueeze(1)


@memories.register("kv_cache")
class KVCache(Memory):
    """Attention over everything that was seen, or over the last `window` tokens."""

    site: ClassVar[Site] = "attention"
    whole_input: ClassVar[bool] = True
    positions: ClassVar[Literal["segment", "input"]] = "input"

    class Settings(LayeredSettings):
        """Settings of a cache of keys and values."""

        type: Literal["kv_cache"] = "kv_cache"
        window: Annotated[int, Field(ge=1)] | None = None
        """Tokens that a token sees, itself included; none: all."""

    def __init__(self, settings: Settings, context: BuildContext) -> None:
        super().__init__()
        self.settings = settings
        self.num_kv_heads, self.head_dim = context.num_kv_heads, context.head_dim
        self.groupable = settings.window is not None

    def init_state(self, batch: int, like: Tensor) -> State:
        stored = 0 if self.settings.window is None else self.settings.window - 1
        shape = (batch, self.num_kv_heads, stored, self.head_dim)
        valid = torch.zeros(batch, stored, dtype=torch.bool, device=like.device)
        return {"k": like.new_zeros(shape), "v": like.new_zeros(shape), "valid": valid}

    def step(
        self,
        state: State,
        x: tuple[Tensor, Tensor, Tensor],
        inner: Callable[..., Tensor] | None,
        segment: Segment,
    ) -> tuple[Tensor, State]:
        assert inner is not None, "a cache needs the attention function"
        q, k, v = x
        seen = {
            "k": torch.cat([state["k"].to(k.dtype), k], dim=2),
            "v": torch.cat([state["v"].to(v.dtype), v], dim=2),
            "valid": torch.cat([state["valid"], segment.valid], dim=1),
        }
        mask = causal_mask(state["valid"], segment.valid, self.settings.window)
        y = inner(q, seen["k"], seen["v"], mask)
        if segment.frozen:
            return y, state
        new = self._keep(seen, segment.full, first=state["valid"].shape[1] == 0)
        new = {key: value.to(state[key].dtype) for key, value in new.items()}
        return y, new

    def _keep(self, seen: State, full: bool, *, first: bool) -> State:
        """Of all tokens seen, those that a later token may see, gaps closed.

        Where all new tokens are valid, nothing but the gaps of a growing cache needs work, and
        there are none in what comes first.
        """
        valid = seen["valid"]
        if self.settings.window is None and full and first:
            return seen
        if self.settings.window is None:
            order, size = valid_first(valid), int(valid.sum(dim=1).max())
            kept = slice(0, size)
        else:
            order, size = None if full else valid_last(valid), self.settings.window - 1
            kept = slice(valid.shape[1] - size, None)
        new = {
            "k": take(seen["k"], order, dim=2)[:, :, kept],
            "v": take(seen["v"], order, dim=2)[:, :, kept],
            "valid": take(valid, order, dim=1)[:, kept],
        }
        if full:
            return new
        empty = ~new["valid"][:, None, :, None]
        return new | {key: new[key].masked_fill(empty, 0) for key in ("k", "v")}


FULL_ATTENTION: dict[str, Any] = {}
SLIDING_WINDOW: dict[str, Any] = {"window": 64}
memories.preset("full_attention", KVCache, FULL_ATTENTION)
memories.preset("sliding_window", KVCache, SLIDING_WINDOW)
