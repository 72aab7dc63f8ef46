"""When two executors agree: the one rule by which fast paths are held to the plain one.

Fast and plain results may differ by at most max(floor, 2 s), where the floor is 1e-10 in float64
and 1e-5 in float32, and s is how much the plain result itself moves when the inputs move by one
unit in the last place (the most of three patterns of signs), measured on the same model: what
rounding alone would do to an ill-conditioned stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from memarch.arch.model import MemarchModel

_PATTERNS = (slice(None, None, 2), slice(None, None, 3), slice(0, 0))
FLOORS = {torch.float64: 1e-10, torch.float32: 1e-5}
Results = Mapping[str, Tensor]


def assert_agree(
    model: MemarchModel, plain: Callable[[], Results], fast: Callable[[], Results]
) -> None:
    """Raise AssertionError where a tensor of `fast()` is further from `plain()`'s than allowed."""
    expected, got = plain(), fast()
    moved = []
    for pattern in _PATTERNS:
        with _moved_inputs(model, pattern):
            moved.append(plain())
    if set(got) != set(expected):
        raise AssertionError(f"different results: {sorted(set(got) ^ set(expected))}")
    for name, truth in expected.items():
        change = max(_distance(other[name], truth) for other in moved)
        allowed = max(FLOORS[truth.dtype], 2 * change)
        distance = _distance(got[name], truth)
        if not distance <= allowed:
            raise AssertionError(f"{name} differs by {distance:.2e}, allowed is {allowed:.2e}")


def results(model: MemarchModel, ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Outputs, state and gradients of a model that reads `ids`, for `assert_agree`."""
    model.zero_grad()
    output = model(ids, attention_mask=mask, return_memory=True)
    weights = torch.linspace(-1, 1, output.logits.numel(), dtype=output.logits.dtype)
    scored = output.logits if mask is None else output.logits * mask.unsqueeze(-1)
    (scored * weights.view_as(scored)).mean().backward()
    found = {"logits": scored.detach()}
    found |= {
        f"state {key}": value.detach()
        for key, value in output.memory.items()
        if value.is_floating_point()
    }
    found |= {
        f"gradient of {name}": torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }
    return found


@contextmanager
def _moved_inputs(model: MemarchModel, pattern: slice) -> Iterator[None]:
    """Every embedding one unit in the last place away: down where the pattern says, else up."""
    weight = model.view.embedding.weight
    kept = weight.detach().clone()
    towards = torch.full_like(kept, float("inf"))
    towards.view(-1)[pattern] *= -1
    with torch.no_grad():
        weight.copy_(torch.nextafter(kept, towards))
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if a.numel() else 0.0
