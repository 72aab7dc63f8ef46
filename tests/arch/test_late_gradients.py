"""Weight gradients made together: the same as autograd's own, in every kind of backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memarch.arch import late_gradients
from memarch.arch.late_gradients import LateGradient


@pytest.fixture(params=[256, 5, 1], ids=["one product", "several", "each its own"])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_gradients, "ROWS", request.param)


def chain(weight: Tensor, x: Tensor, *, late: bool) -> list[Tensor]:
    """Six uses of one weight, each of what the last one left."""
    product = LateGradient(weight).product if late else lambda x: torch.bmm(x, weight)
    outputs = []
    for _ in range(6):
        x = torch.tanh(product(x))
        outputs.append(x)
    return outputs


def made() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    leaf = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    x = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    return leaf, x


def both(passes: list[str]) -> list[list[Tensor]]:
    """Gradients by `passes` over one graph, late and plain."""
    found = []
    for late in (True, False):
        leaf, x = made()
        outputs = chain(leaf * 2, x, late=late)
        inputs = {"x": [x], "weight": [leaf], "all": [x, leaf], "part": [leaf]}
        gradients: list[Tensor] = []
        for name in passes:
            root = outputs[2] if name == "part" else outputs[-1]
            gradients += torch.autograd.grad(root.sum(), inputs[name], retain_graph=True)
        found.append(gradients)
    return found


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(
    "passes",
    [["all"], ["x", "weight"], ["part", "all"], ["weight", "part", "weight"], ["x", "x", "all"]],
    ids=" ".join,
)
def test_passes_do_not_mix(passes: list[str]) -> None:
    late, plain = both(passes)
    torch.testing.assert_close(late, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("rows")
def test_gradients_of_gradients() -> None:
    leaf, x = made()

    def total(x: Tensor, leaf: Tensor) -> Tensor:
        return chain(leaf * 2, x, late=True)[-1].square().sum()

    assert torch.autograd.gradcheck(total, (x, leaf))
    assert torch.autograd.gradgradcheck(total, (x, leaf))


@pytest.mark.usefixtures("rows")
def test_a_pass_inside_another() -> None:
    found = []
    for late in (True, False):
        leaf, x = made()
        outputs = chain(leaf * 2, x, late=late)

        def inner(gradient: Tensor, outputs: list[Tensor] = outputs, leaf: Tensor = leaf) -> Tensor:
            with torch.enable_grad():
                (other,) = torch.autograd.grad(outputs[1].sum(), leaf, retain_graph=True)
            return gradient + other.sum()

        outputs[3].register_hook(inner)
        found.append(torch.autograd.grad(outputs[-1].sum(), [leaf, x]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
