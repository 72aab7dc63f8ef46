"""What the norms share: which cell a row belongs to, and how their kernels walk over rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_SIZE = 8192  # of a row: a program holds whole rows in registers


def check_rows(op: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """x is `[N, ..., D]`, weight and bias are `[D]`, or `[G, D]` where G divides N."""
    groups = weight.shape[0] if weight.ndim == 2 else 1
    if (
        weight.ndim not in (1, 2)
        or x.ndim < weight.ndim
        or weight.shape[-1] != x.shape[-1]
        or groups == 0
        or x.shape[0] % groups
    ):
        raise ValueError(
            f"{op}: weight must have shape [D] or [G, D] for x [N, ..., D] where G divides N, "
            f"got weight {list(weight.shape)} and x {list(x.shape)}"
        )
    if bias is not None and bias.shape != weight.shape:
        raise ValueError(
            f"{op}: bias must have weight's shape {list(weight.shape)}, got {list(bias.shape)}"
        )


def by_cell(x: Tensor, weight: Tensor) -> Tensor:
    """x as `[G, rows of a cell, D]` where each has a weight; as it is where one serves all."""
    if weight.ndim == 1 or weight.shape[0] == 1 or (x.ndim == 3 and weight.shape[0] == x.shape[0]):
        return x
    return x.reshape(weight.shape[0], -1, x.shape[-1])


class Rows(NamedTuple):
    """Rows in memory: row r starts at (r // inner) * strides[i][0] + r % inner * strides[i][1]."""

    tensors: list[Tensor]
    strides: list[tuple[int, int]]
    inner: int


def find_rows(*tensors: Tensor) -> Rows:
    """Tensors of one shape `[N, ..., D]` as rows of D neighbours, copied only where they must be.

    Any stride between the N is fine, and any between what lies inside as long as it is one stride.
    """
    folded = []
    for x in tensors:
        x = x.reshape(x.shape[0], -1, x.shape[-1])  # [N, inner, D]
        folded.append(x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous())
    inner = folded[0].shape[1]
    if all(x.stride(0) == inner * x.stride(1) or x.shape[0] == 1 for x in folded):
        return Rows(folded, [(x.stride(1), 0) for x in folded], 1)
    return Rows(folded, [(x.stride(0), x.stride(1)) for x in folded], inner)


class Blocks(NamedTuple):
    """What a program holds at once."""

    rows: int
    size: int
    num_warps: int


def choose_blocks(rows: int, size: int) -> Blocks:
    """Whole rows, several where they are short; 16 numbers a thread."""
    block_size = _power_of_two(size)
    block_rows = min(max(1, 2048 // block_size), _power_of_two(rows))
    return Blocks(block_rows, block_size, min(max(1, block_rows * block_size // 512), 16))


def count_programs(x: Tensor, groups: int, blocks_of_rows: int) -> int:
    """Programs a cell that sum a weight's gradient, each over its share of the cell's rows."""
    if x.is_cuda:
        programs = 2 * torch.cuda.get_device_properties(x.device).multi_processor_count
    else:
        programs = 2 * groups
    return max(1, min(-(-programs // groups), blocks_of_rows))


def first_order_only(op: str) -> None:
    """Refuse to build a graph of a backward pass that a kernel computes."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{op}: the Triton form has no second derivative (backward was called with "
            "create_graph=True); use impl='reference' inside gradient writers"
        )


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
