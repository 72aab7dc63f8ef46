"""The associative read: what the queries recall, added to the residual stream (ARMT, 2407.04841).

    y_t = A^T phi(q_t) / (z . phi(q_t) + eps),   eps = 1e-5 (equations 1 and 2)
    out_t = x_t + y_t

with y = 0 in rows that have stored nothing. phi is a feature map of `feature_maps.py`.
Shapes: x, out `[N, T, D]`, query `[N, T, d]`, matrix A `[N, F, D]`, normalizer z `[N, F]`, empty
`[N]` bool, where F = num_features(feature_map, d).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from memarch.kernels.associative_read import reference
from memarch.kernels.checks import Impl, check_shapes
from memarch.kernels.feature_maps import FeatureMap
from memarch.kernels.recall import check_features, resolve_recall, without_autocast


def associative_read(
    x: Tensor,
    query: Tensor,
    matrix: Tensor,
    normalizer: Tensor,
    empty: Tensor,
    *,
    feature_map: FeatureMap,
    impl: Impl = "auto",
) -> Tensor:
    """x + y in x's dtype.

    Matrix products take query's dtype, whatever autocast says; Triton adds up in float32. Both
    implementations are differentiable any number of times. `softmax` has no Triton form: `auto` is
    the reference then. ValueError on shapes that do not fit and on an `impl` that cannot run.
    """
    sizes = check_shapes(
        "associative_read",
        x=(x, "N T D"),
        query=(query, "N T d"),
        matrix=(matrix, "N F D"),
        normalizer=(normalizer, "N F"),
        empty=(empty, "N"),
    )
    check_features("associative_read", feature_map, sizes["d"], sizes["F"])
    tensors = (x, query, matrix, normalizer)
    chosen = resolve_recall("associative_read", feature_map, impl, *tensors)
    with without_autocast(x.device):
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            out: Tensor = _Read.apply(*tensors, empty, feature_map, chosen)
            return out
        if chosen == "triton":
            return _triton(*tensors, empty, feature_map)
        return reference.read(*tensors, empty, feature_map)


def _triton(*arguments: Any) -> Tensor:
    from memarch.kernels.associative_read.triton_kernels import read

    return read(*arguments)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        query: Tensor,
        matrix: Tensor,
        normalizer: Tensor,
        empty: Tensor,
        name: FeatureMap,
        chosen: Literal["reference", "triton"],
    ) -> Tensor:
        ctx.name = name
        if chosen == "triton":
            ctx.save_for_backward(query, matrix, normalizer, empty)
            return _triton(x, query, matrix, normalizer, empty, name)
        addressed = reference.address(query, normalizer, empty, name)
        ctx.save_for_backward(query, matrix, normalizer, empty, *addressed)
        return reference.add_recalled(x, matrix, *addressed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, matrix, normalizer, empty, *addressed = ctx.saved_tensors
        with without_autocast(gradient.device):
            # The gradient of this gradient sees that phi and den depend on query and normalizer.
            if not addressed or torch.is_grad_enabled():
                addressed = reference.address(query, normalizer, empty, ctx.name)
            needed = ctx.needs_input_grad[1:4]
            given = reference.gradients(
                gradient, query, matrix, normalizer, addressed, ctx.name, needed
            )
        return gradient, *given, None, None, None
