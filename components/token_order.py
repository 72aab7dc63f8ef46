"""Rows of tokens with gaps: moving the valid tokens of each row together, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_first(valid: Tensor) -> Tensor | None:
    """Indices `[N, T]` that put a row's valid tokens first, order kept; None if they are."""
    if bool((valid[:, :-1] | ~valid[:, 1:]).all()):
        return None
    return torch.argsort(~valid, dim=1, stable=True)


def valid_last(valid: Tensor) -> Tensor | None:
    """Indices `[N, T]` that put a row's valid tokens last, order kept; None if they are."""
    if bool((~valid[:, :-1] | valid[:, 1:]).all()):
        return None
    return torch.argsort(valid.to(torch.uint8), dim=1, stable=True)


def take(x: Tensor, order: Tensor | None, dim: int) -> Tensor:
    """x `[N, ...]` with dimension `dim` reordered, in row n by `order[n]`; None: as it is.

    Shapes: order `[N, M]`; the result has size M in dimension `dim`.
    """
    if order is None:
        return x
    shape = [1] * x.ndim
    shape[0], shape[dim] = order.shape
    sizes = list(x.shape)
    sizes[dim] = order.shape[1]
    return x.gather(dim, order.view(shape).expand(sizes))


def inverse(order: Tensor | None) -> Tensor | None:
    """The reordering that undoes `order`."""
    return None if order is None else torch.argsort(order, dim=1)
