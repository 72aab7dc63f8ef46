"""The gated delta rule in plain PyTorch: the recurrence, and its chunked form (arXiv 2412.06464).

Shapes: B batch, T time, H heads, K key, V value, C chunk. All tensors have one type, at least
float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memarch.kernels.checks import fold_chunks, unfold_chunks


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token after the other: the definition. The decay acts first, then the delta rule.

    D_t = exp(g_t) S_{t-1}
    S_t = D_t + beta_t k_t (v_t - D_t^T k_t)^T
    o_t = S_t^T q_t
    """
    outputs = []
    for t in range(q.shape[1]):
        state = g[:, t].exp()[..., None, None] * state
        error = v[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], error)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, dim=1) if outputs else torch.zeros_like(v), state


def chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, state: Tensor, *, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """C tokens at once: the delta rule's WY form with the decay between two tokens of a chunk.

    With c_i = g_1 + ... + g_i inside the chunk, G_ij = exp(c_i - c_j) for i >= j, d_i = exp(c_i):
        A  = tril(diag(beta) (G * K K^T), -1)
        W  = (I + A)^-1 diag(beta d) K
        U0 = (I + A)^-1 diag(beta) V
        U  = U0 - W S
        O  = diag(d) Q S + (G * Q K^T) U
        S' = d_C S + L^T U = (d_C I - L^T W) S + L^T U0,    L = diag(d_C / d) K
    """
    batch, time, heads, key = q.shape
    if time == 0:
        return torch.zeros_like(v), state
    size = min(chunk_size, time)
    q, k, v = (fold_chunks(x, size) for x in (q, k, v))  # [n, B * H, C, K or V]
    beta, g = (fold_chunks(x.unsqueeze(-1), size) for x in (beta, g))  # [n, B * H, C, 1]
    c = g.cumsum(dim=2)
    above = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
    decay = (c - c.mT).masked_fill(above, -torch.inf).exp()  # [n, B * H, C, C]
    to_end = (c[:, :, -1:] - c).exp()
    whole = c[:, :, -1:].exp()  # [n, B * H, 1, 1]
    a = (beta * decay * (k @ k.mT)).tril(-1)
    wu = torch.linalg.solve_triangular(
        a, beta * torch.cat([c.exp() * k, v], dim=-1), upper=False, unitriangular=True
    )
    w, u = wu.split([key, v.shape[-1]], dim=-1)
    late = to_end * k

    starts = [state.reshape(batch * heads, key, -1)]
    eye = torch.eye(key, dtype=k.dtype, device=k.device)
    keep = whole[:-1] * eye - late[:-1].mT @ w[:-1]
    add = late[:-1].mT @ u[:-1]
    for keep_i, add_i in zip(keep.unbind(), add.unbind(), strict=True):
        starts.append(torch.baddbmm(add_i, keep_i, starts[-1]))

    s = torch.stack(starts)  # [n, B * H, K, V]
    u = u - w @ s
    o = (c.exp() * q) @ s + (decay * (q @ k.mT)) @ u
    final = whole[-1] * s[-1] + late[-1].mT @ u[-1]
    return unfold_chunks(o, batch, time), final.view_as(state)
