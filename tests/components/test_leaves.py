"""The leaves: their equations, and stacked weights against one leaf a cell."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from memarch.components.leaves import RMSNorm, ShortConv, Vector

LEAVES = {
    "norm": (RMSNorm(6, 1e-6), (torch.randn(6, 3, 2, 6),)),
    "conv": (ShortConv(6, 4), (torch.randn(6, 5, 6), torch.randn(6, 3, 6))),
    "vector": (Vector(2, 3), (6,)),
}


@pytest.mark.parametrize("name", LEAVES)
def test_stacked_weights_equal_one_leaf_a_cell(name: str) -> None:
    """Three cells of two rows each, folded into six rows."""
    leaf, inputs = LEAVES[name]
    cells = [copy.deepcopy(leaf) for _ in range(3)]
    for cell in cells:
        nn.init.normal_(cell.weight)
    group = copy.deepcopy(leaf)
    del group.weight
    group.weight = torch.stack([cell.weight for cell in cells])
    parts = [
        cell(*(x[2 * g : 2 * g + 2] if isinstance(x, torch.Tensor) else 2 for x in inputs))
        for g, cell in enumerate(cells)
    ]
    expected = torch.cat([part.expand(2, *part.shape[1:]) for part in parts])
    torch.testing.assert_close(group(*inputs), expected)


def test_norm_gives_root_mean_square_one() -> None:
    norm = RMSNorm(8, 0.0).double()
    y = norm(torch.randn(2, 3, 8, dtype=torch.float64))
    torch.testing.assert_close(y.square().mean(-1), torch.ones(2, 3, dtype=torch.float64))


def test_norm_computes_in_float32() -> None:
    """Squares of these numbers overflow float16."""
    y = RMSNorm(4, 1e-6).half()(torch.full((1, 4), 3e4).half())
    assert y.dtype == torch.float16
    assert y.tolist() == [[1.0] * 4]


def test_conv_is_the_causal_depthwise_convolution() -> None:
    conv = ShortConv(5, 4).double()
    x, tail = torch.randn(2, 7, 5).double(), torch.randn(2, 3, 5).double()
    padded = torch.cat([tail, x], dim=1).transpose(1, 2)
    expected = nn.functional.conv1d(padded, conv.weight.unsqueeze(1), groups=5).transpose(1, 2)
    torch.testing.assert_close(conv(x, tail), expected)


def test_conv_sees_the_tail_oldest_first() -> None:
    """Weights 1, 10, 100 from the oldest token to the newest."""
    conv = ShortConv(1, 3)
    conv.weight.data = torch.tensor([[1.0, 10.0, 100.0]])
    y = conv(torch.tensor([3.0, 4.0]).view(1, 2, 1), torch.tensor([1.0, 2.0]).view(1, 2, 1))
    assert y.flatten().tolist() == [321.0, 432.0]
