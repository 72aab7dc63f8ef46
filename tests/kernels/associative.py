"""What the tests of the associative operations share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from memarch.kernels.feature_maps import FeatureMap

Inputs = dict[str, Tensor]
MAPS: tuple[FeatureMap, ...] = ("dpfp1", "dpfp2", "dpfp3", "elu1", "relu", "softmax")
EPS = 1e-5
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaps": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "rows second": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "turned": lambda x: x.mT.contiguous().mT,
    "one row": lambda x: x[:1].expand_as(x),
    "columns": lambda x: F.pad(x, (2, 3), value=torch.nan)[..., 2:-3],
}
"""The same numbers, or one row's, elsewhere."""


def phi(x: Tensor, name: FeatureMap) -> Tensor:
    """Features `[F]` of one vector `[d]`."""
    if name == "softmax":
        return x.exp() / x.exp().sum()
    if name == "relu":
        return torch.where(x > 0, x, 0)
    if name == "elu1":
        return torch.where(x > 0, x + 1, x.exp())
    r = torch.cat([x, -x]).clamp(min=0)
    size, nu = len(r), int(name[-1])
    return torch.stack([r[i] * r[(i - j) % size] for j in range(1, nu + 1) for i in range(size)])


def double(inputs: Inputs) -> Inputs:
    return {
        key: tensor.double() if tensor.is_floating_point() else tensor
        for key, tensor in inputs.items()
    }


def rms(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt()


def assert_near(found: Inputs, truth: Inputs, tolerance: float) -> None:
    """The largest difference is at most this part of the truth's largest number."""
    assert found.keys() == truth.keys()
    for name, true in truth.items():
        assert found[name].shape == true.shape, name
        if true.numel():
            limit = tolerance * max(1.0, true.abs().max())
            assert (found[name] - true).abs().max() <= limit, name


def assert_no_worse(found: Inputs, other: Inputs, truth: Inputs) -> None:
    """At most twice the other's distance from the truth, at its largest and on the whole."""
    assert found.keys() == other.keys() == truth.keys()
    for name, true in truth.items():
        assert found[name].dtype == other[name].dtype, name
        mine, theirs = found[name].double() - true, other[name].double() - true
        assert rms(mine) <= 2 * rms(theirs), name
        assert mine.abs().max() <= 2 * theirs.abs().max(), name


def on_gpu(kernels: ModuleType, arch: int) -> AbstractContextManager[Any]:
    """The module's blocks are chosen as on an A100 (sm_80) or H100 (sm_90)."""
    shared, processors = {80: (147, 108), 90: (211, 132)}[arch]
    return mock.patch.multiple(
        kernels, shared_memory=lambda _: shared * 1024, processors=lambda _: processors
    )


def sizes(**numbers: int) -> dict[str, str]:
    """Types of a launch's integers."""
    return {name: "i32" if number % 16 else "i32:16" for name, number in numbers.items()}
