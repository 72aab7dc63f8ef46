"""One linear map a cell, as PyTorch's batched product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def grouped_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None
) -> Tensor:
    """The definition."""
    groups, size, outputs = weight.shape
    y = product(x.reshape(groups, -1, size), weight, bias).view(*x.shape[:-1], outputs)
    if activation is not None:
        y = F.silu(y) if activation == "silu" else F.gelu(y)
    return y if residual is None else y + residual


def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows `[G, R, I]` times weight `[G, I, O]`, plus bias `[G, O]`."""
    if bias is None:
        return torch.bmm(rows, weight)
    return torch.baddbmm(bias.unsqueeze(1), rows, weight)
