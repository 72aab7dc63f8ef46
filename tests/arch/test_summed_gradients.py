"""Weight gradients added up in place: the same as autograd's own, in all kinds of passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memarch.arch.summed_gradients import SummedGradient


def chain(weight: Tensor, x: Tensor, *, summed: bool) -> list[Tensor]:
    """Six uses of one weight, each of what the last one left."""
    product = SummedGradient(weight).product if summed else lambda x: torch.bmm(x, weight)
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
    """Gradients by `passes` over one graph, summed and plain."""
    found = []
    for summed in (True, False):
        leaf, x = made()
        outputs = chain(leaf * 2, x, summed=summed)
        inputs = {"x": [x], "weight": [leaf], "all": [x, leaf], "part": [leaf]}
        gradients: list[Tensor] = []
        for name in passes:
            root = outputs[2] if name == "part" else outputs[-1]
            gradients += torch.autograd.grad(root.sum(), inputs[name], retain_graph=True)
        found.append(gradients)
    return found


@pytest.mark.parametrize(
    "passes",
    [["all"], ["x", "weight"], ["part", "all"], ["weight", "part", "weight"], ["x", "x", "all"]],
    ids=" ".join,
)
def test_passes_do_not_mix(passes: list[str]) -> None:
    summed, plain = both(passes)
    torch.testing.assert_close(summed, plain, rtol=1e-12, atol=1e-12)


def test_gradients_of_gradients() -> None:
    leaf, x = made()

    def total(x: Tensor, leaf: Tensor) -> Tensor:
        return chain(leaf * 2, x, summed=True)[-1].square().sum()

    assert torch.autograd.gradcheck(total, (x, leaf))
    assert torch.autograd.gradgradcheck(total, (x, leaf))


def test_a_pass_inside_another() -> None:
    found = []
    for summed in (True, False):
        leaf, x = made()
        outputs = chain(leaf * 2, x, summed=summed)

        def inner(gradient: Tensor, outputs: list[Tensor] = outputs, leaf: Tensor = leaf) -> Tensor:
            with torch.enable_grad():
                (other,) = torch.autograd.grad(outputs[1].sum(), leaf, retain_graph=True)
            return gradient + other.sum()

        outputs[3].register_hook(inner)
        found.append(torch.autograd.grad(outputs[-1].sum(), [leaf, x]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
