"""One linear map a cell, with what follows it: bias, activation, residual.

    y = activation(x W_g + b_g) + residual

Shapes: x `[N, ..., I]`, weight `[G, I, O]`, bias `[G, O]`, residual and y `[N, ..., O]`; row
g * N / G + b is cell g's. gelu is the exact one, z Phi(z).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from memarch.kernels.checks import Impl, resolve_impl
from memarch.kernels.grouped_linear import reference

Activation = Literal["silu", "gelu"]


def grouped_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation | None = None,
    residual: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """y in x's dtype; all tensors have it. Differentiable any number of times in either form.

    `auto` is the reference everywhere: it is PyTorch's batched product, cuBLAS's on a GPU, and no
    measurement has shown the Triton form to be faster. That form, one kernel with sums in float32
    and one rounding at the end, is there to be measured. ValueError on shapes, types, activations
    or an `impl` that do not fit.
    """
    _check(x, weight, bias, activation, residual)
    if impl == "triton":
        given = [tensor for tensor in (x, weight, bias, residual) if tensor is not None]
        resolve_impl("grouped_linear", impl, *given)
        if len({tensor.dtype for tensor in given}) > 1:
            raise ValueError(
                "grouped_linear: the Triton kernel takes tensors of one type, got "
                f"{[str(tensor.dtype) for tensor in given]}; use impl='auto' or 'reference'"
            )
        from memarch.kernels.grouped_linear import triton_kernels

        return triton_kernels.grouped_linear(x, weight, bias, activation, residual)
    resolve_impl("grouped_linear", "reference" if impl == "auto" else impl)
    return reference.grouped_linear(x, weight, bias, activation, residual)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
) -> None:
    if weight.ndim != 3 or x.shape[-1] != weight.shape[1] or x.shape[0] % (weight.shape[0] or -1):
        raise ValueError(
            "grouped_linear: weight must have shape [G, I, O] for x [N, ..., I] where G divides N, "
            f"got weight {list(weight.shape)} and x {list(x.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[::2]:
        raise ValueError(
            f"grouped_linear: bias must have shape [G, O] = {list(weight.shape[::2])}, "
            f"got {list(bias.shape)}"
        )
    if residual is not None and residual.shape != (*x.shape[:-1], weight.shape[2]):
        raise ValueError(
            f"grouped_linear: residual must have y's shape {[*x.shape[:-1], weight.shape[2]]}, "
            f"got {list(residual.shape)}"
        )
    if activation not in (None, "silu", "gelu"):
        raise ValueError(
            f"grouped_linear: activation must be None, 'silu' or 'gelu', got {activation!r}"
        )
