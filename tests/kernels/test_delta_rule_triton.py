"""The delta rules in Triton: against the reference in float64, compiled ahead of time, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from ahead_of_time import Resources, Specimen
from torch import Tensor
from torch.nn import functional as F

from memarch.kernels.delta_rule import delta_rule, reference
from memarch.kernels.gated_delta_rule import gated_delta_rule
from memarch.kernels.gated_delta_rule import reference as gated_reference

Inputs = dict[str, Tensor]
SIZES = [
    # time, batch, heads, key, value, chunk size
    (1, 2, 1, 8, 8, 64),
    (7, 1, 2, 20, 24, 16),
    (33, 2, 1, 16, 40, 16),
    (65, 1, 2, 24, 33, 64),
    (130, 1, 1, 70, 16, 64),
]
both_rules = pytest.mark.parametrize("gated", [False, True], ids=["delta", "gated"])
pytestmark = pytest.mark.usefixtures("_triton", "nan_poisoned", "_bfloat16_to_nearest")


@pytest.fixture
def _bfloat16_to_nearest(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's interpreter cuts float32 off to bfloat16 where GPUs round to nearest."""
    if find_spec("triton") is None:
        yield
        return
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (str(source), str(target)) != ("fp32", "bf16"):
            return convert(data, source, target, mode)
        near = torch.from_numpy(np.array(data, dtype=np.float32)).bfloat16()
        return near.view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    yield


def make(
    gated: bool, time: int, batch: int, heads: int, key: int, value: int, *, decay: float = 1.0
) -> Inputs:
    """Random inputs in float32: q, k and v are parts of one tensor, k of unit length, beta to 2."""
    qkv = torch.randn(batch, time, heads, 2 * key + value)
    q, k, v = qkv.split([key, key, value], dim=-1)
    k /= k.norm(dim=-1, keepdim=True)
    inputs = {"q": q, "k": k, "v": v, "beta": 2 * torch.rand(batch, time, heads)}
    if gated:
        inputs["g"] = -decay * torch.rand(batch, heads, time).mT
    return inputs | {"state": torch.randn(batch, heads, key, value)}


def gradients(inputs: Inputs, run: Callable[..., tuple[Tensor, Tensor]]) -> Inputs:
    """Outputs, final state and the gradient of every input, for the same incoming gradients."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    o, final = run(**leaves)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in (o, final)]
    found = torch.autograd.grad([o, final], list(leaves.values()), weights)
    return {"o": o, "final": final, **dict(zip(leaves, found, strict=True))}


def triton(inputs: Inputs, chunk_size: int = 64) -> Inputs:
    rule: Callable[..., tuple[Tensor, Tensor]] = gated_delta_rule if "g" in inputs else delta_rule
    return gradients(inputs, lambda **x: rule(**x, chunk_size=chunk_size, impl="triton"))


def plain(inputs: Inputs, dtype: torch.dtype, form: str = "chunked") -> Inputs:
    """The reference, all of it in one type."""
    module = gated_reference if "g" in inputs else reference
    if form == "recurrent":
        return gradients({name: x.to(dtype) for name, x in inputs.items()}, module.recurrent)
    run = lambda **x: module.chunked(**x, chunk_size=64)  # noqa: E731
    return gradients({name: x.to(dtype) for name, x in inputs.items()}, run)


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def assert_no_worse(found: Inputs, other: Inputs, truth: Inputs, floor: float) -> None:
    """At most twice the other's distance from the truth, or `floor` of the truth's size."""
    for name, true in truth.items():
        limit = 2 * rms(other[name].double() - true) + floor * rms(true)
        assert rms(found[name].double() - true) <= limit, name


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@both_rules
def test_float32(gated: bool, sizes: tuple[int, ...]) -> None:
    """Outputs, final state and the gradient of every input, the initial state included."""
    *shape, chunk_size = sizes
    inputs = make(gated, *shape)
    found = triton(inputs, chunk_size)
    assert_no_worse(found, plain(inputs, torch.float32), plain(inputs, torch.float64), floor=5e-7)
    for name in ("beta", "state"):
        assert found[name].shape == inputs[name].shape


@both_rules
def test_bfloat16(gated: bool) -> None:
    """Products of bfloat16 err no more than the recurrence computed in bfloat16."""
    inputs = {name: x.bfloat16() for name, x in make(gated, 130, 1, 2, 32, 32).items()}
    found = triton(inputs)
    assert found["o"].dtype == torch.bfloat16
    assert found["final"].dtype == torch.float32
    recurrent = plain(inputs, torch.bfloat16, "recurrent")
    assert_no_worse(found, recurrent, plain(inputs, torch.float64), floor=0)


def test_types_may_differ() -> None:
    """Products take v's type, and every gradient the type of its input."""
    inputs = make(True, 20, 1, 2, 16, 16)
    inputs |= {name: inputs[name].bfloat16() for name in ("v", "beta")}
    found = triton(inputs, 16)
    assert found["o"].dtype == torch.bfloat16
    assert found["final"].dtype == torch.float32
    for name, x in inputs.items():
        assert found[name].dtype == x.dtype
    for name, true in plain(inputs, torch.float64).items():
        assert rms(found[name].double() - true) <= 0.02 * rms(true), name


