"""Feature maps phi of associative memories: keys and queries `[..., d]` to non-negative features.

- `dpfp1`, `dpfp2`, `dpfp3`: deterministic parameter-free projection (Schlag et al., 2102.11174,
  eq. 37-38): r = [relu(x); relu(-x)], phi(x) = concat over j = 1..nu of r * roll(r, j); size 2 nu d
- `elu1`: elu(x) + 1 (Katharopoulos et al., arXiv 2006.16236, eq. 7); size d
- `relu`: max(x, 0); size d
- `softmax`: softmax over the features; size d
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

FeatureMap = Literal["dpfp1", "dpfp2", "dpfp3", "elu1", "relu", "softmax"]


def feature_map(x: Tensor, name: FeatureMap) -> Tensor:
    """phi(x): `[..., d] -> [..., num_features(name, d)]`."""
    if name == "elu1":
        return F.elu(x) + 1
    if name == "relu":
        return F.relu(x)
    if name == "softmax":
        return x.softmax(dim=-1)
    r, rolled = _rectified(x, _nu(name)).tensor_split([1], dim=-2)
    return (r * rolled).flatten(-2)


def feature_gradient(x: Tensor, name: FeatureMap, gradient: Tensor) -> Tensor:
    """The gradient of sum(phi(x) * gradient) by x `[..., d]`. Differentiable in turn."""
    if name == "elu1":
        return gradient * x.clamp(max=0).exp()
    if name == "relu":
        return torch.ops.aten.threshold_backward(gradient, x, 0)
    if name == "softmax":
        phi = x.softmax(dim=-1)
        weighted = gradient * phi
        return torch.addcmul(weighted, phi, weighted.sum(-1, keepdim=True), value=-1)
    nu = _nu(name)
    all_rolled = _rectified(x, nu)
    r, rolled = all_rolled.tensor_split([1], dim=-2)
    gradient = gradient.unflatten(-1, (nu, -1))
    by_rolled = torch.cat([(gradient * rolled).sum(-2, keepdim=True), gradient * r], dim=-2)
    by_sign = torch.ops.aten.threshold_backward(by_rolled, all_rolled, 0).flatten(-2)
    return by_sign @ _rolls(x.shape[-1], nu, x.dtype, x.device).T


def num_features(name: FeatureMap, d: int) -> int:
    """The size of phi(x) for x of size d."""
    return 2 * _nu(name) * d if name.startswith("dpfp") else d


def _nu(name: FeatureMap) -> int:
    return int(name.removeprefix("dpfp"))


def _rectified(x: Tensor, nu: int) -> Tensor:
    """r, roll(r, 1), ..., roll(r, nu) `[..., nu + 1, 2 d]`, by one product that moves numbers."""
    moved = x @ _rolls(x.shape[-1], nu, x.dtype, x.device)
    return F.relu(moved).unflatten(-1, (nu + 1, -1))


@cache
def _rolls(d: int, nu: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[x; -x] rolled by 0, 1, ..., nu is x times this `[d, (nu + 1) 2 d]`: one 1 or -1 a column."""
    with torch.inference_mode(False), torch.no_grad():
        signs = torch.eye(d, dtype=dtype, device=device)
        signs = torch.cat([signs, -signs], dim=1)
        return torch.cat([signs.roll(j, dims=1) for j in range(nu + 1)], dim=1)
