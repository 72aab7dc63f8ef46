"""Layer norm: the Triton form against the reference, gradients, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ahead_of_time import Resources, Specimen
from torch import Tensor

from memarch.kernels.layer_norm import layer_norm
from memarch.kernels.rows import choose_blocks

KERNELS = "memarch.kernels.layer_norm.triton_kernels"


def specimen(kind: str, size: int, kernel: str, *, bias: bool = True) -> Specimen:
    """A launch with a weight in float32, as trained, on rows in `kind`."""
    blocks = choose_blocks(4096, size)
    constants = {"BLOCK_ROWS": blocks.rows, "BLOCK_SIZE": blocks.size}
    strides = ["x_outer", "x_inner"]
    tensors = {"x": f"*{kind}", "weight": "*fp32", "y": f"*{kind}"}
    if kernel == "_backward":
        strides += ["dy_outer", "dy_inner"]
        tensors = {"x": f"*{kind}", "dy": f"*{kind}", "weight": "*fp32", "dx": f"*{kind}"}
        tensors["partial"] = "*fp32"
        constants["HAS_BIAS"] = bias
    elif bias:
        tensors["bias"] = "*fp32"
    else:
        constants["bias"] = None
    numbers = {"count": "i32", "size": "i32:16", "inner": "i32"} | dict.fromkeys(strides, "i32:16")
    return Specimen(
        f"{KERNELS}:{kernel}",
        tensors | numbers | {"eps": "fp32"},
        constants,
        num_warps=blocks.num_warps,
    )


SPECIMENS = [
    specimen(kind, size, kernel)
    for kernel in ("_forward", "_backward")
    for kind, size in (("bf16", 64), ("bf16", 2048), ("fp32", 8192))
] + [specimen("bf16", 768, kernel, bias=False) for kernel in ("_forward", "_backward")]


def gradients(
    impl: str, x: Tensor, weight: Tensor, bias: Tensor | None, dy: Tensor, eps: float = 1e-5
) -> list[Tensor]:
    """y, dx, dweight and, where there is a bias, dbias."""
    given = [x, weight] if bias is None else [x, weight, bias]
    inputs = [tensor.detach().requires_grad_() for tensor in given]
    y = layer_norm(inputs[0], inputs[1], None if bias is None else inputs[2], eps, impl=impl)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("stacked", [False, True], ids=["one", "stacked"])
@pytest.mark.parametrize("shape", [(4, 1), (6, 7, 33), (2, 3, 5, 16), (2, 65, 64)], ids=str)
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_triton_equals_the_reference(
    shape: tuple[int, ...], stacked: bool, with_bias: bool
) -> None:
    """Rows with a mean of 3, which the variance must not see."""
    x, dy = torch.randn(shape) + 3, torch.randn(shape)
    weight = torch.randn(*[2] * stacked, shape[-1])
    bias = torch.randn_like(weight) if with_bias else None
    truth_bias = None if bias is None else bias.double()
    expected = gradients("reference", x.double(), weight.double(), truth_bias, dy.double())
    for found, truth in zip(gradients("triton", x, weight, bias, dy), expected, strict=True):
        torch.testing.assert_close(found.double(), truth, rtol=5e-6, atol=5e-6 * shape[-2] ** 0.5)


def test_the_reference_is_the_equation() -> None:
    x, weight, bias = torch.randn(4, 3, 7).double(), torch.randn(2, 7), torch.randn(2, 7)
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt()
    cell = torch.tensor([0, 0, 1, 1])
    expected = normed * weight[cell].unsqueeze(1) + bias[cell].unsqueeze(1)
    torch.testing.assert_close(layer_norm(x, weight, bias, 0.1), expected)
    torch.testing.assert_close(layer_norm(x[:2], weight[:1], bias[:1], 0.1), expected[:2])
    torch.testing.assert_close(layer_norm(x[2:], weight[1], bias[1], 0.1), expected[2:])


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_eps_may_be_zero() -> None:
    """Three rows to a block of four: the absent one divides by zero."""
    inputs = (torch.randn(1, 3, 6), torch.randn(6), torch.randn(6), torch.randn(1, 3, 6))
    expected = gradients("reference", *inputs, eps=0.0)
    for found, truth in zip(gradients("triton", *inputs, eps=0.0), expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_triton_is_no_worse_than_the_reference_in_low_precision(kind: torch.dtype) -> None:
    """Distances from the reference in float64, on the same rounded inputs."""
    x, dy = torch.randn(4, 9, 48).to(kind), torch.randn(4, 9, 48).to(kind)
    weight, bias = torch.randn(2, 2, 48).to(kind)
    truth = gradients("reference", x.double(), weight.double(), bias.double(), dy.double())
    reference = gradients("reference", x, weight, bias, dy)
    for found, other, true in zip(
        gradients("triton", x, weight, bias, dy), reference, truth, strict=True
    ):
        assert found.dtype == kind
        assert (found - true).abs().max() <= 2 * (other - true).abs().max()


@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_weights_keep_their_own_type() -> None:
    x, weight, bias = torch.randn(3, 5, 16).bfloat16(), torch.randn(16), torch.randn(16)
    for impl in ("reference", "triton"):
        found = gradients(impl, x, weight, bias, torch.randn(3, 5, 16).bfloat16())
        kinds = [x.dtype, x.dtype, torch.float32, torch.float32]
        assert [tensor.dtype for tensor in found] == kinds


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
    weight, bias = torch.randn(2, 2, x.shape[-1])
    expected = gradients("reference", x.contiguous(), weight, bias, dy.contiguous())
    layouts = [("reference", x, dy), ("triton", x, dy.contiguous()), ("triton", x.contiguous(), dy)]
    for impl, x_there, dy_there in layouts:
        found = gradients(impl, x_there, weight, bias, dy_there)
        for one, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(one, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_no_rows_and_rows_of_one_number() -> None:
    empty, weight, bias = torch.randn(0, 3, 8), *torch.randn(2, 2, 8)
    for impl in ("reference", "triton"):
        y, dx, dweight, dbias = gradients(impl, empty, weight, bias, empty)
        assert y.shape == dx.shape == empty.shape
        assert not dweight.any()
        assert not dbias.any()
        y, dx, *_ = gradients(impl, torch.ones(3, 8), torch.ones(8), bias[0], torch.randn(3, 8))
        torch.testing.assert_close(y, bias[0].expand(3, 8))
        assert dx.isfinite().all()


@pytest.mark.parametrize("groups", [None, 1, 3])
def test_the_reference_is_differentiable_twice(groups: int | None) -> None:
    shape = [groups] * (groups is not None) + [5]
    weight, bias = (torch.randn(shape, dtype=torch.float64) for _ in range(2))

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return layer_norm(x, weight, bias, 1e-2)

    x = torch.randn(6, 2, 5, dtype=torch.float64)
    inputs = tuple(tensor.requires_grad_() for tensor in (x, weight, bias))
    assert torch.autograd.gradcheck(norm, inputs)
    assert torch.autograd.gradgradcheck(norm, inputs)


@pytest.mark.usefixtures("_triton")
def test_a_second_derivative_through_triton_is_an_error() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    y = layer_norm(x, torch.ones(4), None, 1e-6, impl="triton")
    with pytest.raises(RuntimeError, match=r"layer_norm: .* use impl='reference' inside gradient"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (0, 4), (1, 1, 4)], ids=str)
def test_weights_that_do_not_fit_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"layer_norm: weight must have shape \[D\] or \[G, D\]"):
        layer_norm(torch.randn(4, 2, 4), torch.ones(shape), None, 1e-6)


def test_a_bias_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"bias must have weight's shape \[4\], got \[2, 4\]"):
        layer_norm(torch.randn(4, 2, 4), torch.ones(4), torch.ones(2, 4), 1e-6)


@pytest.mark.usefixtures("_triton")
def test_long_rows_are_the_references() -> None:
    with pytest.raises(ValueError, match="rows of at most 8192 numbers, got 8193"):
        layer_norm(torch.randn(1, 8193), torch.ones(8193), None, 1e-6, impl="triton")


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("specimen", SPECIMENS, ids=str)
def test_compiles_ahead_of_time(
    specimen: Specimen, arch: int, compile_ahead: Callable[[Specimen, int], Resources]
) -> None:
    resources = compile_ahead(specimen, arch)
    assert resources.spills == 0
    assert resources.registers <= 128
    assert resources.shared <= 16 * 1024
