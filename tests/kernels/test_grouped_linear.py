"""Grouped linear maps: the equation, the Triton form against the reference, gradients, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ahead_of_time import Resources, Specimen
from torch import Tensor
from torch.nn import functional as F

from memarch.kernels.grouped_linear import grouped_linear

Inputs = dict[str, Tensor]


def specimen(
    kind: str, tiles: tuple[int, int, int], warps: int, stages: int, **constants: Any
) -> Specimen:
    """A launch on weights that lie as `nn.Linear` has them, one tile choice of the wrapper's."""
    tensors = dict.fromkeys(["x", "weight", "bias", "residual", "y"], f"*{kind}")
    strides = ["x_cell", "x_row", "weight_cell", "weight_output", "residual_cell", "residual_row"]
    constants = {"ACTIVATION": None, "WHOLE": True, "weight_input": 1} | constants
    names = ("BLOCK_ROWS", "BLOCK_OUTPUTS", "BLOCK_INPUTS")
    return Specimen(
        "memarch.kernels.grouped_linear.triton_kernels:_forward",
        {name: type_ for name, type_ in tensors.items() if name not in constants}
        | {"count": "i32", "size": "i32:16", "outputs": "i32:16"}
        | dict.fromkeys(strides, "i32:16"),
        constants | dict(zip(names, tiles, strict=True)),
        num_warps=warps,
        num_stages=stages,
    )


SPECIMENS = [
    specimen("bf16", (32, 64, 128), 4, 4, bias=None, residual=None),
    specimen("bf16", (64, 64, 64), 4, 4, WHOLE=False, residual=None),
    specimen("bf16", (128, 128, 64), 8, 4, ACTIVATION="gelu"),
    specimen("fp16", (64, 64, 64), 4, 4, ACTIVATION="silu", bias=None),
    specimen("fp32", (64, 64, 16), 8, 2),
    specimen("fp32", (128, 64, 16), 8, 2, WHOLE=False),
]


def make(
    groups: int,
    rows: int,
    size: int,
    outputs: int,
    *,
    bias: bool = True,
    residual: bool = True,
    kind: torch.dtype = torch.float32,
) -> Inputs:
    """x `[2 G, rows, I]`; the weight lies as a stack of `nn.Linear`'s does, O before I."""
    tokens = (2 * groups, rows)
    inputs = {
        "x": torch.randn(*tokens, size),
        "weight": torch.randn(groups, outputs, size).mT / size**0.5,
    }
    if bias:
        inputs["bias"] = torch.randn(groups, outputs)
    if residual:
        inputs["residual"] = torch.randn(*tokens, outputs)
    return {name: tensor.to(kind) for name, tensor in inputs.items()}


def gradients(impl: str, inputs: Inputs, activation: str | None) -> list[Tensor]:
    """y, and the gradient of each input for a loss that looks different at each number of y."""
    given = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    y = grouped_linear(**given, activation=activation, impl=impl)
    dy = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, list(given.values()), dy)]


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max().clamp_min(1.0) if other.numel() else 1.0
        assert ((one - other).abs() <= tolerance * scale).all()


