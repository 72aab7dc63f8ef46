"""The modules that own a memory's parameters, together with `nn.Linear`.

A group of cells runs as one call of one memory: its leaves then hold weights with a leading group
dimension, and see N = G * B rows of which row g * B + b belongs to cell g. Everything else in a
memory's forward is written for N rows and needs to know nothing of groups, as long as no parameter
is owned by anything but a leaf.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memarch.kernels.checks import Impl
from memarch.kernels.rms_norm import rms_norm


def per_row(weight: Tensor, num_dims: int, rows: int) -> Tensor:
    """A weight of `num_dims` dimensions, ready to broadcast with `[rows, ...]`.

    `[*shape] -> [1, *shape]`; stacked `[G, *shape] -> [rows, *shape]`, each row its cell's.
    """
    if weight.ndim == num_dims:
        return weight.unsqueeze(0)
    groups, *shape = weight.shape
    return weight.unsqueeze(1).expand(groups, rows // groups, *shape).reshape(rows, *shape)


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps) over the last dimension, in float32 at least.

    Shapes: x, y `[N, ..., D]`, weight `[D]`.
    """

    def __init__(self, size: int, eps: float, impl: Impl = "auto") -> None:
        super().__init__()
        self.eps, self.impl = eps, impl
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, impl=self.impl)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)


class ShortConv(nn.Module):
    """Depthwise causal convolution y_t = sum_j weight[:, j] * x_{t - K + 1 + j}, tail before x_1.

    Shapes: x, y `[N, T, C]`, tail `[N, K - 1, C]`, weight `[C, K]`.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(channels, kernel))
        self.reset_parameters()

    def forward(self, x: Tensor, tail: Tensor) -> Tensor:
        weight = per_row(self.weight, 2, x.shape[0]).unsqueeze(1).unbind(-1)  # K of [1 or N, 1, C]
        x = torch.cat([tail.to(x.dtype), x], dim=1)
        time = x.shape[1] - self.kernel + 1
        y = x[:, :time] * weight[0]
        for j in range(1, self.kernel):
            y = torch.addcmul(y, x[:, j : j + time], weight[j])
        return y

    def reset_parameters(self) -> None:
        bound = self.kernel**-0.5
        nn.init.uniform_(self.weight, -bound, bound)


class Vector(nn.Module):
    """A parameter that is used as it is. `forward(rows)`: ready to broadcast with `[rows, ...]`.

    Shapes: weight `[*shape]`; result `[1, *shape]`, or `[rows, *shape]` in a group.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.num_dims = len(shape)
        self.weight = nn.Parameter(torch.zeros(*shape))

    def forward(self, rows: int) -> Tensor:
        return per_row(self.weight, self.num_dims, rows)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
