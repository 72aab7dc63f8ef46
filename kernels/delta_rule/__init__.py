"""The delta rule, token by token (DeltaNet, arXiv 2406.06484, equation 3).

    S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T
    o_t = S_t^T q_t

Each write is one gradient step of size beta_t on |S^T k_t - v_t|^2 / 2.
Shapes: q, k `[B, T, H, K]`, v `[B, T, H, V]`, beta `[B, T, H]`, state `[B, H, K, V]`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from memarch.kernels.checks import Form, Impl, check_form, check_shapes, compute_dtype, resolve_impl
from memarch.kernels.delta_rule import reference

MAX_TRITON_KEY = 256


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    *,
    form: Form = "chunked",
    chunk_size: int = 64,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """`(o [B, T, H, V], final state [B, H, K, V])`; without `state` it starts from zeros.

    `chunked` and `recurrent` are the same function; the recurrent form is the definition, the
    chunked one does most of its work in matrix products. o has v's dtype; the state is computed and
    returned in the largest of float32 and the inputs' types, whatever autocast says.

    Triton has the chunked form, for K up to 256, once differentiable: its matrix products take v's
    dtype and add up in float32, and its chunks have 16, 32 or 64 tokens, the nearest to chunk_size.
    """
    shapes = {
        "q": (q, "B T H K"),
        "k": (k, "B T H K"),
        "v": (v, "B T H V"),
        "beta": (beta, "B T H"),
    }
    if state is not None:
        shapes["state"] = (state, "B H K V")
    sizes = check_shapes("delta_rule", **shapes)
    check_form("delta_rule", form, chunk_size)
    if state is None:
        state = v.new_zeros([sizes[dim] for dim in "BHKV"], dtype=compute_dtype(v))
    if resolve_form("delta_rule", form, impl, q, k, v, beta, state) == "triton":
        from memarch.kernels.delta_rule import triton_kernels

        return triton_kernels.chunked(q, k, v, beta, None, state, chunk_size=chunk_size)
    dtype = compute_dtype(q, k, v, beta, state)
    inputs = [tensor.to(dtype) for tensor in (q, k, v, beta, state)]
    with torch.autocast(q.device.type, enabled=False):
        if form == "recurrent":
            o, final = reference.recurrent(*inputs)
        else:
            o, final = reference.chunked(*inputs, chunk_size=chunk_size)
    return o.to(v.dtype), final


def resolve_form(
    op: str, form: str, impl: str, q: Tensor, *tensors: Tensor
) -> Literal["reference", "triton"]:
    """The implementation of a delta rule: `resolve_impl`, and what only the reference has."""
    chosen = resolve_impl(op, impl, q, *tensors)
    if chosen == "triton" and (form == "recurrent" or q.shape[-1] > MAX_TRITON_KEY):
        if impl == "triton":
            raise ValueError(
                f"{op}: the Triton kernels have form='chunked' with K up to {MAX_TRITON_KEY}, got "
                f"form={form!r} with K={q.shape[-1]}; use impl='auto' or 'reference'"
            )
        return "reference"
    return chosen
