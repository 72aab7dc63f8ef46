"""What a matrix of associations recalls for features, and the gradient: shared by read and write.

    den_i = z . phi_i + eps,   y_i = A^T phi_i / den_i

A row that has stored nothing has an infinite den, so that y and its gradients are exactly 0 there.
With w_i = phi_i / den_i, a gradient g of y and h_i = A g_i, nothing larger than w is needed:

    t_i    = h_i . w_i
    dA     = sum_i w_i g_i^T
    dz     = -sum_i t_i w_i
    dphi_i = (h_i - t_i z) / den_i

Matrix products take the features' type, sums and results the state's.
Shapes: N rows, M tokens, F features, D hidden: phi `[N, M, F]`, A `[N, F, D]`, z `[N, F]`, y and g
`[N, M, D]`, den and t `[N, M, 1]`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from memarch.kernels.checks import resolve_impl
from memarch.kernels.feature_maps import FeatureMap, num_features

EPS = 1e-5


def denominators(features: Tensor, normalizer: Tensor, empty: Tensor, infinity: float) -> Tensor:
    """den; in rows where `empty` `[N]`, infinity with the sign that the caller wants."""
    offset = features.new_full((1, 1, 1), EPS).masked_fill(empty.view(-1, 1, 1), infinity)
    z = normalizer.to(features.dtype).unsqueeze(1)
    return torch.baddbmm(offset, z, features.mT).mT


def recall_gradient(
    features: Tensor, denominator: Tensor, matrix: Tensor, normalizer: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`(dphi, w, t)` for the gradient of y."""
    weights = features / denominator
    h = torch.bmm(gradient, matrix.to(gradient.dtype).mT)
    t = (h * weights).sum(-1, keepdim=True)
    z = normalizer.to(gradient.dtype).unsqueeze(1)
    return torch.addcmul(h, t, z, value=-1) / denominator, weights, t


def add_product(total: Tensor, x: Tensor, y: Tensor, *, alpha: float = 1) -> Tensor:
    """total + alpha x y, in total's type."""
    if total.dtype == x.dtype:
        return torch.baddbmm(total, x, y, alpha=alpha)
    return torch.add(total, torch.bmm(x, y), alpha=alpha).to(total.dtype)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """The operations choose their types themselves."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def check_features(op: str, name: FeatureMap, d: int, num: int) -> None:
    """The state holds as many features as the map has."""
    if num_features(name, d) != num:
        raise ValueError(
            f"{op}: feature_map {name!r} gives {num_features(name, d)} features of d={d}, "
            f"got a matrix of F={num}"
        )


def resolve_recall(
    op: str, name: FeatureMap, impl: str, *tensors: Tensor
) -> Literal["reference", "triton"]:
    """`resolve_impl`, and what only the reference has."""
    chosen = resolve_impl(op, impl, *tensors)
    if chosen == "triton" and name == "softmax":
        if impl == "triton":
            raise ValueError(
                f"{op}: feature_map 'softmax' has no Triton form; use impl='auto' or 'reference'"
            )
        return "reference"
    return chosen
