"""What the tests of kernels share: the interpreter, poisoned memory, compiling ahead of time."""

from __future__ import annotations

import os
import sys
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

if find_spec("triton") is not None and os.environ["TRITON_INTERPRET"] == "1":
    import triton

    # `@triton.jit` reads the variable, in Triton's own library too: afterwards is too late.
    if isinstance(triton.language.sum, triton.JITFunction):
        raise pytest.UsageError(
            "triton was imported before tests/conftest.py set TRITON_INTERPRET=1: "
            f"run with it set, or import less first; loaded: {sorted(sys.modules)[:20]} ..."
        )


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
