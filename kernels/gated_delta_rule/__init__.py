"""The gated delta rule, token by token (Gated DeltaNet, arXiv 2412.06464, equation 10).

    S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,   alpha_t = exp(g_t)
    o_t = S_t^T q_t

Shapes: q, k `[B, T, H, K]`, v `[B, T, H, V]`, beta, g `[B, T, H]`, state `[B, H, K, V]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memarch.kernels.checks import Form, Impl, check_form, check_shapes, compute_dtype
from memarch.kernels.delta_rule import resolve_form
from memarch.kernels.gated_delta_rule import reference


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    state: Tensor | None = None,
    *,
    form: Form = "chunked",
    chunk_size: int = 64,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """`(o [B, T, H, V], final state [B, H, K, V])`; without `state` it starts from zeros.

    g is the logarithm of the decay alpha and must not be positive. With g = 0 this is `delta_rule`.
    Forms, dtypes, autocast and Triton are as there.
    """
    shapes = {"q": (q, "B T H K"), "k": (k, "B T H K"), "v": (v, "B T H V")}
    shapes |= {"beta": (beta, "B T H"), "g": (g, "B T H")}
    if state is not None:
        shapes["state"] = (state, "B H K V")
    sizes = check_shapes("gated_delta_rule", **shapes)
    check_form("gated_delta_rule", form, chunk_size)
    if state is None:
        state = v.new_zeros([sizes[dim] for dim in "BHKV"], dtype=compute_dtype(v))
    if resolve_form("gated_delta_rule", form, impl, q, k, v, beta, g, state) == "triton":
        from memarch.kernels.delta_rule import triton_kernels

        return triton_kernels.chunked(q, k, v, beta, g, state, chunk_size=chunk_size)
    dtype = compute_dtype(q, k, v, beta, g, state)
    inputs = [tensor.to(dtype) for tensor in (q, k, v, beta, g, state)]
    with torch.autocast(q.device.type, enabled=False):
        if form == "recurrent":
            o, final = reference.recurrent(*inputs)
        else:
            o, final = reference.chunked(*inputs, chunk_size=chunk_size)
    return o.to(v.dtype), final
