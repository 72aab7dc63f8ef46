"""Root mean square normalisation in Triton: one pass over memory forward, one backward.

A program holds whole rows in registers, several where they are short. Its second index is the
cell, whose weight it reads once. Backward, a fixed number of programs a cell walk over the rows and
sum the weight's gradient in registers; PyTorch adds up what they leave, in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from memarch.kernels.rows import choose_blocks, count_programs, find_rows, first_order_only


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y `[N, ..., D]` for x `[N, ..., D]` and weight `[D]` or `[G, D]`; differentiable once."""
    y: Tensor = _RMSNorm.apply(x, weight, eps)
    return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        weight = weight.contiguous()
        ctx.save_for_backward(x, weight)
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
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        first_order_only("rms_norm")
        x, weight = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if x.numel() == 0:
            return dx, torch.zeros_like(weight), None
        size, groups = x.shape[-1], weight.numel() // x.shape[-1]
        count = x.numel() // size // groups
        folded, strides, inner = find_rows(x, dy)
        blocks = choose_blocks(count, size)
        programs = count_programs(x, groups, triton.cdiv(count, blocks.rows))
        partial = torch.empty(groups, programs, size, dtype=torch.float32, device=x.device)
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
                BLOCK_ROWS=blocks.rows,
                BLOCK_SIZE=blocks.size,
                num_warps=blocks.num_warps,
            )
        return dx, partial.sum(1).view(weight.shape).to(weight.dtype), None


@triton.jit
def _forward(
    x,
    weight,
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
    inverse = tl.rsqrt(tl.sum(values * values, axis=1, keep_dims=True) / size + eps)
    out = values * inverse * scale
    tl.store(y + row.to(tl.int64) * size + column, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    x,
    dy,
    weight,
    dx,
    partial,  # [G, programs, D]
    count,
    size,
    inner,
    x_outer,
    x_inner,
    dy_outer,
    dy_inner,
    eps,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    cell = tl.program_id(1)
    column = tl.arange(0, BLOCK_SIZE)[None, :]
    scale = tl.load(weight + cell * size + column, mask=column < size, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_ROWS, BLOCK_SIZE], tl.float32)
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
        inverse = tl.rsqrt(tl.sum(values * values, axis=1, keep_dims=True) / size + eps)
        normed = tl.where(inside, values * inverse, 0.0)  # eps = 0 makes 0 * inf of an absent row
        total += upstream * normed
        upstream *= scale
        projection = tl.sum(upstream * normed, axis=1, keep_dims=True) / size
        out = (upstream - normed * projection) * inverse
        tl.store(dx + row.to(tl.int64) * size + column, out.to(dx.dtype.element_ty), mask=inside)
    at = (cell * tl.num_programs(0) + tl.program_id(0)) * size + tl.arange(0, BLOCK_SIZE)
    tl.store(partial + at, tl.sum(total, axis=0), mask=tl.arange(0, BLOCK_SIZE) < size)