@both_rules
def test_without_a_state_it_starts_from_zeros(gated: bool) -> None:
    inputs = make(gated, 33, 1, 2, 16, 16)
    inputs["state"].zero_()
    rule: Callable[..., tuple[Tensor, Tensor]] = gated_delta_rule if gated else delta_rule
    o, final = rule(**{**inputs, "state": None}, impl="triton")
    expected = rule(**inputs, impl="triton")
    torch.testing.assert_close((o, final), expected, rtol=0, atol=0)


def test_chunks_change_nothing_but_rounding() -> None:
    inputs = make(True, 65, 1, 1, 16, 16)
    truth = plain(inputs, torch.float64)
    other = plain(inputs, torch.float32)
    for chunk_size in (1, 30, 1000):
        assert_no_worse(triton(inputs, chunk_size), other, truth, floor=5e-7)


def test_strong_decay() -> None:
    """Decays of e^-20 a token: what a chunk keeps underflows, and nothing overflows."""
    inputs = make(True, 65, 1, 1, 16, 16, decay=0)
    inputs["g"] = torch.full_like(inputs["g"], -20)
    found = triton(inputs)
    assert all(x.isfinite().all() for x in found.values())
    truth = plain(inputs, torch.float64)
    # It is near 1e-8, and what is left of numbers near 1.
    torch.testing.assert_close(found["g"].double(), truth.pop("g"), rtol=0, atol=5e-6)
    assert_no_worse(found, plain(inputs, torch.float32), truth, floor=5e-7)


def test_nearly_equal_keys() -> None:
    """I + A far from the identity: its inverse needs substitution, not a series."""
    inputs = make(False, 64, 1, 1, 16, 16)
    key = inputs["k"][:, :1] + 0.02 * torch.randn(1, 64, 1, 16)
    inputs |= {"k": F.normalize(key, dim=-1), "beta": torch.full((1, 64, 1), 1.9)}
    assert_no_worse(
        triton(inputs), plain(inputs, torch.float32), plain(inputs, torch.float64), floor=2e-6
    )


@pytest.mark.parametrize("part", [0, 1], ids=["outputs", "state"])
def test_one_of_the_outputs_may_go_unused(part: int) -> None:
    inputs = make(True, 17, 1, 1, 16, 16)
    found = []
    for impl, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        k = inputs["k"].to(dtype).requires_grad_()
        others = {name: x.to(dtype) for name, x in inputs.items() if name != "k"}
        output = gated_delta_rule(k=k, **others, impl=impl)[part]  # type: ignore[arg-type]
        found += torch.autograd.grad(output.square().sum(), k)
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 2, 1), (3, 0, 1), (3, 2, 0)], ids=str)
def test_nothing_to_do(shape: tuple[int, int, int]) -> None:
    """No tokens, rows or heads: the state comes back as it is, with its gradient."""
    inputs = make(False, *shape, 4, 5)
    state = inputs["state"].requires_grad_()
    o, final = delta_rule(**inputs, impl="triton")
    assert o.shape == inputs["v"].shape
    torch.testing.assert_close(final, state)
    torch.testing.assert_close(torch.autograd.grad(final.sum(), state)[0], torch.ones_like(state))


