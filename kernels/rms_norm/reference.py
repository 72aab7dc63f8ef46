"""Root mean square normalisation in plain PyTorch. Tensors of one type, at least float32.

With r = (mean(x^2) + eps)^-1/2 and n = r x, for the loss's gradient dy:
    y  = weight * n
    dx = r (weight * dy - n mean(n * weight * dy))
    dweight = sum of n * dy over the rows
The gradient is written out: autograd's own chain takes half as long again on small inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from memarch.kernels.rows import by_cell


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The definition. Differentiable any number of times."""
    rows = by_cell(x, weight)
    y: Tensor
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        y = _RMSNorm.apply(rows, weight, eps)
    else:
        y = F.rms_norm(rows, rows.shape[-1:], None, eps) * _broadcast(weight)
    return y if rows is x else y.view(x.shape)


def _broadcast(weight: Tensor) -> Tensor:
    return weight if weight.ndim == 1 or weight.shape[0] == 1 else weight.unsqueeze(1)


def _inverse(rows: Tensor, eps: float) -> Tensor:
    return (rows.square().mean(-1, keepdim=True) + eps).rsqrt()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = _inverse(rows, eps)
        ctx.save_for_backward(rows, weight, inverse)
        ctx.eps = eps
        return rows * inverse * _broadcast(weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
        rows, weight, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient of this gradient sees that r depends on x
            inverse = _inverse(rows, ctx.eps)
        scale = _broadcast(weight)
        normed = rows * inverse
        scaled = dy * scale
        along = (scaled * normed).sum(-1, keepdim=True)
        dx = torch.addcmul(scaled, normed, along, value=-1 / rows.shape[-1]) * inverse
        if not ctx.needs_input_grad[1]:
            return dx, None, None
        return dx, (dy * normed).sum_to_size(scale.shape).view(weight.shape), None
