"""Gradient writer: K steps of SGD on a loss of the fast variables, per sample (GradMem).

GradMem (arXiv 2603.13875, Alg. 1): M_{k+1} = M_k - alpha * clip(grad_M L(M_k)), k = 0..K-1, with
the model's weights held fixed. What the outer loss sees of the inner loop:

- `second`: everything, also how the update depends on M_k and on the weights (MAML); with
  `second_order_steps` = k only in the last k steps, the earlier ones being `first`
- `first`: the gradient passes to M_0 as if the updates were constants (FOMAML)
- `none`: nothing, M_0 included

Clipping, per sample and per variable: element-wise to [-v, v], then to norm at most n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from memarch.components.memory import State

GradientMode = Literal["none", "first", "second"]


def gradient_write(
    loss: Callable[[State], Tensor],
    fast: State,
    *,
    steps: int,
    step_size: float,
    mode: GradientMode,
    second_order_steps: int | None = None,
    clip_value: float | None = None,
    clip_norm: float | None = None,
) -> tuple[State, Tensor | None]:
    """The fast variables `[B, ...]` after `steps` steps, and the last step's loss `[B]`.

    `loss` maps the variables to one loss a sample; samples must not mix in it. Works under
    `no_grad` too, where nothing is kept for an outer gradient.
    """
    outer = torch.is_grad_enabled()
    second_from = steps
    if mode == "second":
        second_from = 0 if second_order_steps is None else max(0, steps - second_order_steps)
    if mode == "none":
        fast = {key: value.detach() for key, value in fast.items()}
    value: Tensor | None = None
    with torch.enable_grad():
        for step in range(steps):
            create_graph = outer and step >= second_from
            leaves = {
                key: value if create_graph and value.requires_grad else _leaf(value)
                for key, value in fast.items()
            }
            value = loss(leaves)
            gradients = torch.autograd.grad(
                value.sum(), list(leaves.values()), create_graph=create_graph
            )
            fast = {
                key: fast[key] - step_size * clip(gradient, clip_value, clip_norm)
                for key, gradient in zip(leaves, gradients, strict=True)
            }
    if not outer or mode == "none":
        fast = {key: tensor.detach() for key, tensor in fast.items()}
    return fast, value


def clip(gradient: Tensor, clip_value: float | None, clip_norm: float | None) -> Tensor:
    """Each sample's gradient, element-wise within clip_value, then within norm clip_norm."""
    if clip_value is not None:
        gradient = gradient.clamp(-clip_value, clip_value)
    if clip_norm is not None:
        norm = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.ndim - 1))
        gradient = torch.where(norm > clip_norm, gradient * (clip_norm / (norm + 1e-6)), gradient)
    return gradient


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()
