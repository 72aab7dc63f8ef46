"""Token-level mixers: DeltaNet (arXiv 2406.06484) and Gated DeltaNet (arXiv 2412.06464).

For each token x_t and, inside every head,

    q_t, k_t, v_t = SiLU(conv(W_qkv x)_t);   k_t = k_t / |k_t|;   q_t = q_t / |q_t| / sqrt(K)
    beta_t  = sigmoid(W_beta x_t)             (times 2 with `negative_eigenvalues`)
    alpha_t = exp(-exp(A) softplus(W_alpha x_t + b))
    S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T                            write: delta
    S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T               write: gated_delta
    S_t = S_{t-1} + k_t v_t^T                                                     write: hebbian
    y_t = W_o [norm(S_t^T q_t)],  times SiLU(W_gate x_t) before W_o with `output_gate`

State: S `[N, H, K, V]` in float32 at least, and `conv` `[N, conv - 1, 2 H K + H V]`, the last
inputs of the convolution. Both run through all tokens of the input and skip invalid ones, so the
borders of segments change nothing. Shapes: N rows, T tokens, D hidden, H heads, K key, V value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from memarch.components.errors import SpecError
from memarch.components.leaves import RMSNorm, ShortConv, Vector
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
from memarch.components.token_order import inverse, take, valid_first
from memarch.components.writers.token_hebbian import token_hebbian
from memarch.kernels.delta_rule import delta_rule
from memarch.kernels.gated_delta_rule import gated_delta_rule


class Delta(Strict):
    """The delta rule: what the key recalls is moved towards the value by the fraction beta."""

    type: Literal["delta"] = "delta"
    negative_eigenvalues: bool = False
    """beta in (0, 2) instead of (0, 1): a write may overshoot (arXiv 2411.12537)."""


class GatedDelta(Strict):
    """The delta rule after a decay of the whole state that the token chooses."""

    type: Literal["gated_delta"] = "gated_delta"
    negative_eigenvalues: bool = False
    """beta in (0, 2) instead of (0, 1): a write may overshoot (arXiv 2411.12537)."""


class Hebbian(Strict):
    """Linear attention: every pair is added, nothing is removed."""

    type: Literal["hebbian"] = "hebbian"


@memories.register("delta", paper="2406.06484")
class DeltaMixer(Memory):
    """A matrix per head, written and read at every token, instead of or beside attention."""

    site: ClassVar[Site] = "mixer"
    whole_input: ClassVar[bool] = True
    scales_with_width: ClassVar[tuple[str, ...]] = ("heads",)

    class Settings(LayeredSettings):
        """Settings of a token-level mixer."""

        type: Literal["delta"] = "delta"
        heads: Annotated[int, Field(ge=1)] | None = None
        """Number of matrices; by default as many as the backbone's attention has heads."""
        head_dim_k: Annotated[int, Field(ge=1)] | None = None
        """Length K of a key; by default hidden size / heads."""
        head_dim_v: Annotated[int, Field(ge=1)] | None = None
        """Length V of a value; by default hidden size / heads."""
        conv: Annotated[int, Field(ge=0)] = 4
        """Tokens that the short convolution sees, the current one included; 0 leaves it out."""
        qk_norm: Literal["l2", "none"] = "l2"
        """How queries and keys are normalised."""
        output_norm: Literal["rms", "none"] = "rms"
        """How each head's output is normalised."""
        output_gate: bool = False
        """Multiply the normalised output by SiLU(W_gate x)."""
        beside: bool = False
        """Add to the layer's attention, from zero at the start, instead of standing in for it."""
        chunk_size: Annotated[int, Field(ge=1)] = 32
        """Tokens a chunk; changes speed, not results."""
        write: Annotated[Delta | GatedDelta | Hebbian, Field(discriminator="type")] = Delta()
        """How a token changes the state."""

    def __init__(self, settings: Settings, context: BuildContext) -> None:
        super().__init__()
        self.settings = settings
        self.impl, self.std = context.impl, context.initializer_range
        self.keeps_attention = settings.beside
        hidden = context.hidden_size
        self.heads = settings.heads or context.num_heads
        self.key = settings.head_dim_k or _head_dim("head_dim_k", hidden, self.heads)
        self.value = settings.head_dim_v or _head_dim("head_dim_v", hidden, self.heads)
        self.channels = self.heads * (2 * self.key + self.value)
        values = self.heads * self.value

        self.qkv = nn.Linear(hidden, self.channels, bias=False)
        self.conv = ShortConv(self.channels, settings.conv) if settings.conv else None
        hebbian, gated = settings.write.type == "hebbian", settings.write.type == "gated_delta"
        self.beta = None if hebbian else nn.Linear(hidden, self.heads, bias=False)
        self.alpha = nn.Linear(hidden, self.heads, bias=False) if gated else None
        self.decay = Vector(self.heads) if gated else None
        self.decay_bias = Vector(self.heads) if gated else None
        self.gate = nn.Linear(hidden, values, bias=False) if settings.output_gate else None
        self.norm = RMSNorm(self.value, context.norm_eps) if settings.output_norm == "rms" else None
        self.out = nn.Linear(values, hidden, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.qkv, self.beta, self.alpha, self.gate, self.out):
            if linear is not None:
                nn.init.normal_(linear.weight, std=self.std)
        if self.settings.beside:
            nn.init.zeros_(self.out.weight)
        for leaf in (self.conv, self.norm):
            if leaf is not None:
                leaf.reset_parameters()
        if self.decay is not None and self.decay_bias is not None:
            # The paper's (and Mamba's) ranges: A in (0, 16), softplus(bias) in [0.001, 0.1].
            nn.init.uniform_(self.decay.weight, 1e-3, 16.0)
            nn.init.uniform_(self.decay_bias.weight, math.log(1e-3), math.log(1e-1))
            with torch.no_grad():
                self.decay.weight.log_()
                self.decay_bias.weight.exp_().expm1_().log_()  # the inverse of softplus

    def init_state(self, batch: int, like: Tensor) -> State:
        wide = torch.promote_types(like.dtype, torch.float32)
        state = {"S": like.new_zeros(batch, self.heads, self.key, self.value, dtype=wide)}
        if self.settings.conv > 1:
            state["conv"] = like.new_zeros(batch, self.settings.conv - 1, self.channels)
        return state

    def step(
        self, state: State, x: Tensor, inner: Callable[..., Tensor] | None, segment: Segment
    ) -> tuple[Tensor, State]:
        order = None if segment.full else valid_first(segment.valid)
        valid = None if segment.full else take(segment.valid, order, dim=1)
        y, new = self._mix(state, take(x, order, dim=1), valid)
        y = take(y, inverse(order), dim=1)
        if self.settings.beside:
            assert inner is not None, "a mixer beside attention needs the attention"
            y = inner(x) + y
        return y, keep_empty_rows(state, new, segment)

    def _mix(self, state: State, x: Tensor, valid: Tensor | None) -> tuple[Tensor, State]:
        """The equations above for x `[N, T, D]`, in which no valid token follows an invalid one.

        valid `[N, T]`, or None where all tokens are.
        """
        qkv = self.qkv(x)
        new: State = {}
        if self.conv is not None:
            tail = state.get("conv", qkv[:, :0])
            if "conv" in state:
                new["conv"] = _advance_tail(tail, qkv, valid)
            qkv = self.conv(qkv, tail)
        sizes = [self.heads * self.key, self.heads * self.key, self.heads * self.value]
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)) for part in torch.split(F.silu(qkv), sizes, dim=-1)
        )
        if self.settings.qk_norm == "l2":
            q, k = _unit(q), _unit(k)
        q = q * self.key**-0.5

        o, new["S"] = self._write(state["S"], q, k, v, x, valid)
        new = {key: value.to(state[key].dtype) for key, value in new.items()}
        if self.norm is not None:
            o = self.norm(o)
        o = o.flatten(2)
        if self.gate is not None:
            o = o * F.silu(self.gate(x))
        return self.out(o), new

    def _write(
        self, state: Tensor, q: Tensor, k: Tensor, v: Tensor, x: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`(outputs [N, T, H, V], S after the last token)`. Invalid tokens write nothing."""
        write, chunk_size = self.settings.write, self.settings.chunk_size
        if isinstance(write, Hebbian) or self.beta is None:
            return token_hebbian(q, k, _zero_invalid(v, valid), state, chunk_size=chunk_size)
        beta = self.beta(x).sigmoid() * (2 if write.negative_eigenvalues else 1)
        beta = _zero_invalid(beta, valid)
        if self.alpha is None or self.decay is None or self.decay_bias is None:
            return delta_rule(q, k, v, beta, state, chunk_size=chunk_size, impl=self.impl)
        rate = self.alpha(x) + self.decay_bias(x.shape[0]).unsqueeze(1)
        rate = F.softplus(rate.to(state.dtype))
        g = -self.decay(x.shape[0]).unsqueeze(1).to(state.dtype).exp() * rate
        g = _zero_invalid(g, valid)
        return gated_delta_rule(q, k, v, beta, g, state, chunk_size=chunk_size, impl=self.impl)


def _head_dim(name: str, hidden: int, heads: int) -> int:
    if hidden % heads:
        raise SpecError(
            f"{name} is needed where heads does not divide the hidden size, "
            f"got heads={heads}, hidden_size={hidden}",
            path="heads",
        )
    return hidden // heads


def _unit(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, in float32 at least; zero stays zero."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)


def _zero_invalid(x: Tensor, valid: Tensor | None) -> Tensor:
    """x `[N, T, ...]` with zeros at invalid tokens."""
    if valid is None:
        return x
    return x.masked_fill(~valid.view(*valid.shape, *[1] * (x.ndim - 2)), 0)


def _advance_tail(tail: Tensor, x: Tensor, valid: Tensor | None) -> Tensor:
    """The last inputs of the convolution after x `[N, T, C]`, whose valid tokens stand first."""
    length = tail.shape[1]
    seen = torch.cat([tail, x.to(tail.dtype)], dim=1)
    if valid is None:
        return seen[:, -length:]
    start = valid.sum(dim=1, keepdim=True)
    return take(seen, start + torch.arange(length, device=x.device), dim=1)


DELTANET: dict[str, Any] = {"write": {"type": "delta"}}
GATED_DELTANET: dict[str, Any] = {"write": {"type": "gated_delta"}, "output_gate": True}
memories.preset("deltanet", DeltaMixer, DELTANET, paper="2406.06484")
memories.preset("gated_deltanet", DeltaMixer, GATED_DELTANET, paper="2412.06464")
