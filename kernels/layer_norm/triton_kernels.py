"""Layer normalisation in Triton: one pass over memory forward, one backward.

As in RMS norm, a program holds whole rows in registers, its second index is the cell, and a fixed
number of programs a cell sum the gradients of weight and bias for PyTorch to add up.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from memarch.kernels.rows import choose_blocks, count_programs, find_rows, first_order_only


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """y `[N, ..., D]` for weight and bias `[D]` or `[G, D]`; differentiable once."""
    y: Tensor = _LayerNorm.apply(x, weight, bias, eps)
    return y


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        weight = weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if x.numel() == 0:
            return y
        size, groups = x.shape[-1], weight.numel() // x.shape[-1]
        count = x.numel() // size // groups
        (folded,), (stride,), inner = find_rows(x)
        blocks = choose_blocks(count, size)
        with torch.cuda.device_of(x):
            _forward[(triton.cdiv(count, blocks.rows), groups)](
                folded,
                weight,
                bias,
                y,
                count,
                size,
                inner,
                *stride,
                eps,
                BLOCK_ROWS=blocks.rows,
                BLOCK_SIZE=blocks.size,
                num_warps=blocks.num_warps,
            )
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        first_order_only("layer_norm")
        x, weight, bias = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if x.numel() == 0:
            zeros = torch.zeros_like(weight)
            return dx, zeros, None if bias is None else torch.zeros_like(bias), None
        size, groups = x.shape[-1], weight.numel() // x.shape[-1]
        count = x.numel() // size // groups
        folded, strides, inner = find_rows(x, dy)
        blocks = choose_blocks(count, size)
        programs = count_programs(x, groups, triton.cdiv(count, blocks.rows))
        parts = 1 if bias is None else 2
        partial = torch.empty(parts, groups, programs, size, dtype=torch.float32, device=x.device)
        with torch.cuda.device_of(x):
            _backward[(programs, groups)](
                *folded,
                weight,
                dx,
                partial,
                count,
                size,
                inner,
                *strides[0],
                *strides[1],
                ctx.eps,
                HAS_BIAS=bias is not None,
                BLOCK_ROWS=blocks.rows,
                BLOCK_SIZE=blocks.size,
                num_warps=blocks.num_warps,
            )
        sums = partial.sum(2).view(parts, *weight.shape)
        dbias = None if bias is None else sums[1].to(bias.dtype)
        return dx, sums[0].to(weight.dtype), dbias, None


@triton.jit
def _forward(
    x,
    weight,
    bias,
    y,
    count,  # rows of a cell
    size,
    inner,
    x_outer,
    x_inner,
    eps,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    cell = tl.program_id(1)
    column = tl.arange(0, BLOCK_SIZE)[None, :]
    scale = tl.load(weight + cell * size + column, mask=column < size, other=0.0).to(tl.float32)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    inside = (row < count) & (column < size)
    row += cell * count
    at = (row // inner).to(tl.int64) * x_outer + (row % inner).to(tl.int64) * x_inner
    values = tl.load(x + at + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=1, keep_dims=True) / size
    centred = tl.where(inside, values - mean, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / size + eps)
    out = centred * inverse * scale
    if bias is not None:
        out += tl.load(bias + cell * size + column, mask=column < size, other=0.0).to(tl.float32)
    tl.store(y + row.to(tl.int64) * size + column, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    x,
    dy,
    weight,
    dx,
    partial,  # [1 or 2, G, programs, D]: of the weight, of the bias
    count,
    size,
    inner,
    x_outer,
    x_inner,
    dy_outer,
    dy_inner,
    eps,
    HAS_BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    cell = tl.program_id(1)
    column = tl.arange(0, BLOCK_SIZE)[None, :]
    scale = tl.load(weight + cell * size + column, mask=column < size, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_ROWS, BLOCK_SIZE], tl.float32)
    total_bias = tl.zeros([BLOCK_ROWS, BLOCK_SIZE], tl.float32)
    step = tl.num_programs(0) * BLOCK_ROWS
    for start in range(tl.program_id(0) * BLOCK_ROWS, count, step):
        row = start + tl.arange(0, BLOCK_ROWS)[:, None]
        inside = (row < count) & (column < size)
        row += cell * count
        outer, within = (row // inner).to(tl.int64), (row % inner).to(tl.int64)
        at = outer * x_outer + within * x_inner + column
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        at = outer * dy_outer + within * dy_inner + column
        upstream = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        mean = tl.sum(values, axis=1, keep_dims=True) / size
        centred = tl.where(inside, values - mean, 0.0)
        inverse = tl.rsqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / size + eps)
        normed = tl.where(inside, centred * inverse, 0.0)  # eps = 0: 0 * inf in an absent row
        total += upstream * normed
        if HAS_BIAS:
            total_bias += upstream
        upstream *= scale
        shift = tl.sum(upstream, axis=1, keep_dims=True) / size
        projection = tl.sum(upstream * normed, axis=1, keep_dims=True) / size
        out = (upstream - shift - normed * projection) * inverse
        tl.store(dx + row.to(tl.int64) * size + column, out.to(dx.dtype.element_ty), mask=inside)
    column = tl.arange(0, BLOCK_SIZE)
    at = (cell * tl.num_programs(0) + tl.program_id(0)) * size + column
    tl.store(partial + at, tl.sum(total, axis=0), mask=column < size)
    if HAS_BIAS:
        at += tl.num_programs(1) * tl.num_programs(0) * size
        tl.store(partial + at, tl.sum(total_bias, axis=0), mask=column < size)
