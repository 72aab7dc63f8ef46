"""One linear map a cell, as PyTorch's batched product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def grouped_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None
) -> Tensor:
    """The definition."""
    y = batched_product(x, weight, bias)
    if activation is not None:
        y = F.silu(y) if activation == "silu" else F.gelu(y)
    return y if residual is None else y + residual


def batched_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x `[N, ..., I]` times weight `[G, I, O]`, plus bias `[G, O]`."""
    groups, size, outputs = weight.shape
    rows = x.reshape(groups, -1, size)
    if bias is None:
        y = torch.bmm(rows, weight)
    else:
        y = torch.baddbmm(bias.unsqueeze(1), rows, weight)
    return y.view(*x.shape[:-1], outputs)
