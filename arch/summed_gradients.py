"""A weight's gradient over many steps, added up where it lies.

A run of S steps uses every stacked weight S times. Autograd would make a new tensor of the weight's
size for every use and add it to the sum of the others; here the product itself adds to the sum:

    dW <- dW + x_s^T dy_s

A use hangs on the weight by an empty tensor as well, so that autograd comes to the weight after
all uses that the same backward pass has come to: passes through a part of the graph, repeated ones
and ones inside others stay exact, and so do derivatives of the gradient.
Shapes: G cells of a group, R rows, x `[G, R, I]`, dy `[G, R, O]`, weight `[G, I, O]`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Sums = dict[int, Tensor]
"""What uses have added so far, by the number of the backward pass."""


class SummedGradient:
    """A weight whose uses add to one gradient."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._sums: Sums = {}
        self._uses: Tensor = _Uses.apply(weight, self._sums)

    def product(self, x: Tensor) -> Tensor:
        """x W."""
        y: Tensor = _Product.apply(x, self._weight, self._uses, self._sums)
        return y


class _Uses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, sums: Sums) -> Tensor:
        ctx.sums = sums
        return weight.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.sums.pop(torch._C._current_graph_task_id()), None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, uses: Tensor, sums: Sums) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sums = sums
        return torch.bmm(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, Tensor, None]:
        x, weight = ctx.saved_tensors
        _add(ctx.sums, x.mT, dy)
        dx = torch.bmm(dy, weight.mT) if ctx.needs_input_grad[0] else None
        return dx, None, dy.new_empty(0), None


def _add(sums: Sums, x: Tensor, dy: Tensor) -> None:
    this_pass = torch._C._current_graph_task_id()
    if this_pass not in sums:
        sums[this_pass] = torch.bmm(x, dy)
    elif torch.is_grad_enabled():  # a derivative of the gradient may be wanted
        sums[this_pass] = torch.baddbmm(sums[this_pass], x, dy)
    else:
        sums[this_pass].baddbmm_(x, dy)
