"""What the tests of kernels share: the interpreter, poisoned memory, compiling ahead of time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from ahead_of_time import Compiler, Resources, Specimen
from torch import Tensor

ALLOCATORS = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (Tensor, "new_empty"),
    (Tensor, "new_empty_strided"),
)


def _round_to_nearest() -> None:
    """Make the interpreter's casts to bfloat16 round as a GPU does; triton 3.9 cuts bits off."""
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def rounding(cast: Callable[..., Any]) -> Callable[..., Any]:
        def cast_or_round(self: Any, source: Any, kind: Any, *mode: Any) -> Any:
            if source.dtype.scalar != tl.float32 or kind.scalar != tl.bfloat16:
                return cast(self, source, kind, *mode)
            bits = torch.tensor(source.data).bfloat16().view(torch.uint16)
            return TensorHandle(bits.numpy(), tl.bfloat16)

        return cast_or_round

    for name in ("cast_impl", "create_fp_to_fp"):
        setattr(InterpreterBuilder, name, rounding(getattr(InterpreterBuilder, name)))


if find_spec("triton") is not None and os.environ["TRITON_INTERPRET"] == "1":
    import triton

    # `@triton.jit` reads the variable, in Triton's own library too: afterwards is too late.
    if isinstance(triton.language.sum, triton.JITFunction):
        raise pytest.UsageError(
            "triton was imported before tests/conftest.py set TRITON_INTERPRET=1: run with it set"
        )
    _round_to_nearest()


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    """With TRITON_INTERPRET=0 the tests' tensors, and so the kernels, are on the GPU."""
    if os.environ["TRITON_INTERPRET"] == "1":
        yield
        return
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # unset, triton 3.9 warns
    with torch.device("cuda"):
        yield


@pytest.fixture(scope="session")
def _triton() -> None:
    if find_spec("triton") is None:
        pytest.skip("needs triton: pip install triton")


@pytest.fixture
def nan_poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel leaves unwritten reads as NaN."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate_nan(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point():
                with torch.no_grad():
                    tensor.fill_(torch.nan)
            return tensor

        return allocate_nan

    for owner, name in ALLOCATORS:
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture(scope="session")
def compile_ahead(
    _triton: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Specimen, int], Resources]]:
    """`compile_ahead(specimen, arch)`: the resources of a kernel on sm_80 or sm_90."""
    compiler = Compiler(tmp_path_factory.mktemp("triton"))
    yield compiler
    compiler.close()
