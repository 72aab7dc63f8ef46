"""What every operation checks before it computes: shapes by named dimensions, and `impl`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Impl = Literal["auto", "reference", "triton"]
Form = Literal["chunked", "recurrent"]
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_shapes(op: str, **tensors: tuple[Tensor, str]) -> dict[str, int]:
    """Sizes by letter, from `name=(tensor, "B T H K")`. A letter must have one size everywhere.

    The digit 1 stands for a dimension of size 1.
    """
    sizes = {"1": 1}
    for name, (tensor, letters) in tensors.items():
        dims, shape = letters.split(), tensor.shape
        fits = len(shape) == len(dims)
        if fits:
            for dim, size in zip(dims, shape, strict=True):
                fits &= sizes.setdefault(dim, size) == size
        if not fits:
            expected = ", ".join(
                f"{dim}={sizes[dim]}" if dim in sizes and dim != "1" else dim for dim in dims
            )
            raise ValueError(f"{op}: {name} must have shape [{expected}], got {list(shape)}")
    return sizes


def check_form(op: str, form: str, chunk_size: int) -> None:
    """`form` is one of the two that exist, and a chunk holds at least one token."""
    if form not in ("chunked", "recurrent"):
        raise ValueError(f"{op}: form must be 'chunked' or 'recurrent', got {form!r}")
    if chunk_size < 1:
        raise ValueError(f"{op}: chunk_size must be at least 1, got {chunk_size}")


def resolve_impl(op: str, impl: str, *tensors: Tensor) -> Literal["reference", "triton"]:
    """The implementation that runs on these tensors. An explicit request is never replaced.

    `auto` is Triton on an NVIDIA GPU in float32, bfloat16 and float16, else the reference.
    """
    if impl not in ("auto", "reference", "triton"):
        raise ValueError(f"{op}: impl must be 'auto', 'reference' or 'triton', got {impl!r}")
    if impl == "reference":
        return "reference"
    reason = _why_not_triton(tensors, interpreted=impl == "triton")
    if impl == "triton" and reason is not None:
        raise ValueError(f"{op}: {reason}; use impl='auto' or 'reference'")
    return "triton" if reason is None else "reference"


def _why_not_triton(tensors: Sequence[Tensor], *, interpreted: bool) -> str | None:
    for tensor in tensors:
        if tensor.dtype not in TRITON_DTYPES:
            return f"the Triton kernels take float32, bfloat16 and float16, got {tensor.dtype}"
        if not tensor.is_cuda and not (interpreted and os.environ.get("TRITON_INTERPRET") == "1"):
            return "the Triton kernels need an NVIDIA GPU (or TRITON_INTERPRET=1)"
    return None if _has_triton() else "triton is not installed"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The largest of float32 and the tensors' types: recurrences are never computed in less."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def fold_chunks(x: Tensor, size: int) -> Tensor:
    """`[B, T, H, X] -> [chunks, B * H, size, X]`, zeros after the last token."""
    batch, time, heads, width = x.shape
    chunks = -(-time // size)
    x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, chunks * size - time))
    x = x.view(batch, chunks, size, heads, width).permute(1, 0, 3, 2, 4)
    return x.reshape(chunks, batch * heads, size, width)


def unfold_chunks(x: Tensor, batch: int, time: int) -> Tensor:
    """`[chunks, B * H, size, X] -> [B, T, H, X]`: the inverse of `fold_chunks`."""
    chunks, rows, size, width = x.shape
    x = x.view(chunks, batch, rows // batch, size, width).permute(1, 0, 3, 2, 4)
    return x.reshape(batch, chunks * size, rows // batch, width)[:, :time]
