"""Weight gradients of many steps as one product.

A run of S steps uses every stacked weight S times. Autograd would make S gradients of few rows
each and add them up, which moves S times the weights through memory. Here the backward pass of a
use only notes its rows, and the weight's gradient is made of many together:

    dW = sum_s x_s^T dy_s = [x_1; ...; x_S]^T [dy_1; ...; dy_S]

A use hangs on the weight by an empty tensor as well, so that autograd comes to the weight after
all uses that the same backward pass has come to: passes through a part of the graph, repeated ones
and ones inside others stay exact, and so do derivatives of the gradient.
Shapes: G cells of a group, R rows, x `[G, R, I]`, dy `[G, R, O]`, weight `[G, I, O]`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

ROWS = 256
"""Of one cell; as many are held before they become a part of the gradient."""


class LateGradient:
    """A weight whose uses' gradients are made together."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._noted: defaultdict[int, _Noted] = defaultdict(_Noted)
        """By the number of the backward pass."""
        self._uses: Tensor = _Uses.apply(weight, self._noted)

    def product(self, x: Tensor) -> Tensor:
        """x W."""
        y: Tensor = _Product.apply(x, self._weight, self._uses, self._noted)
        return y


class _Noted:
    """Rows of uses that a backward pass has come to, and the gradient of those before."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._rows = 0
        self._total: Tensor | None = None

    def add(self, x: Tensor, dy: Tensor) -> None:
        self._pairs.append((x, dy))
        self._rows += x.shape[1]
        if self._rows >= ROWS:
            self._total = self.total()

    def total(self) -> Tensor | None:
        """The gradient of all uses so far."""
        if not self._pairs:
            return self._total
        x, dy = (torch.cat(parts, dim=1) for parts in zip(*self._pairs, strict=True))
        self._pairs, self._rows = [], 0
        if self._total is None:
            return torch.bmm(x.mT, dy)
        return torch.baddbmm(self._total, x.mT, dy)


class _Uses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, noted: defaultdict[int, _Noted]) -> Tensor:
        ctx.noted = noted
        return weight.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, None]:
        return ctx.noted.pop(torch._C._current_graph_task_id()).total(), None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, uses: Tensor, noted: defaultdict[int, _Noted]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.noted = noted
        return torch.bmm(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, Tensor, None]:
        x, weight = ctx.saved_tensors
        ctx.noted[torch._C._current_graph_task_id()].add(x, dy)
        dx = torch.bmm(dy, weight.mT) if ctx.needs_input_grad[0] else None
        return dx, None, dy.new_empty(0), None
