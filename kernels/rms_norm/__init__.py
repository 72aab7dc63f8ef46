"""Root mean square normalisation of rows (arXiv 1910.07467, equation 4).

    y = weight * x / sqrt(mean(x^2) + eps)

Shapes: x, y `[N, ..., D]`, weight `[D]`, or one a cell `[G, D]`: row g * N / G + b is cell g's.
"""

from __future__ import annotations

from torch import Tensor

from memarch.kernels.checks import Impl, compute_dtype, resolve_impl
from memarch.kernels.rms_norm import reference
from memarch.kernels.rows import MAX_SIZE, check_rows


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, impl: Impl = "auto") -> Tensor:
    """y in x's dtype, computed in the largest of float32 and the inputs' types, rounded once.

    Rows of more than 8192 numbers are the reference's under `auto`. ValueError on shapes that do
    not fit and on an `impl` that cannot run; RuntimeError from a second derivative through Triton.
    """
    check_rows("rms_norm", x, weight)
    if resolve_impl("rms_norm", impl, x, weight) == "triton":
        if x.shape[-1] <= MAX_SIZE:
            from memarch.kernels.rms_norm import triton_kernels

            return triton_kernels.rms_norm(x, weight, eps)
        if impl == "triton":
            raise ValueError(
                f"rms_norm: the Triton kernel takes rows of at most {MAX_SIZE} numbers, "
                f"got {x.shape[-1]}; use impl='auto' or 'reference'"
            )
    dtype = compute_dtype(x, weight)
    if x.dtype == dtype == weight.dtype:
        return reference.rms_norm(x, weight, eps)
    return reference.rms_norm(x.to(dtype), weight.to(dtype), eps).to(x.dtype)