@both_rules
def test_second_derivatives_are_refused(gated: bool) -> None:
    inputs = make(gated, 3, 1, 1, 4, 4)
    rule: Callable[..., tuple[Tensor, Tensor]] = gated_delta_rule if gated else delta_rule
    q = inputs["q"].clone().requires_grad_()
    o, _ = rule(**inputs | {"q": q}, impl="triton")
    with pytest.raises(RuntimeError, match=r"no second derivative.*impl='reference'"):
        torch.autograd.grad(o.sum(), q, create_graph=True)[0].sum().backward()


@both_rules
def test_what_only_the_reference_has(gated: bool) -> None:
    rule: Callable[..., tuple[Tensor, Tensor]] = gated_delta_rule if gated else delta_rule
    inputs = make(gated, 3, 1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"form='recurrent' with K=4; use impl='auto' or"):
        rule(**inputs, form="recurrent", impl="triton")
    with pytest.raises(ValueError, match=r"K up to 256, got form='chunked' with K=257"):
        rule(**make(gated, 3, 1, 1, 257, 4), impl="triton")
    assert rule(**inputs, form="recurrent", impl="auto")[0].isfinite().all()


KERNELS = "memarch.kernels.delta_rule.triton_kernels:"
NAMES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def specimens() -> Iterator[Any]:
    """What is launched for K = V = 64 and 128 in chunks of 64, per architecture."""
    for kind, width, gated in (("bf16", 64, False), ("bf16", 128, True), ("fp32", 128, True)):
        for kernel in ("_pairs", "_scan", "_scan_back", "_gradients"):
            for arch in (80, 90):
                label = f"{kernel}-{kind}-{width}-sm{arch}"
                yield pytest.param(specimen(kernel, kind, width, gated, arch), arch, id=label)


def specimen(kernel: str, kind: str, width: int, gated: bool, arch: int) -> Specimen:
    from memarch.kernels.delta_rule.triton_kernels import launch_options

    options = launch_options(kernel, width, width, NAMES[kind], hopper=arch >= 90)
    warps, stages = options.pop("num_warps"), options.pop("num_stages")
    constexprs: dict[str, Any] = {"K": width, "SIZE": 64, **options}
    tensors, wide = {
        "_pairs": ("q k m p", "beta g c"),
        "_scan": ("q k v m p out", "beta c state states"),
        "_scan_back": ("q k m p do z dv dstates", "beta c dfinal dstate"),
        "_gradients": ("q k v do u z states dstates dq dk", "beta c dbeta dg"),
    }[kernel]
    signature = dict.fromkeys(tensors.split(), f"*{kind}")
    signature |= dict.fromkeys(wide.split(), "*fp32") | {"T": "i32", "H": "i32"}
    for name in ("q", "k", "v"):
        if name in signature and not (name == "v" and kernel == "_pairs"):
            signature |= {f"{name}_{letter}": "i32:16" for letter in "bth"}
    if not gated:
        for name in {"g", "c", "dg"} & set(signature):
            constexprs[name] = None
            del signature[name]
    if kernel != "_pairs":
        constexprs["V"] = width
    if kernel == "_scan":
        constexprs["READ"] = True
    return Specimen(KERNELS + kernel, signature, constexprs, warps, stages)


SPECIMENS = list(specimens()) if find_spec("triton") is not None else []


@pytest.mark.parametrize(("specimen", "arch"), SPECIMENS)
def test_registers_and_shared_memory(
    compile_ahead: Callable[[Specimen, int], Resources], specimen: Specimen, arch: int
) -> None:
    """Gated gradients on Hopper spill a little outside their products: half the tile costs more."""
    resources = compile_ahead(specimen, arch)
    tight = arch == 90 and specimen.kernel.endswith("_gradients") and "c" in specimen.signature
    assert resources.spills <= (128 if tight else 0)
    assert resources.shared <= (163 if arch == 80 else 227) * 1024
