"""Writers of an associative matrix: delta rule with and without correction, Hebbian sum.

The state is a matrix A `[N, F, D]` and a normaliser z `[N, F]`. A write brings features
phi_i = phi(k_i) `[N, T, F]`, values v_i `[N, T, D]` and, for the delta rule, strengths beta_i
`[N, T, 1]`; all T tokens write at once, each against the old state. `weight` `[N, T, 1]` is 0 for
tokens that must not write. In the first segment nothing is stored, so the recalled value is 0 and
gamma is 1, exactly.

Delta rule (ARMT, arXiv 2407.04841, eq. 3-4), eps = 1e-5:

    vbar_i  = A^T phi_i / (z . phi_i + eps)
    gamma_i = clip(1 - (z . phi_i + eps) / (|phi_i|^2 + eps), 0, 1), without gradient
    A <- A + sum_i phi_i (beta_i (v_i - vbar_i))^T
    z <- z + sum_i gamma_i phi_i

Hebbian sum: A <- A + sum_i phi_i v_i^T, z <- z + sum_i phi_i.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-5


def recall(matrix: Tensor, normalizer: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """A^T phi / (z . phi + eps) `[N, T, D]` and the denominator `[N, T, 1]`."""
    denominator = features @ normalizer.unsqueeze(-1) + EPS
    return (features @ matrix) / denominator, denominator


def write_delta(
    matrix: Tensor,
    normalizer: Tensor,
    features: Tensor,
    values: Tensor,
    beta: Tensor,
    weight: Tensor,
    first: Tensor,
    *,
    correction: bool,
) -> tuple[Tensor, Tensor]:
    """The delta rule above; without `correction` gamma is 1. `first` is `[N]` bool."""
    first = first.view(-1, 1, 1)
    old, denominator = recall(matrix, normalizer, features)
    update = beta * (values - old.masked_fill(first, 0)) * weight
    gamma = torch.ones_like(denominator)
    if correction:
        norm = features.square().sum(dim=-1, keepdim=True) + EPS
        gamma = (1 - denominator / norm).clamp(0, 1).detach().masked_fill(first, 1)
    return (
        matrix + features.mT @ update,
        normalizer + (gamma * weight * features).sum(dim=1),
    )


def write_hebbian(
    matrix: Tensor, normalizer: Tensor, features: Tensor, values: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The Hebbian sum above."""
    return matrix + features.mT @ (values * weight), normalizer + (weight * features).sum(dim=1)
