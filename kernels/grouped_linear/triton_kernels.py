"""One linear map a cell in Triton: all cells' products in one launch, the epilogue in registers.

Programs are numbered cell by cell, and inside a cell in bands of 8 tiles of rows, so that those
that run together read the same columns of the weight and the same few rows from the second-level
cache. Gradients are batched products, which PyTorch does and differentiates again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memarch.kernels.grouped_linear.reference import batched_product

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def grouped_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None
) -> Tensor:
    """y `[N, ..., O]` for x `[N, ..., I]`, weight `[G, I, O]`, bias `[G, O]`, residual as y."""
    groups, size, outputs = weight.shape
    rows = x.reshape(groups, -1, size)
    if residual is not None:
        residual = residual.reshape(groups, -1, outputs)
    y: Tensor = _GroupedLinear.apply(rows, weight, bias, activation, residual)
    return y.view(*x.shape[:-1], outputs)


class Tiles(NamedTuple):
    """What a program computes: a tile of y, in steps along I."""

    rows: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int


def choose_tiles(count: int, outputs: int, dtype: torch.dtype) -> Tiles:
    """Large tiles where there are rows for them; float32 has no tensor cores to feed."""
    if dtype == torch.float32:
        return Tiles(64 if count <= 64 else 128, 64, 16, 8, 2)
    if count <= 32:
        return Tiles(32, 64, 128, 4, 4)
    if count <= 64 or outputs <= 64:
        return Tiles(64, 64, 64, 4, 4)
    return Tiles(128, 128, 64, 8, 4)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str | None,
        residual: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(rows, weight, bias)
        ctx.activation = activation
        groups, count, size = rows.shape
        outputs = weight.shape[2]
        y = torch.empty(groups, count, outputs, dtype=rows.dtype, device=rows.device)
        if y.numel() == 0:
            return y
        rows, residual = _neighbours(rows), None if residual is None else _neighbours(residual)
        tiles = choose_tiles(count, outputs, rows.dtype)
        programs = groups * triton.cdiv(count, tiles.rows) * triton.cdiv(outputs, tiles.outputs)
        with torch.cuda.device_of(rows):
            _forward[(programs,)](
                rows,
                weight,
                None if bias is None else bias.contiguous(),
                residual,
                y,
                count,
                size,
                outputs,
                rows.stride(0),
                rows.stride(1),
                *weight.stride(),
                *((0, 0) if residual is None else residual.stride()[:2]),
                ACTIVATION=activation,
                WHOLE=size % tiles.inputs == 0,
                BLOCK_ROWS=tiles.rows,
                BLOCK_OUTPUTS=tiles.outputs,
                BLOCK_INPUTS=tiles.inputs,
                num_warps=tiles.num_warps,
                num_stages=tiles.num_stages,
            )
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias = ctx.saved_tensors
        dz = dy
        if ctx.activation is not None:
            dz = dy * _slope(batched_product(rows, weight, bias).float(), ctx.activation).to(
                dy.dtype
            )
        for_rows, for_weight, for_bias, _, for_residual = ctx.needs_input_grad
        return (
            torch.bmm(dz, weight.mT) if for_rows else None,
            torch.bmm(rows.mT, dz) if for_weight else None,
            dz.sum(1) if for_bias else None,
            None,
            dy if for_residual else None,
        )


def _neighbours(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def _slope(z: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        gate = torch.sigmoid(z)
        return gate * (1 + z * (1 - gate))
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return (1 + torch.erf(z * math.sqrt(0.5))) / 2 + z * density


@triton.jit
def _forward(
    x,  # [G, R, I]
    weight,
    bias,
    residual,
    y,  # [G, R, O], contiguous
    count,  # R
    size,  # I
    outputs,  # O
    x_cell,
    x_row,
    weight_cell,
    weight_input,
    weight_output,
    residual_cell,
    residual_row,
    ACTIVATION: tl.constexpr,
    WHOLE: tl.constexpr,  # I is a multiple of BLOCK_INPUTS
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    down, across = tl.cdiv(count, BLOCK_ROWS), tl.cdiv(outputs, BLOCK_OUTPUTS)
    cell = (tl.program_id(0) // (down * across)).to(tl.int64)
    tile = tl.program_id(0) % (down * across)
    band = tile // (8 * across) * 8
    height = min(down - band, 8)
    tile = tile % (8 * across)
    row = (band + tile % height) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tile // height * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    step = tl.arange(0, BLOCK_INPUTS)

    # Rows and columns past the end read the first ones again and are not stored.
    source = x + cell * x_cell
    source += (row % count).to(tl.int64)[:, None] * x_row + step[None, :]
    kernel = weight + cell * weight_cell + step.to(tl.int64)[:, None] * weight_input
    kernel += (column % outputs).to(tl.int64)[None, :] * weight_output
    total = tl.zeros([BLOCK_ROWS, BLOCK_OUTPUTS], tl.float32)
    for start in range(0, size, BLOCK_INPUTS):
        if WHOLE:
            a, b = tl.load(source), tl.load(kernel)
        else:
            a = tl.load(source, mask=(start + step < size)[None, :], other=0.0)
            b = tl.load(kernel, mask=(start + step < size)[:, None], other=0.0)
        if INTERPRETED:  # it multiplies bfloat16 as the integers of its bits
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision="ieee")
        source += BLOCK_INPUTS
        kernel += BLOCK_INPUTS * weight_input

    inside = (row < count)[:, None] & (column < outputs)[None, :]
    if bias is not None:
        at = cell * outputs + column
        total += tl.load(bias + at, mask=column < outputs, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == "silu":
        total *= tl.sigmoid(total)
    elif ACTIVATION == "gelu":
        total *= 0.5 * (1 + tl.erf(total * 0.7071067811865476))
    row = row.to(tl.int64)[:, None]
    if residual is not None:
        at = cell * residual_cell + row * residual_row + column[None, :]
        total += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    at = (cell * count + row) * outputs + column[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)
