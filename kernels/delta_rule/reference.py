"""The delta rule in plain PyTorch: the recurrence, and its chunked form (arXiv 2406.06484).

Shapes: B batch, T time, H heads, K key, V value, C chunk. All tensors have one type, at least
float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memarch.kernels.checks import fold_chunks, unfold_chunks


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token after the other: the definition.

    S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T
    o_t = S_t^T q_t
    """
    outputs = []
    for t in range(q.shape[1]):
        error = v[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], error)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, dim=1) if outputs else torch.zeros_like(v), state


def chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, *, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """C tokens at once, by the WY representation of a chunk's writes, built with the UT transform.

    With Q, K, V the rows of one chunk, S the state at its start, S' the one at its end:
        A  = tril(diag(beta) K K^T, -1)
        W  = (I + A)^-1 diag(beta) K
        U0 = (I + A)^-1 diag(beta) V
        U  = U0 - W S                       the rows that the chunk really adds
        O  = Q S + tril(Q K^T) U
        S' = S + K^T U = (I - K^T W) S + K^T U0
    Only the last line passes from chunk to chunk; everything else is done for all chunks at once.
    """
    batch, time, heads, key = q.shape
    if time == 0:
        return torch.zeros_like(v), state
    size = min(chunk_size, time)
    q, k, v = (fold_chunks(x, size) for x in (q, k, v))  # [n, B * H, C, K or V]
    beta = fold_chunks(beta.unsqueeze(-1), size)  # [n, B * H, C, 1]
    a = (beta * (k @ k.mT)).tril(-1)
    wu = torch.linalg.solve_triangular(
        a, beta * torch.cat([k, v], dim=-1), upper=False, unitriangular=True
    )
    w, u = wu.split([key, v.shape[-1]], dim=-1)

    starts = [state.reshape(batch * heads, key, -1)]
    keep = torch.eye(key, dtype=k.dtype, device=k.device) - k[:-1].mT @ w[:-1]
    add = k[:-1].mT @ u[:-1]
    for keep_i, add_i in zip(keep.unbind(), add.unbind(), strict=True):
        starts.append(torch.baddbmm(add_i, keep_i, starts[-1]))

    s = torch.stack(starts)  # [n, B * H, K, V]
    u = u - w @ s
    o = q @ s + (q @ k.mT).tril() @ u
    final = s[-1] + k[-1].mT @ u[-1]
    return unfold_chunks(o, batch, time), final.view_as(state)
