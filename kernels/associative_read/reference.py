"""The associative read in plain PyTorch: the definition, and its gradient in few operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memarch.kernels.feature_maps import FeatureMap, feature_gradient, feature_map
from memarch.kernels.recall import denominators, recall_gradient


def read(
    x: Tensor, query: Tensor, matrix: Tensor, normalizer: Tensor, empty: Tensor, name: FeatureMap
) -> Tensor:
    """The definition. Differentiable any number of times."""
    return add_recalled(x, matrix, *address(query, normalizer, empty, name))


def address(
    query: Tensor, normalizer: Tensor, empty: Tensor, name: FeatureMap
) -> tuple[Tensor, Tensor]:
    """phi `[N, T, F]` and den `[N, T, 1]`."""
    features = feature_map(query, name)
    return features, denominators(features, normalizer, empty, math.inf)


def add_recalled(x: Tensor, matrix: Tensor, features: Tensor, denominator: Tensor) -> Tensor:
    """x + y `[N, T, D]`."""
    recalled = torch.bmm(features, matrix.to(features.dtype))
    return torch.addcdiv(x, recalled, denominator).to(x.dtype)


def gradients(
    gradient: Tensor,
    query: Tensor,
    matrix: Tensor,
    normalizer: Tensor,
    addressed: tuple[Tensor, Tensor],
    name: FeatureMap,
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of query, matrix and normalizer that are needed, for the gradient of x + y."""
    features, denominator = addressed
    gradient = gradient.to(features.dtype)
    if not needed[0] and not needed[2]:
        weights = features / denominator
        return None, torch.bmm(weights.mT, gradient) if needed[1] else None, None
    dphi, weights, t = recall_gradient(features, denominator, matrix, normalizer, gradient)
    return (
        feature_gradient(query, name, dphi) if needed[0] else None,
        torch.bmm(weights.mT, gradient) if needed[1] else None,
        -torch.bmm(t.mT, weights).squeeze(1) if needed[2] else None,
    )
