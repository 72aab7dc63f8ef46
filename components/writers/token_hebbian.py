"""Linear attention: every token adds its key-value pair to a matrix (arXiv 2006.16236).

    S_t = S_{t-1} + k_t v_t^T
    o_t = S_t^T q_t                  without the paper's normaliser

Shapes: q, k `[B, T, H, K]`, v `[B, T, H, V]`, state `[B, H, K, V]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memarch.kernels.checks import compute_dtype, fold_chunks, unfold_chunks


def token_hebbian(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, *, chunk_size: int = 64
) -> tuple[Tensor, Tensor]:
    """`(o [B, T, H, V], final state)`, by chunks with S at a chunk's start and S' at its end:

    O  = Q S + tril(Q K^T) V
    S' = S + K^T V
    """
    batch, time, heads, key = q.shape
    if time == 0:
        return torch.zeros_like(v), state
    dtype, result = compute_dtype(q, k, v, state), v.dtype
    with torch.autocast(q.device.type, enabled=False):
        size = min(chunk_size, time)
        q, k, v = (fold_chunks(x.to(dtype), size) for x in (q, k, v))  # [n, B * H, C, K or V]
        start = state.to(dtype).reshape(1, batch * heads, key, -1)
        s = torch.cat([start, k.mT @ v]).cumsum(dim=0)  # [n + 1, B * H, K, V]
        o = q @ s[:-1] + (q @ k.mT).tril() @ v
    return unfold_chunks(o, batch, time).to(result), s[-1].reshape_as(state)
