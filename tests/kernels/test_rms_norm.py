"""RMS norm: its equation, the Triton form against the reference, gradients, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ahead_of_time import Resources, Specimen
from torch import Tensor

from memarch.kernels.rms_norm import rms_norm
from memarch.kernels.rows import choose_blocks

KERNELS = "memarch.kernels.rms_norm.triton_kernels"


def specimen(kind: str, size: int, kernel: str) -> Specimen:
    """A launch with a weight in float32, as trained, on rows in `kind`."""
    blocks = choose_blocks(4096, size)
    strides = ["x_outer", "x_inner"]
    tensors = {"x": f"*{kind}", "weight": "*fp32", "y": f"*{kind}"}
    if kernel == "_backward":
        strides += ["dy_outer", "dy_inner"]
        tensors = {"x": f"*{kind}", "dy": f"*{kind}", "weight": "*fp32", "dx": f"*{kind}"}
        tensors["partial"] = "*fp32"
    numbers = {"count": "i32", "size": "i32:16", "inner": "i32"} | dict.fromkeys(strides, "i32:16")
    return Specimen(
        f"{KERNELS}:{kernel}",
        tensors | numbers | {"eps": "fp32"},
        {"BLOCK_ROWS": blocks.rows, "BLOCK_SIZE": blocks.size},
        num_warps=blocks.num_warps,
    )


SPECIMENS = [
    specimen(kind, size, kernel)
    for kernel in ("_forward", "_backward")
    for kind, size in (("bf16", 64), ("bf16", 2048), ("fp32", 8192))
]


def gradients(impl: str, x: Tensor, weight: Tensor, dy: Tensor, eps: float = 1e-6) -> list[Tensor]:
    """y, dx, dweight."""
    x, weight = (tensor.detach().requires_grad_() for tensor in (x, weight))
    y = rms_norm(x, weight, eps, impl=impl)
    return [y.detach(), *torch.autograd.grad(y, (x, weight), dy)]


@pytest.mark.parametrize("stacked", [False, True], ids=["one", "stacked"])
@pytest.mark.parametrize(
    "shape", [(4, 1), (6, 7, 33), (2, 3, 5, 16), (2, 65, 64), (2, 3, 1025)], ids=str
)
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_triton_equals_the_reference(shape: tuple[int, ...], stacked: bool) -> None:
    x, dy = torch.randn(shape), torch.randn(shape)
    weight = torch.randn(*[2] * stacked, shape[-1])
    expected = gradients("reference", x.double(), weight.double(), dy.double())
    for found, truth in zip(gradients("triton", x, weight, dy), expected, strict=True):
        torch.testing.assert_close(found.double(), truth, rtol=2e-6, atol=2e-6 * shape[-2] ** 0.5)


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_eps_may_be_zero() -> None:
    """Three rows to a block of four: the absent one divides by zero."""
    inputs = (torch.randn(1, 3, 6), torch.randn(6), torch.randn(1, 3, 6))
    expected = gradients("reference", *inputs, eps=0.0)
    for found, truth in zip(gradients("triton", *inputs, eps=0.0), expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_triton_is_no_worse_than_the_reference_in_low_precision(kind: torch.dtype) -> None:
    """Distances from the reference in float64, on the same rounded inputs."""
    x, dy = torch.randn(4, 9, 48).to(kind), torch.randn(4, 9, 48).to(kind)
    weight = torch.randn(2, 48).to(kind)
    truth = gradients("reference", x.double(), weight.double(), dy.double())
    reference = gradients("reference", x, weight, dy)
    for found, other, true in zip(
        gradients("triton", x, weight, dy), reference, truth, strict=True
    ):
        assert found.dtype == kind
        assert (found - true).abs().max() <= 2 * (other - true).abs().max()


@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_weights_keep_their_own_type() -> None:
    x, weight = torch.randn(3, 5, 16).bfloat16(), torch.randn(16)
    for impl in ("reference", "triton"):
        y, dx, dweight = gradients(impl, x, weight, torch.randn(3, 5, 16).bfloat16())
        assert (y.dtype, dx.dtype, dweight.dtype) == (x.dtype, x.dtype, torch.float32)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, 1:6],
        lambda x: x[::2],
        lambda x: x.transpose(0, 1),
        lambda x: x.mT,
        lambda x: x[..., 3:10],
        lambda x: x.unflatten(1, (2, 4))[:, :, 1:3],
        lambda x: x[:, :1].expand(4, 6, 12),
    ],
    ids=["time", "batch", "swapped", "columns", "part", "heads", "expanded"],
)
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_rows_may_lie_anywhere(view: Callable[[Tensor], Tensor]) -> None:
    x, dy = view(torch.randn(4, 8, 12)), view(torch.randn(4, 8, 12))
    weight = torch.randn(2, x.shape[-1])
    expected = gradients("reference", x.contiguous(), weight, dy.contiguous())
    layouts = [("reference", x, dy), ("triton", x, dy.contiguous()), ("triton", x.contiguous(), dy)]
    for impl, x_there, dy_there in layouts:
        found = gradients(impl, x_there, weight, dy_there)
        for one, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(one, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_no_rows_and_rows_of_zeros() -> None:
    empty = torch.randn(0, 3, 8)
    for impl in ("reference", "triton"):
        y, dx, dweight = gradients(impl, empty, torch.randn(2, 8), empty)
        assert y.shape == dx.shape == empty.shape
        assert not dweight.any()
        y, dx, _ = gradients(impl, torch.zeros(3, 8), torch.ones(8), torch.ones(3, 8), eps=1e-4)
        assert not y.any()
        torch.testing.assert_close(dx, torch.full((3, 8), 100.0))


@pytest.mark.parametrize("groups", [None, 1, 3])
def test_the_reference_is_differentiable_twice(groups: int | None) -> None:
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    x[0, 0] = 0
    weight = torch.randn(*[groups] * (groups is not None), 5, dtype=torch.float64)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, 1e-2)

    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(norm, inputs)
    assert torch.autograd.gradgradcheck(norm, inputs)


@pytest.mark.usefixtures("_triton")
def test_a_second_derivative_through_triton_is_an_error() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    y = rms_norm(x, torch.ones(4), 1e-6, impl="triton")
    with pytest.raises(RuntimeError, match=r"rms_norm: .* use impl='reference' inside gradient"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_float16_squares_do_not_overflow() -> None:
    y = rms_norm(torch.full((1, 4), 3e4).half(), torch.ones(4).half(), 1e-6)
    assert y.tolist() == [[1.0] * 4]


@pytest.mark.parametrize("shape", [(5,), (3, 4), (0, 4), (1, 1, 4)], ids=str)
def test_weights_that_do_not_fit_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"rms_norm: weight must have shape \[D\] or \[G, D\]"):
        rms_norm(torch.randn(4, 2, 4), torch.ones(shape), 1e-6)


@pytest.mark.usefixtures("_triton")
def test_long_rows_are_the_references() -> None:
    with pytest.raises(ValueError, match="rows of at most 8192 numbers, got 8193"):
        rms_norm(torch.randn(1, 8193), torch.ones(8193), 1e-6, impl="triton")


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("specimen", SPECIMENS, ids=str)
def test_compiles_ahead_of_time(
    specimen: Specimen, arch: int, compile_ahead: Callable[[Specimen, int], Resources]
) -> None:
    resources = compile_ahead(specimen, arch)
    assert resources.spills == 0
    assert resources.registers <= 128
    assert resources.shared <= 16 * 1024
