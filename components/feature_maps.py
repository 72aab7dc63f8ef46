"""Feature maps phi of associative memories: keys and queries `[..., d]` to non-negative features.

- `dpfp1`, `dpfp2`, `dpfp3`: deterministic parameter-free projection (Schlag et al., 2102.11174,
  eq. 37-38): r = [relu(x); relu(-x)], phi(x) = concat over j = 1..nu of r * roll(r, j); size 2 nu d
- `elu1`: elu(x) + 1 (Katharopoulos et al., arXiv 2006.16236, eq. 7); size d
- `relu`: max(x, 0); size d
- `softmax`: softmax over the features; size d
"""

from __future__ import annotations

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
    rectified = torch.cat([F.relu(x), F.relu(-x)], dim=-1)
    rolled = [rectified * rectified.roll(j, dims=-1) for j in range(1, _nu(name) + 1)]
    return torch.cat(rolled, dim=-1)


def num_features(name: FeatureMap, d: int) -> int:
    """The size of phi(x) for x of size d."""
    return 2 * _nu(name) * d if name.startswith("dpfp") else d


def _nu(name: FeatureMap) -> int:
    return int(name.removeprefix("dpfp"))
