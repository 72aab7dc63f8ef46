"""Candidates for the same work, run in turn in one process until a time budget is spent.

Turns alternate in direction, so that a machine that slows down or warms up does so for all of them
alike. Work shorter than a clock tick's worth is repeated inside one sample. On a GPU, time passes
between two events of its own; on a CPU, between two readings of the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter

import torch

Work = Callable[[], object]

SAMPLE_SECONDS = 0.01
"""What one sample lasts at least, by repeating the work."""
MOST_CALLS = 200
"""How often work is repeated in one sample, at most."""
WARM_UPS = 3
"""Runs before the first sample; a single one where a run is long."""
SETTLED_SECONDS = 1.0
"""What a run takes at least in which warming up is lost."""


@dataclass(frozen=True)
class Timed:
    """What one candidate took: seconds of one call, sample by sample, and device memory."""

    seconds: list[float]
    peak_bytes: int | None
    """The most that was allocated on the GPU during one call; None on a CPU."""

    @property
    def median(self) -> float:
        """Seconds of one call."""
        return median(self.seconds)


def side_by_side(
    candidates: Mapping[str, Work],
    device: torch.device,
    *,
    seconds: float,
    least: int = 3,
    most: int = 100,
) -> dict[str, Timed]:
    """Times of each candidate after warm-up: `least` samples each, more while `seconds` last."""
    calls = {name: _warm_up(work, device) for name, work in candidates.items()}
    peaks = {name: _peak(work, device) for name, work in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    names, end = list(candidates), perf_counter() + seconds
    for turn in range(most):
        if turn >= least and perf_counter() > end:
            break
        for name in names if turn % 2 == 0 else reversed(names):
            samples[name].append(_sample(candidates[name], device, calls[name]))
    return {name: Timed(samples[name], peaks[name]) for name in names}


def ratios(baseline: Timed, candidate: Timed) -> tuple[float, float]:
    """The quarter and three-quarter points of baseline / candidate, turn by turn."""
    each = [b / c for b, c in zip(baseline.seconds, candidate.seconds, strict=True)]
    low, _, high = quantiles(each, n=4, method="inclusive")
    return low, high


def graphed(work: Work, device: torch.device) -> Work:
    """The work captured as one CUDA graph; on a CPU the work itself."""
    if device.type != "cuda":
        return work
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def bandwidth(device: torch.device, *, seconds: float = 0.5) -> float:
    """Bytes a second, read and written, of a copy that no cache can hold."""
    count = 2**28 if device.type == "cuda" else 2**25
    source = torch.ones(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    timed = side_by_side({"copy": lambda: target.copy_(source)}, device, seconds=seconds)
    return 2 * source.nbytes / timed["copy"].median


def matrix_rate(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.5) -> float:
    """Floating-point operations a second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    timed = side_by_side({"product": lambda: torch.mm(a, b, out=out)}, device, seconds=seconds)
    return 2 * size**3 / timed["product"].median


def _warm_up(work: Work, device: torch.device) -> int:
    """Run until caches, compilers and allocators have settled; how many calls make a sample."""
    once = _sample(work, device, 1)
    for _ in range(WARM_UPS - 1):
        if once < SETTLED_SECONDS:
            once = _sample(work, device, 1)
    return max(1, min(MOST_CALLS, round(SAMPLE_SECONDS / max(once, 1e-9))))


def _peak(work: Work, device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def _sample(work: Work, device: torch.device, calls: int) -> float:
    """Seconds of one call, the mean over `calls` of them."""
    if device.type != "cuda":
        start = perf_counter()
        for _ in range(calls):
            work()
        return (perf_counter() - start) / calls
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    for _ in range(calls):
        work()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1000 / calls
