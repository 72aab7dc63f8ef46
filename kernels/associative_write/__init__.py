"""The associative write: all tokens of a segment at once, each against the old state.

Delta rule (ARMT, arXiv 2407.04841, equations 3 and 4), eps = 1e-5, w_i the token's weight:

    vbar_i  = A^T phi(k_i) / (z . phi(k_i) + eps)
    gamma_i = clip(1 - (z . phi(k_i) + eps) / (|phi(k_i)|^2 + eps), 0, 1), without gradient
    A' = A + sum_i phi(k_i) (w_i beta_i (v_i - vbar_i))^T
    z' = z + sum_i w_i gamma_i phi(k_i)

In rows that have stored nothing vbar = 0 and gamma = 1, exactly; without the correction gamma = 1
everywhere. Hebbian sum: A' = A + sum_i phi(k_i) (w_i v_i)^T, z' = z + sum_i w_i phi(k_i).
phi is a feature map of `feature_maps.py`.
Shapes: matrix A `[N, F, D]`, normalizer z `[N, F]`, keys `[N, M, d]`, values `[N, M, D]`, beta and
weight `[N, M, 1]`, empty `[N]` bool, where F = num_features(feature_map, d).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from memarch.kernels.associative_write import reference
from memarch.kernels.associative_write.reference import Addressed
from memarch.kernels.associative_write.reference import Rule as Rule
from memarch.kernels.checks import Impl, check_shapes
from memarch.kernels.feature_maps import FeatureMap
from memarch.kernels.recall import check_features, resolve_recall, without_autocast


def associative_write(
    matrix: Tensor,
    normalizer: Tensor,
    keys: Tensor,
    values: Tensor,
    beta: Tensor | None,
    weight: Tensor | None,
    empty: Tensor,
    *,
    rule: Rule,
    correction: bool,
    feature_map: FeatureMap,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """The new matrix and normaliser, in the old ones' dtypes.

    beta None is 1, and belongs to the delta rule, as `correction` does. weight is a constant, such
    as a mask; None is 1. Matrix products take keys' dtype, whatever autocast says; Triton adds up
    in float32. Both implementations are differentiable any number of times. `softmax` has no Triton
    form: `auto` is the reference then. ValueError on shapes that do not fit, on settings that
    contradict each other and on an `impl` that cannot run.
    """
    shapes = {
        "matrix": (matrix, "N F D"),
        "normalizer": (normalizer, "N F"),
        "keys": (keys, "N M d"),
        "values": (values, "N M D"),
        "empty": (empty, "N"),
    }
    if beta is not None:
        shapes["beta"] = (beta, "N M 1")
    if weight is not None:
        shapes["weight"] = (weight, "N M 1")
    sizes = check_shapes("associative_write", **shapes)
    check_features("associative_write", feature_map, sizes["d"], sizes["F"])
    _check_rule(rule, beta, correction)
    present = [x for x in (matrix, normalizer, keys, values, beta, weight) if x is not None]
    chosen = resolve_recall("associative_write", feature_map, impl, *present)
    with without_autocast(keys.device):
        strength = beta
        if weight is not None:
            weight = weight.detach()
            strength = weight if beta is None else beta * weight
        arguments: Any = (matrix, normalizer, keys, values, strength, weight, empty)
        arguments += (feature_map, rule, correction)
        if torch.is_grad_enabled() and any(x.requires_grad for x in present):
            new: tuple[Tensor, Tensor] = _Write.apply(*arguments, chosen)
            return new
        if chosen == "triton":
            return _triton(*arguments)[:2]
        return reference.write(*arguments)


def _check_rule(rule: str, beta: Tensor | None, correction: bool) -> None:
    if rule not in ("delta", "hebbian"):
        raise ValueError(f"associative_write: rule must be 'delta' or 'hebbian', got {rule!r}")
    if rule == "hebbian" and (beta is not None or correction):
        raise ValueError(
            "associative_write: rule='hebbian' has neither beta nor correction; "
            "give beta=None, correction=False, or use rule='delta'"
        )


def _triton(*arguments: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    from memarch.kernels.associative_write.triton_kernels import write

    return write(*arguments)


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
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
        chosen: Literal["reference", "triton"],
    ) -> tuple[Tensor, Tensor]:
        ctx.name, ctx.rule = name, rule
        state, tokens = (matrix, normalizer), (keys, values, strength, weight, empty)
        addressed: tuple[Tensor | None, ...] = ()
        if chosen == "triton":
            new_matrix, new_normalizer, gain = _triton(*state, *tokens, name, rule, correction)
        else:
            addressed = reference.address(*state, keys, values, empty, name, rule)
            gain = reference.gains(addressed, weight, correction)
            new_matrix, new_normalizer = reference.store(*state, addressed, strength, gain)
        ctx.save_for_backward(*state, keys, values, strength, empty, gain, *addressed)
        return new_matrix, new_normalizer

    @staticmethod
    def backward(ctx: Any, of_matrix: Tensor, of_normalizer: Tensor) -> tuple[Tensor | None, ...]:
        matrix, normalizer, keys, values, strength, empty, gain, *saved = ctx.saved_tensors
        with without_autocast(keys.device):
            # The gradient of this gradient sees that phi and vbar depend on keys and state.
            if not saved or torch.is_grad_enabled():
                addressed = reference.address(
                    matrix, normalizer, keys, values, empty, ctx.name, ctx.rule
                )
            else:
                addressed = Addressed(*saved)
            given = reference.gradients(
                of_matrix,
                of_normalizer,
                matrix,
                normalizer,
                keys,
                strength,
                gain,
                addressed,
                ctx.name,
                ctx.needs_input_grad[:5],
            )
        return *given, *[None] * 6
