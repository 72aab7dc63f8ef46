"""Layer normalisation in plain PyTorch. Tensors of one type, at least float32.

One weight for all rows is PyTorch's own operation. A weight a cell is not: there it normalises with
a weight of ones (without a weight its CPU kernel is half as fast), and each cell scales its rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from memarch.kernels.rows import by_cell


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """The definition. Differentiable any number of times."""
    size = x.shape[-1:]
    if weight.ndim == 2 and weight.shape[0] == 1:
        weight, bias = weight[0], bias if bias is None else bias[0]
    if weight.ndim == 1:
        return F.layer_norm(x, size, weight, bias, eps)
    rows = by_cell(x, weight)
    weight = weight.unsqueeze(1)  # [G, 1, D]
    normed = F.layer_norm(rows, size, weight.new_ones(size), None, eps)
    y = normed * weight if bias is None else torch.addcmul(bias.unsqueeze(1), normed, weight)
    return y if rows is x else y.view(x.shape)
