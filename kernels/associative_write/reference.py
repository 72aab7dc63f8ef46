"""The associative write in plain PyTorch: the definition, and its gradient in few operations.

A token's strength is beta_i times its weight, its gain gamma_i times its weight; None is 1.
Shapes: as in the package's docstring; strength, gain `[N, M, 1]`.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from memarch.kernels.feature_maps import FeatureMap, feature_gradient, feature_map
from memarch.kernels.recall import EPS, add_product, denominators, recall_gradient

Rule = Literal["delta", "hebbian"]


class Addressed(NamedTuple):
    """What the keys address, before anything is written."""

    features: Tensor
    """phi `[N, M, F]`."""
    errors: Tensor
    """v - vbar `[N, M, D]`, v for the Hebbian sum."""
    denominator: Tensor | None
    """z . phi + eps `[N, M, 1]` for the delta rule, -inf in empty rows: vbar is 0, gamma 1."""


def write(
    matrix: Tensor,
    normalizer: Tensor,
    keys: Tensor,
    values: Tensor,
    strength: Tensor | None,
    weight: Tensor | None,
    empty: Tensor,
    name: FeatureMap,
    rule: Rule,
    correction: bool,
) -> tuple[Tensor, Tensor]:
    """The definition. Differentiable any number of times."""
    addressed = address(matrix, normalizer, keys, values, empty, name, rule)
    gain = gains(addressed, weight, correction)
    return store(matrix, normalizer, addressed, strength, gain)


def address(
    matrix: Tensor,
    normalizer: Tensor,
    keys: Tensor,
    values: Tensor,
    empty: Tensor,
    name: FeatureMap,
    rule: Rule,
) -> Addressed:
    features = feature_map(keys, name)
    if rule == "hebbian":
        return Addressed(features, values.to(features.dtype), None)
    denominator = denominators(features, normalizer, empty, -math.inf)
    recalled = torch.bmm(features, matrix.to(features.dtype))
    errors = torch.addcdiv(values, recalled, denominator, value=-1)
    return Addressed(features, errors.to(features.dtype), denominator)


def gains(addressed: Addressed, weight: Tensor | None, correction: bool) -> Tensor | None:
    """gamma times weight, a constant for the gradient."""
    if not correction or addressed.denominator is None:
        return weight
    norm = addressed.features.detach().square().sum(-1, keepdim=True) + EPS
    gamma = 1 - (addressed.denominator.detach() / norm).clamp_(0, 1)
    return gamma if weight is None else gamma * weight


def store(
    matrix: Tensor,
    normalizer: Tensor,
    addressed: Addressed,
    strength: Tensor | None,
    gain: Tensor | None,
) -> tuple[Tensor, Tensor]:
    features = addressed.features
    update = _scaled(addressed.errors, strength)
    matrix = add_product(matrix, features.mT, update)
    if gain is None:
        return matrix, (normalizer + features.sum(1)).to(normalizer.dtype)
    added = add_product(normalizer.unsqueeze(1), gain.to(features.dtype).mT, features)
    return matrix, added.squeeze(1)


class Gradients(NamedTuple):
    """Of the write's arguments, in their order."""

    matrix: Tensor | None
    normalizer: Tensor | None
    keys: Tensor | None
    values: Tensor | None
    strength: Tensor | None


def gradients(
    of_matrix: Tensor,
    of_normalizer: Tensor,
    matrix: Tensor,
    normalizer: Tensor,
    keys: Tensor,
    strength: Tensor | None,
    gain: Tensor | None,
    addressed: Addressed,
    name: FeatureMap,
    needed: tuple[bool, ...],
) -> Gradients:
    """Those that are needed, for the gradients of the new matrix and normaliser."""
    features, errors, denominator = addressed
    narrow = of_matrix.to(features.dtype)
    of_update = torch.bmm(features, narrow)
    of_errors = _scaled(of_update, strength)
    dphi, dkeys, dmatrix, dnormalizer = None, None, of_matrix, of_normalizer
    if needed[2]:
        dphi = torch.bmm(_scaled(errors, strength), narrow.mT)
        z = of_normalizer.to(features.dtype).unsqueeze(1)
        dphi = dphi + z if gain is None else torch.addcmul(dphi, gain.to(features.dtype), z)
    if denominator is not None and any(needed[:3]):
        recalled, weights, t = recall_gradient(features, denominator, matrix, normalizer, of_errors)
        if needed[0]:
            dmatrix = add_product(of_matrix, weights.mT, of_errors, alpha=-1)
        if needed[1]:
            dnormalizer = add_product(of_normalizer.unsqueeze(1), t.mT, weights).squeeze(1)
        if dphi is not None:
            dphi = dphi - recalled
    if dphi is not None:
        dkeys = feature_gradient(keys, name, dphi)
    dstrength = (of_update * errors).sum(-1, keepdim=True) if needed[4] else None
    return Gradients(dmatrix, dnormalizer, dkeys, of_errors, dstrength)


def _scaled(x: Tensor, strength: Tensor | None) -> Tensor:
    return x if strength is None else (x * strength).to(x.dtype)
