"""Every kernel that is launched is compiled ahead of time; the compiler's errors name the cause."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ahead_of_time import Resources, Specimen


def launched_kernels(repository: Path) -> set[str]:
    """`module:function` of each `@triton.jit` function that is called as `function[grid](...)`."""
    found = set()
    for path in (repository / "kernels").glob("*/triton_kernels.py"):
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        compiled = {
            node.name
            for node in nodes
            if isinstance(node, ast.FunctionDef)
            and any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
        }
        called = {
            ast.unparse(node.func.value)
            for node in nodes
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
        }
        module = f"memarch.kernels.{path.parent.name}.triton_kernels"
        found |= {f"{module}:{name}" for name in compiled & called}
    return found


def specimens() -> set[str]:
    """The kernels in the SPECIMENS of all test modules beside this one."""
    found: set[str] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        if "\nSPECIMENS" in path.read_text("utf-8"):
            spec = importlib.util.spec_from_file_location(f"specimens_of_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            for item in module.SPECIMENS:  # a specimen, or a pytest.param that holds one
                specimen = item if isinstance(item, Specimen) else item.values[0]
                found.add(specimen.kernel)
    return found


@pytest.mark.usefixtures("_triton")
def test_every_launched_kernel_is_a_specimen(repository: Path) -> None:
    missing = sorted(launched_kernels(repository) - specimens())
    assert not missing, f"add these to SPECIMENS in tests/kernels/test_<operation>.py: {missing}"


def test_a_kernel_that_does_not_compile_is_named(
    compile_ahead: Callable[[Specimen, int], Resources],
) -> None:
    with pytest.raises(RuntimeError, match=r"nothing.* for sm_80:\n.*No module named"):
        compile_ahead(Specimen("memarch.nowhere.triton_kernels:nothing", {}), 80)


def test_spills_are_seen(compile_ahead: Callable[[Specimen, int], Resources]) -> None:
    """8192 numbers of x and as many of the weight, in the 32 * 255 registers of one warp."""
    numbers = ["count", "size", "inner", "x_outer", "x_inner"]
    specimen = Specimen(
        "memarch.kernels.rms_norm.triton_kernels:_forward",
        dict.fromkeys(["x", "weight", "y"], "*fp32")
        | dict.fromkeys(numbers, "i32")
        | {"eps": "fp32"},
        {"BLOCK_ROWS": 1, "BLOCK_SIZE": 8192},
        num_warps=1,
    )
    assert compile_ahead(specimen, 90).spills > 100


def test_arguments_that_a_kernel_does_not_have_are_named(
    compile_ahead: Callable[[Specimen, int], Resources],
) -> None:
    specimen = Specimen(
        "memarch.kernels.rms_norm.triton_kernels:_forward", {"x": "*fp32", "z": "i32"}
    )
    with pytest.raises(RuntimeError, match=r"missing \['BLOCK_ROWS', .*unknown \['z'\]"):
        compile_ahead(specimen, 80)
