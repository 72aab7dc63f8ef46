"""The chunked delta rule and the chunked gated delta rule in Triton, forward and backward.

The equations are those of `reference.py`, here and in `gated_delta_rule`, ordered so that neither
W nor U0 exists. With c_i = g_1 + ... + g_i inside a chunk of C tokens, d_i = exp(c_i),
e_i = exp(c_C - c_i), G_ij = exp(c_i - c_j) for i >= j and S the state at the chunk's start:

    N = tril(G * K K^T, -1),   M = (I + diag(beta) N)^-1,   P = tril(G * Q K^T)
    U = M diag(beta) (V - diag(d) K S)
    O = diag(d) Q S + P U
    S' = d_C S + K^T diag(e) U

Without g all of G, d and e are ones and nothing of them is computed. Exponents are never positive.

Gradients. Let dO and dS' come in. The last three lines give, from the last chunk to the first,

    dU  = P^T dO + diag(e) K dS'
    Z   = M^T dU                       the gradient of beta (V - d K S)
    dS  = d_C dS' + (diag(d) Q)^T dO - (diag(beta d) K)^T Z

dM = dU X^T for X = diag(beta) (V - diag(d) K S), so that with M X = U the gradient of diag(beta) N
is -M^T dM M^T = -Z U^T below the diagonal. With F = tril(G * dO U^T), D = tril(G * -Z U^T, -1):

    dQ = diag(d) dO S^T + F K
    dK = diag(e) U dS'^T + F^T Q - diag(beta d) Z S^T + diag(beta) D K + D^T diag(beta) K
    dV = diag(beta) Z
    dbeta_i = Z_i . V_i - d_i (Z S^T)_i . K_i + (D K)_i . K_i

Every decay is the exponential of a difference of c, so c_i gains each product that its row scales
with d_i or has in row i of G, and loses those that it has in column j of G or scales with e_j:

    dc_i = Q_i . dQ_i - beta_i d_i (Z S^T)_i . K_i + beta_i (D K)_i . K_i
           - K_i . (e_i (U dS'^T)_i + (F^T Q)_i + (D^T diag(beta) K)_i)
    dg_i = dc_i + ... + dc_C + sum_j e_j (U dS'^T)_j . K_j + d_C <S, dS'>

Four kernels, all with one axis of programs: `_pairs` (a chunk of a head) writes M, P and c;
`_scan` (a block of V of a head, chunk after chunk, S on chip) writes O, or U and each S for the
backward; `_scan_back` (likewise, dS on chip) writes Z, dV and each dS'; `_gradients` (a chunk of a
head) writes the rest. Nothing but the inputs is kept between forward and backward.

Matrix products take v's dtype and add up in float32; the inverse, the decays and the state on chip
are float32.

Shapes: q, k `[B, T, H, K]`, v `[B, T, H, V]`, beta, g `[B, T, H]`, state `[B, H, K, V]`; per chunk,
m, p `[B * H, chunks, C, C]`, c `[B * H, chunks, C]`, states and their gradients
`[B * H, chunks, K, V]`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from memarch.kernels.rows import first_order_only

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _dot(x, y):
    """x y in x's dtype, added up in float32.

    float32 has no tensor cores, and each thread holds its rows of x and columns of y in registers:
    the product is the sum of a loop over products of 16 columns of x and 16 rows of y.
    """
    M: tl.constexpr = x.shape[0]
    N: tl.constexpr = y.shape[1]
    PARTS: tl.constexpr = x.shape[1] // 16
    y = y.to(x.dtype)
    if x.dtype == tl.float32:
        xs, ys = tl.reshape(x, [M, 16, PARTS]), tl.reshape(y, [16, PARTS, N])
        parts = tl.arange(0, PARTS)
        total = tl.zeros([M, N], tl.float32)
        for part in tl.range(PARTS, num_stages=1):
            x_part = tl.sum(tl.where((parts == part)[None, None, :], xs, 0.0), axis=2)
            y_part = tl.sum(tl.where((parts == part)[None, :, None], ys, 0.0), axis=1)
            total = tl.dot(x_part, y_part, total, input_precision="ieee")
        return total
    elif INTERPRETED:  # it takes the bits of bfloat16 for integers
        return tl.dot(x.to(tl.float32), y.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(x, y)


@triton.jit
def _rows(x, start, stride, time, columns, width, SIZE: tl.constexpr):
    """Addresses and mask of the columns below `width` in the tokens from `start` that exist."""
    rows = tl.arange(0, SIZE)
    at = x + start * stride + (rows[:, None] * stride + columns[None, :])
    return at, (start + rows < time)[:, None] & (columns < width)[None, :]


@triton.jit
def _load_rows(x, start, stride, time, columns, width, SIZE: tl.constexpr):
    at, mask = _rows(x, start, stride, time, columns, width, SIZE)
    return tl.load(at, mask=mask, other=0.0)


@triton.jit
def _store_rows(x, tile, start, stride, time, columns, width, SIZE: tl.constexpr):
    at, mask = _rows(x, start, stride, time, columns, width, SIZE)
    tl.store(at, tile, mask=mask)


@triton.jit
def _panel(x, index, keys, columns, K: tl.constexpr, V: tl.constexpr):
    """Addresses and mask of a part of the K x V numbers of one state."""
    at = x + index * K * V + (keys[:, None] * V + columns[None, :])
    return at, (keys < K)[:, None] & (columns < V)[None, :]


@triton.jit
def _load_panel(x, index, keys, columns, K: tl.constexpr, V: tl.constexpr):
    at, mask = _panel(x, index, keys, columns, K, V)
    return tl.load(at, mask=mask, other=0.0)


@triton.jit
def _store_panel(x, tile, index, keys, columns, K: tl.constexpr, V: tl.constexpr):
    at, mask = _panel(x, index, keys, columns, K, V)
    tl.store(at, tile, mask=mask)


@triton.jit
def _square(x, index, SIZE: tl.constexpr):
    """Addresses of the C x C numbers of one chunk."""
    rows = tl.arange(0, SIZE)
    return x + index * SIZE * SIZE + (rows[:, None] * SIZE + rows[None, :])


@triton.jit
def _head(x, row, heads, stride_b, stride_h):
    """x at the first token of one head of one batch entry."""
    return x + row // heads * stride_b + row % heads * stride_h


@triton.jit
def _load_decays(c, chunk, SIZE: tl.constexpr):
    """c of one chunk, and its last."""
    c += chunk * SIZE
    return tl.load(c + tl.arange(0, SIZE)), tl.load(c + SIZE - 1)


@triton.jit
def _between(sums, SIZE: tl.constexpr):
    """G, with ones above the diagonal."""
    rows = tl.arange(0, SIZE)
    below = rows[:, None] > rows[None, :]
    return tl.exp(tl.where(below, sums[:, None] - sums[None, :], 0.0))


@triton.jit
def _band(x, BLOCKS: tl.constexpr, SIZE: tl.constexpr, BELOW: tl.constexpr):
    """The blocks `[BLOCKS, SIZE, SIZE]` of x that lie `BELOW` blocks below the diagonal."""
    x = tl.reshape(x, [BLOCKS, SIZE, BLOCKS, SIZE])
    row, column = tl.arange(0, BLOCKS)[:, None], tl.arange(0, BLOCKS)[None, :]
    return tl.sum(tl.where((row == column + BELOW)[:, None, :, None], x, 0.0), axis=2)


@triton.jit
def _even_odd(x, BLOCKS: tl.constexpr, SIZE: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(x, [BLOCKS // 2, 2, SIZE, SIZE]), [0, 2, 3, 1]))


@triton.jit
def _merge(x, a, BLOCKS: tl.constexpr, SIZE: tl.constexpr):
    """Inverses of diagonal blocks, two by two: [[X, 0], [Y, X']] with Y = -X' A X."""
    first, second = _even_odd(x, BLOCKS, SIZE)
    _, between = _even_odd(_band(a, BLOCKS, SIZE, 1), BLOCKS, SIZE)
    corner = -tl.dot(second, tl.dot(between, first, input_precision="ieee"), input_precision="ieee")
    left = tl.join(first, corner)  # [BLOCKS / 2, SIZE, SIZE, the block's row]
    right = tl.join(tl.zeros_like(first), second)
    whole = tl.permute(tl.join(left, right), [0, 3, 1, 4, 2])
    return tl.reshape(whole, [BLOCKS // 2, 2 * SIZE, 2 * SIZE])


@triton.jit
def _inverse(a, SIZE: tl.constexpr):
    """(I + a)^-1 for a below the diagonal: rows of 16 x 16 blocks by substitution, then merged."""
    BLOCKS: tl.constexpr = SIZE // 16
    row, column = tl.arange(0, 16)[None, :, None], tl.arange(0, 16)[None, None, :]
    blocks = tl.permute(_band(a, BLOCKS, 16, 0), [0, 2, 1])  # transposed: a row lies along rows
    x = tl.where(row == column, 1.0, tl.zeros_like(blocks))
    for i in range(1, 16):
        weights = tl.sum(tl.where(column == i, blocks, 0.0), axis=2, keep_dims=True)
        update = tl.sum(weights * x, axis=1, keep_dims=True)
        x = tl.where(row == i, x - update, x)
    if BLOCKS >= 2:
        x = _merge(x, a, BLOCKS, 16)
    if BLOCKS == 4:
        x = _merge(x, a, 2, 32)
    return tl.reshape(x, [SIZE, SIZE])


@triton.jit
def _pairs(
    q,
    k,
    beta,
    g,
    m,
    p,
    c,
    T,
    H,
    q_b,
    q_t,
    q_h,
    k_b,
    k_t,
    k_h,
    K: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """M, P and c of one chunk of one head."""
    chunk = tl.program_id(0).to(tl.int64)
    chunks = tl.cdiv(T, SIZE)
    row, start = chunk // chunks, chunk % chunks * SIZE
    q = _head(q, row, H, q_b, q_h)
    k = _head(k, row, H, k_b, k_h)

    kk = tl.zeros([SIZE, SIZE], tl.float32)
    qk = tl.zeros([SIZE, SIZE], tl.float32)
    for first in range(0, K, BLOCK_K):
        keys = first + tl.arange(0, BLOCK_K)
        q_tile = _load_rows(q, start, q_t, T, keys, K, SIZE)
        k_tile = _load_rows(k, start, k_t, T, keys, K, SIZE)
        kk += _dot(k_tile, tl.trans(k_tile))
        qk += _dot(q_tile, tl.trans(k_tile))

    rows = tl.arange(0, SIZE)
    tokens = row // H * T * H + row % H + (start + rows) * H
    b = tl.load(beta + tokens, mask=start + rows < T, other=0.0).to(tl.float32)
    if g is not None:
        sums = tl.load(g + tokens, mask=start + rows < T, other=0.0).to(tl.float32)
        sums = tl.cumsum(sums)
        tl.store(c + chunk * SIZE + rows, sums)
        decay = _between(sums, SIZE)
        kk *= decay
        qk *= decay
    a = tl.where(rows[:, None] > rows[None, :], b[:, None] * kk, 0.0)
    tl.store(_square(m, chunk, SIZE), _inverse(a, SIZE))
    tl.store(_square(p, chunk, SIZE), tl.where(rows[:, None] >= rows[None, :], qk, 0.0))


@triton.jit
def _scan(
    q,
    k,
    v,
    beta,
    c,
    m,
    p,
    state,
    out,
    states,
    T,
    H,
    q_b,
    q_t,
    q_h,
    k_b,
    k_t,
    k_h,
    v_b,
    v_t,
    v_h,
    K: tl.constexpr,
    V: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    READ: tl.constexpr,
):
    """Chunk after chunk of one block of V of one head: O and the last S, or U and every S."""
    blocks = tl.cdiv(V, BLOCK_V)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    columns = tl.program_id(0) % blocks * BLOCK_V + tl.arange(0, BLOCK_V)
    keys = tl.arange(0, BLOCK_K)
    rows = tl.arange(0, SIZE)
    chunks = tl.cdiv(T, SIZE)
    q = _head(q, row, H, q_b, q_h)
    k = _head(k, row, H, k_b, k_h)
    v = _head(v, row, H, v_b, v_h)
    beta += row // H * T * H + row % H
    out += (row // H * T * H + row % H) * V

    s = _load_panel(state, row, keys, columns, K, V).to(tl.float32)
    for i in range(chunks):
        chunk = row * chunks + i
        start = tl.cast(i, tl.int64) * SIZE
        k_tile = _load_rows(k, start, k_t, T, keys, K, SIZE)
        v_tile = _load_rows(v, start, v_t, T, columns, V, SIZE).to(tl.float32)
        b = tl.load(beta + (start + rows) * H, mask=start + rows < T, other=0.0).to(tl.float32)

        old = _dot(k_tile, s)
        if c is not None:
            sums, last = _load_decays(c, chunk, SIZE)
            old *= tl.exp(sums)[:, None]
        u = _dot(tl.load(_square(m, chunk, SIZE)), b[:, None] * (v_tile - old))
        if READ:
            o = _dot(_load_rows(q, start, q_t, T, keys, K, SIZE), s)
            if c is not None:
                o *= tl.exp(sums)[:, None]
            o += _dot(tl.load(_square(p, chunk, SIZE)), u)
            _store_rows(out, o, start, H * V, T, columns, V, SIZE)
        else:
            _store_rows(out, u, start, H * V, T, columns, V, SIZE)
            _store_panel(states, s, chunk, keys, columns, K, V)
        if c is not None:
            u *= tl.exp(last - sums)[:, None]
            s *= tl.exp(last)
        s += _dot(tl.trans(k_tile), u)
    if READ:
        _store_panel(states, s, row, keys, columns, K, V)


@triton.jit
def _scan_back(
    q,
    k,
    beta,
    c,
    m,
    p,
    do,
    dfinal,
    z,
    dv,
    dstates,
    dstate,
    T,
    H,
    q_b,
    q_t,
    q_h,
    k_b,
    k_t,
    k_h,
    K: tl.constexpr,
    V: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """From the last chunk to the first: Z, dV, every dS', and the gradient of the first S."""
    blocks = tl.cdiv(V, BLOCK_V)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    columns = tl.program_id(0) % blocks * BLOCK_V + tl.arange(0, BLOCK_V)
    keys = tl.arange(0, BLOCK_K)
    rows = tl.arange(0, SIZE)
    chunks = tl.cdiv(T, SIZE)
    q = _head(q, row, H, q_b, q_h)
    k = _head(k, row, H, k_b, k_h)
    beta += row // H * T * H + row % H
    do += (row // H * T * H + row % H) * V
    z += (row // H * T * H + row % H) * V
    dv += (row // H * T * H + row % H) * V

    ds = _load_panel(dfinal, row, keys, columns, K, V).to(tl.float32)
    for back in range(chunks):
        i = chunks - 1 - back
        chunk = row * chunks + i
        start = tl.cast(i, tl.int64) * SIZE
        _store_panel(dstates, ds, chunk, keys, columns, K, V)
        q_tile = _load_rows(q, start, q_t, T, keys, K, SIZE)
        k_tile = _load_rows(k, start, k_t, T, keys, K, SIZE)
        do_tile = _load_rows(do, start, H * V, T, columns, V, SIZE)
        b = tl.load(beta + (start + rows) * H, mask=start + rows < T, other=0.0).to(tl.float32)

        du = _dot(k_tile, ds)
        if c is not None:
            sums, last = _load_decays(c, chunk, SIZE)
            du *= tl.exp(last - sums)[:, None]
        du += _dot(tl.trans(tl.load(_square(p, chunk, SIZE))), do_tile)
        z_tile = _dot(tl.trans(tl.load(_square(m, chunk, SIZE))), du)
        dv_tile = b[:, None] * z_tile
        _store_rows(z, z_tile, start, H * V, T, columns, V, SIZE)
        _store_rows(dv, dv_tile, start, H * V, T, columns, V, SIZE)
        if c is not None:
            do_tile = do_tile.to(tl.float32) * tl.exp(sums)[:, None]
            dv_tile *= tl.exp(sums)[:, None]
            ds *= tl.exp(last)
        ds += _dot(tl.trans(q_tile), do_tile)
        ds -= _dot(tl.trans(k_tile), dv_tile)
    _store_panel(dstate, ds, row, keys, columns, K, V)


@triton.jit
def _gradients(
    q,
    k,
    v,
    beta,
    c,
    do,
    u,
    z,
    states,
    dstates,
    dq,
    dk,
    dbeta,
    dg,
    T,
    H,
    q_b,
    q_t,
    q_h,
    k_b,
    k_t,
    k_h,
    v_b,
    v_t,
    v_h,
    K: tl.constexpr,
    V: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """dQ, dK, dbeta and dg of one chunk of one head."""
    chunk = tl.program_id(0).to(tl.int64)
    chunks = tl.cdiv(T, SIZE)
    row, start = chunk // chunks, chunk % chunks * SIZE
    rows = tl.arange(0, SIZE)
    dtype = do.dtype.element_ty
    first = row // H * T * H + row % H
    tokens = first + (start + rows) * H
    q = _head(q, row, H, q_b, q_h)
    k = _head(k, row, H, k_b, k_h)
    v = _head(v, row, H, v_b, v_h)
    do += first * V
    u += first * V
    z += first * V
    b = tl.load(beta + tokens, mask=start + rows < T, other=0.0).to(tl.float32)

    f = tl.zeros([SIZE, SIZE], tl.float32)
    d = tl.zeros([SIZE, SIZE], tl.float32)
    db = tl.zeros([SIZE], tl.float32)
    for column in range(0, V, BLOCK_V):
        columns = column + tl.arange(0, BLOCK_V)
        v_tile = _load_rows(v, start, v_t, T, columns, V, SIZE).to(tl.float32)
        do_tile = _load_rows(do, start, H * V, T, columns, V, SIZE)
        u_tile = _load_rows(u, start, H * V, T, columns, V, SIZE)
        z_tile = _load_rows(z, start, H * V, T, columns, V, SIZE)
        f += _dot(do_tile, tl.trans(u_tile))
        d -= _dot(z_tile, tl.trans(u_tile))
        db += tl.sum(z_tile.to(tl.float32) * v_tile, axis=1)
    if c is not None:
        sums, last = _load_decays(c, chunk, SIZE)
        decay = _between(sums, SIZE)
        f *= decay
        d *= decay
        dc = tl.zeros([SIZE], tl.float32)
        kept = 0.0
        added = 0.0
    f = tl.where(rows[:, None] >= rows[None, :], f, 0.0).to(dtype)
    d = tl.where(rows[:, None] > rows[None, :], d, 0.0).to(dtype)

    for key in range(0, K, BLOCK_K):
        keys = key + tl.arange(0, BLOCK_K)
        dos = tl.zeros([SIZE, BLOCK_K], tl.float32)
        zs = tl.zeros([SIZE, BLOCK_K], tl.float32)
        uds = tl.zeros([SIZE, BLOCK_K], tl.float32)
        for column in range(0, V, BLOCK_V):
            columns = column + tl.arange(0, BLOCK_V)
            do_tile = _load_rows(do, start, H * V, T, columns, V, SIZE)
            u_tile = _load_rows(u, start, H * V, T, columns, V, SIZE)
            z_tile = _load_rows(z, start, H * V, T, columns, V, SIZE)
            s = _load_panel(states, chunk, keys, columns, K, V)
            ds = _load_panel(dstates, chunk, keys, columns, K, V)
            dos += _dot(do_tile, tl.trans(s))
            zs += _dot(z_tile, tl.trans(s))
            uds += _dot(u_tile, tl.trans(ds))
            if c is not None:
                kept += tl.sum(s.to(tl.float32) * ds.to(tl.float32))
        if c is not None:
            dos *= tl.exp(sums)[:, None]
            zs *= tl.exp(sums)[:, None]
            uds *= tl.exp(last - sums)[:, None]

        k_tile = _load_rows(k, start, k_t, T, keys, K, SIZE)
        k_wide = k_tile.to(tl.float32)
        dq_tile = dos + _dot(f, k_tile)
        _store_rows(dq + first * K, dq_tile, start, H * K, T, keys, K, SIZE)
        q_tile = _load_rows(q, start, q_t, T, keys, K, SIZE)
        if c is not None:
            dc += tl.sum(q_tile.to(tl.float32) * dq_tile, axis=1)
            added += tl.sum(uds * k_wide)
        kb_tile = (b[:, None] * k_wide).to(dtype)
        later = uds + _dot(tl.trans(f), q_tile) + _dot(tl.trans(d), kb_tile)
        own = _dot(d, k_tile) - zs
        db += tl.sum(own * k_wide, axis=1)
        if c is not None:
            dc += tl.sum(own * kb_tile.to(tl.float32) - later * k_wide, axis=1)
        dk_tile = later + b[:, None] * own
        _store_rows(dk + first * K, dk_tile, start, H * K, T, keys, K, SIZE)
    tl.store(dbeta + tokens, db, mask=start + rows < T)
    if c is not None:
        dg_tile = tl.cumsum(dc, reverse=True) + (tl.exp(last) * kept + added)
        tl.store(dg + tokens, dg_tile, mask=start + rows < T)


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None,
    state: Tensor,
    *,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """`(o [B, T, H, V] in v's dtype, final state in float32)`; without g the plain delta rule.

    Chunks have 16, 32 or 64 tokens, the nearest to `chunk_size` and to the tokens that there are.
    """
    if v.numel() == 0:
        return torch.zeros_like(v), state.float()
    q, k = q.to(v.dtype), k.to(v.dtype)
    wanted = min(chunk_size, v.shape[1])
    size = min((16, 32, 64), key=lambda size: abs(size - wanted))
    outputs: tuple[Tensor, Tensor] = _Chunked.apply(q, k, v, beta, g, state, size)
    return outputs


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        g: Tensor | None,
        state: Tensor,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, v, beta, g, state)
        ctx.size = size
        with torch.cuda.device_of(q):
            return _forward(*_dense(q, k, v, beta, g, state), size)

    @staticmethod
    def backward(ctx: Any, do: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        first_order_only("delta_rule" if inputs[4] is None else "gated_delta_rule")
        with torch.cuda.device_of(do):
            gradients = _backward(do.contiguous(), dfinal.contiguous(), *_dense(*inputs), ctx.size)
        return *gradients, None


def _dense(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """The last dimension of q, k and v without gaps, the others without any."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    return q, k, v, beta.contiguous(), None if g is None else g.contiguous(), state.contiguous()


def _forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, state: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    o = _empty(v)
    final = _empty(state, torch.float32)
    pairs = _launch_pairs(q, k, v, beta, g, size)
    _launch_scan(q, k, v, beta, *pairs, state, o, final, size, read=True)
    return o, final


def _backward(
    do: Tensor,
    dfinal: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None,
    state: Tensor,
    size: int,
) -> tuple[Tensor | None, ...]:
    batch, time, heads, key = q.shape
    value = v.shape[-1]
    chunks = batch * heads * triton.cdiv(time, size)
    states, dstates = v.new_empty(2, chunks, key, value).unbind()
    u, z, dv = _empty(v), _empty(v), _empty(v)
    dq, dk, dbeta, dstate = _empty(q), _empty(k), _empty(beta), _empty(state)
    dg = None if g is None else _empty(g)

    m, p, c = _launch_pairs(q, k, v, beta, g, size)
    _launch_scan(q, k, v, beta, m, p, c, state, u, states, size, read=False)
    options = _options("_scan_back", q, v)
    _scan_back[batch * heads * triton.cdiv(value, options["BLOCK_V"]),](
        *(q, k, beta, c, m, p, do, dfinal, z, dv, dstates, dstate, time, heads),
        *_strides(q, k),
        K=key,
        V=value,
        SIZE=size,
        **options,
    )
    _gradients[chunks,](
        *(q, k, v, beta, c, do, u, z, states, dstates, dq, dk, dbeta, dg, time, heads),
        *_strides(q, k, v),
        K=key,
        V=value,
        SIZE=size,
        **_options("_gradients", q, v),
    )
    return dq, dk, dv, dbeta, dg, dstate


def _launch_pairs(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, size: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`(m, p, c)`, m and p in v's dtype; without g there is no c."""
    batch, time, heads, key = q.shape
    chunks = batch * heads * triton.cdiv(time, size)
    m, p = v.new_empty(2, chunks, size, size).unbind()
    c = None if g is None else torch.empty(chunks, size, dtype=torch.float32, device=v.device)
    _pairs[chunks,](
        *(q, k, beta, g, m, p, c, time, heads),
        *_strides(q, k),
        K=key,
        SIZE=size,
        **_options("_pairs", q, v),
    )
    return m, p, c


def _launch_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    m: Tensor,
    p: Tensor,
    c: Tensor | None,
    state: Tensor,
    out: Tensor,
    states: Tensor,
    size: int,
    *,
    read: bool,
) -> None:
    """Writes O and the final state into `out` and `states`, or U and the states of all chunks."""
    batch, time, heads, key = q.shape
    value = v.shape[-1]
    options = _options("_scan", q, v)
    _scan[batch * heads * triton.cdiv(value, options["BLOCK_V"]),](
        *(q, k, v, beta, c, m, p, state, out, states, time, heads),
        *_strides(q, k, v),
        K=key,
        V=value,
        SIZE=size,
        READ=read,
        **options,
    )


def launch_options(
    kernel: str, key: int, value: int, dtype: torch.dtype, *, hopper: bool
) -> dict[str, int]:
    """Sizes of tiles, numbers of warps and stages: the largest tiles whose registers do not spill.

    Hopper's matrix products read their operands from shared memory; earlier ones hold them in
    registers, and those of float32 much more so.
    """
    key, value = (max(16, triton.next_power_of_2(width)) for width in (key, value))
    wide = dtype == torch.float32
    if kernel == "_pairs":
        blocks = {"BLOCK_K": 16 if wide else min(key, 64)}
        warps = 8 if wide else 4
    elif kernel == "_gradients":
        blocks = {"BLOCK_K": min(key, 64 if hopper and not wide else 32)}
        blocks["BLOCK_V"] = min(value, 32 if wide else 64)
        warps = 8 if wide else 4
    else:
        blocks = {"BLOCK_K": key, "BLOCK_V": min(value, 16 if key > 128 else 32)}
        warps = 4 if hopper and not wide else 8
    return {**blocks, "num_warps": warps, "num_stages": 1 if wide else 2}


def _options(kernel: str, q: Tensor, v: Tensor) -> dict[str, int]:
    hopper = v.is_cuda and torch.cuda.get_device_capability(v.device)[0] >= 9
    return launch_options(kernel, q.shape[-1], v.shape[-1], v.dtype, hopper=hopper)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """Of batch, time and heads, tensor by tensor."""
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])


def _empty(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(like.shape, dtype=dtype or like.dtype, device=like.device)
