"""Attention inside a segment, ours in every executor: one function that transformers' layers call.

Transformers look up attention by name; ours is registered as `memarch` and finds what it needs in
the `cell` argument that the executor gives to the layer and the layer passes on. It computes in the
larger of float32 and the input's type where that type has no fused kernel, and has a plain form
that is twice differentiable, for gradient writers.

Shapes: N rows, H heads, Hk key-value heads, T queries, S keys, d head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

if TYPE_CHECKING:
    from memarch.arch.cells import CellCall

NAME = "memarch"


def causal_mask(valid: Tensor, window: int | None = None) -> Tensor:
    """[N, 1, T, T] bool: key s is seen by query t when s <= t, s > t - window and s is valid.

    Every token sees itself, so that pads compute something finite that nothing reads.
    """
    length = valid.shape[-1]
    position = torch.arange(length, device=valid.device)
    distance = position.unsqueeze(1) - position
    mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return (mask & valid[:, None, None, :]) | (distance == 0)


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """softmax(q k^T scale) v by PyTorch's fused kernels; mask None is causal. `[N, H, T, d]`."""
    if mask is None and dropout == 0 and _has_slow_kernel(q):
        return _batched_products(q, k, v, scale)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scale
    )


def _has_slow_kernel(q: Tensor) -> bool:
    """On CPUs the fused kernel costs up to twice the products for many short rows."""
    rows, _, length, _ = q.shape
    return q.device.type == "cpu" and q.dtype.itemsize >= 4 and rows > 1 and length <= 128


def _batched_products(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    rows, heads, length, _ = q.shape
    q, k, v = (tensor.reshape(rows * heads, length, tensor.shape[-1]) for tensor in (q, k, v))
    future = q.new_full((length, length), -torch.inf).triu(1)
    weights = torch.baddbmm(future, q, k.mT, alpha=scale).softmax(dim=-1)
    return torch.bmm(weights, v).view(rows, heads, length, -1)


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """The same in plain operations, which autograd can differentiate twice."""
    if mask is None:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ k.mT).to(dtype) * scale
    weights = scores.masked_fill(~mask, torch.finfo(dtype).min).softmax(dim=-1).to(v.dtype)
    return F.dropout(weights, dropout) @ v


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cell: CellCall,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What layers call: q `[N, H, T, d]`, k and v `[N, Hk, T, d]` to `([N, T, H, d], None)`."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return cell.attend(query, key, value, scale, dropout, sliding_window), None


AttentionInterface.register(NAME, segment_attention)
