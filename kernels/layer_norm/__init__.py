"""Layer normalisation of rows (arXiv 1607.06450, equation 3).

    y = weight * (x - mean(x)) / sqrt(var(x) + eps) + bias,    var(x) = mean((x - mean(x))^2)

Shapes: x, y `[N, ..., D]`; weight, bias `[D]`, or one a cell `[G, D]`: row g * N / G + b is cell
g's.
"""

from __future__ import annotations

from torch import Tensor

from memarch.kernels.checks import Impl, compute_dtype, resolve_impl
from memarch.kernels.layer_norm import reference
from memarch.kernels.rows import MAX_SIZE, check_rows


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, impl: Impl = "auto"
) -> Tensor:
    """y in x's dtype, computed in the largest of float32 and the inputs' types, rounded once.

    Rows of more than 8192 numbers are the reference's under `auto`. ValueError on shapes that do
    not fit and on an `impl` that cannot run; RuntimeError from a second derivative through Triton.
    """
    check_rows("layer_norm", x, weight, bias)
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if resolve_impl("layer_norm", impl, *tensors) == "triton":
        if x.shape[-1] <= MAX_SIZE:
            from memarch.kernels.layer_norm import triton_kernels

            return triton_kernels.layer_norm(x, weight, bias, eps)
        if impl == "triton":
            raise ValueError(
                f"layer_norm: the Triton kernel takes rows of at most {MAX_SIZE} numbers, "
                f"got {x.shape[-1]}; use impl='auto' or 'reference'"
            )
    dtype = compute_dtype(*tensors)
    if x.dtype == weight.dtype == dtype and (bias is None or bias.dtype == dtype):
        return reference.layer_norm(x, weight, bias, eps)
    bias = None if bias is None else bias.to(dtype)
    return reference.layer_norm(x.to(dtype), weight.to(dtype), bias, eps).to(x.dtype)