@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
def test_the_reference_is_one_linear_map_a_cell(activation: str | None) -> None:
    inputs = make(3, 5, 4, 7)
    y = grouped_linear(**inputs, activation=activation)
    after = {None: lambda z: z, "silu": F.silu, "gelu": F.gelu}[activation]
    for row in range(6):
        z = F.linear(inputs["x"][row], inputs["weight"][row // 2].mT, inputs["bias"][row // 2])
        torch.testing.assert_close(y[row], after(z) + inputs["residual"][row])


@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
@pytest.mark.parametrize(
    ("groups", "rows", "size", "outputs"), [(2, 1, 33, 65), (1, 7, 16, 1), (3, 40, 5, 130)]
)
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_triton_equals_the_reference(
    groups: int, rows: int, size: int, outputs: int, activation: str | None
) -> None:
    inputs = make(groups, rows, size, outputs)
    truth = {name: tensor.double() for name, tensor in inputs.items()}
    assert_near(
        gradients("triton", inputs, activation), gradients("reference", truth, activation), 5e-6
    )


@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_more_than_one_band_of_tiles() -> None:
    inputs = make(1, 600, 4, 70)
    assert_near(gradients("triton", inputs, None), gradients("reference", inputs, None), 5e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_bias_and_residual_may_be_absent(bias: bool, residual: bool) -> None:
    inputs = make(2, 3, 8, 16, bias=bias, residual=residual)
    assert_near(gradients("triton", inputs, None), gradients("reference", inputs, None), 5e-6)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_triton_is_no_worse_than_the_reference_in_low_precision(
    kind: torch.dtype, activation: str | None
) -> None:
    """Distances from the reference in float64, on the same rounded inputs."""
    inputs = make(2, 33, 72, 40, kind=kind)
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    truth, reference = (gradients("reference", given, activation) for given in (wide, inputs))
    for found, other, true in zip(
        gradients("triton", inputs, activation), reference, truth, strict=True
    ):
        assert found.dtype == kind
        assert (found - true).abs().max() <= 2 * (other - true).abs().max()


@pytest.mark.parametrize(
    "view",
    [
        lambda inputs: inputs | {"x": inputs["x"][..., ::2], "weight": inputs["weight"][:, ::2]},
        lambda inputs: inputs | {"x": inputs["x"].transpose(0, 1).contiguous().transpose(0, 1)},
        lambda inputs: inputs | {"weight": inputs["weight"].contiguous()},
        lambda inputs: inputs | {"residual": inputs["residual"][:, :1].expand(4, 6, 16)},
        lambda inputs: inputs | {"x": inputs["x"][:, 2:4], "residual": inputs["residual"][:, 1:3]},
    ],
    ids=["columns", "time first", "inputs first", "expanded", "time"],
)
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_inputs_may_lie_anywhere(view: Callable[[Inputs], Inputs]) -> None:
    inputs = view(make(2, 6, 12, 16))
    contiguous = {name: tensor.contiguous() for name, tensor in inputs.items()}
    expected = gradients("reference", contiguous, "silu")
    for impl in ("reference", "triton"):
        assert_near(gradients(impl, inputs, "silu"), expected, 5e-6)


@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_no_rows() -> None:
    for impl in ("reference", "triton"):
        y, dx, dweight, *_ = gradients(impl, make(2, 0, 4, 5), "gelu")
        assert y.shape == (4, 0, 5)
        assert dx.shape == (4, 0, 4)
        assert not dweight.any()


@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_second_derivatives_agree(activation: str | None) -> None:
    """Of a step of gradient descent on x, with respect to all inputs."""
    inputs, results = make(2, 3, 5, 4), []
    for impl in ("reference", "triton"):
        given = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
        loss = grouped_linear(**given, activation=activation, impl=impl).square().sum()
        (slope,) = torch.autograd.grad(loss, given["x"], create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), list(given.values())))
    assert_near(results[1], results[0], 1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": torch.ones(4, 2, 7)}, r"weight must have shape \[G, I, O\].*got weight \[2, 3, 5\]"),
        ({"x": torch.ones(3, 2, 3)}, r"where G divides N, .* and x \[3, 2, 3\]"),
        ({"weight": torch.ones(3, 5)}, r"got weight \[3, 5\]"),
        ({"bias": torch.ones(5)}, r"bias must have shape \[G, O\] = \[2, 5\], got \[5\]"),
        ({"residual": torch.ones(4, 5)}, r"y's shape \[4, 2, 5\], got \[4, 5\]"),
        ({"activation": "relu"}, "must be None, 'silu' or 'gelu', got 'relu'"),
        ({"impl": "cuda"}, "impl must be"),
        ({"impl": "triton", "x": torch.ones(4, 2, 3).half()}, r"of one type, got \['torch.float16"),
    ],
)
@pytest.mark.usefixtures("_triton")
def test_what_does_not_fit_is_an_error(wrong: dict[str, Any], message: str) -> None:
    given = {"x": torch.ones(4, 2, 3), "weight": torch.ones(2, 3, 5)}
    with pytest.raises(ValueError, match=f"grouped_linear: .*{message}"):
        grouped_linear(**(given | wrong))


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("specimen", SPECIMENS, ids=str)
def test_compiles_ahead_of_time(
    specimen: Specimen, arch: int, compile_ahead: Callable[[Specimen, int], Resources]
) -> None:
    resources = compile_ahead(specimen, arch)
    assert resources.spills == 0
    assert resources.shared <= {80: 163, 90: 227}[arch] * 1024
