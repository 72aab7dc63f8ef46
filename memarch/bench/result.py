"""What a measurement leaves: rows of ratios, the device, the versions; as JSON and as a table."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from memarch.bench.timing import Timed, ratios
from memarch.studies.training.machine import versions

Row = dict[str, Any]
Document = dict[str, Any]


def row(
    case: str, baseline: str, candidate: str, timed: Mapping[str, Timed], **more: object
) -> Row:
    """One comparison; `speedup` above 1 says that the candidate is faster than the baseline."""
    before, after = timed[baseline], timed[candidate]
    return {
        "case": case,
        "baseline": baseline,
        "candidate": candidate,
        "baseline_seconds": before.median,
        "candidate_seconds": after.median,
        "speedup": before.median / after.median,
        "speedup_quartiles": list(ratios(before, after)),
        "samples": len(after.seconds),
        "baseline_peak_bytes": before.peak_bytes,
        "candidate_peak_bytes": after.peak_bytes,
        **more,
    }


def document(
    benchmark: str, device: torch.device, rows: Sequence[Row], notes: Iterable[str] = ()
) -> Document:
    """Everything that one command found."""
    return {
        "benchmark": benchmark,
        "device": _name(device),
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "notes": list(notes),
        "rows": list(rows),
    }


def text(found: Document) -> str:
    """The document as a table for people, ratios first."""
    cells = [_cells(each) for each in found["rows"]]
    heads = ("speedup", "of", "over", "times", "case", "remarks")
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [heads, tuple("-" * width for width in widths), *cells]
    ]
    threads = f", {found['threads']} threads" if "CPU" in found["device"] else ""
    packages = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return "\n".join([*lines, "", *found["notes"], f"{found['device']}{threads}; {packages}"])


def duration(seconds: float) -> str:
    """Seconds in a unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


_REMARKS = {
    "chose": "chose {}",
    "choice_of_best": "{:.2f} of the best",
    "share_of_best": "its own run {:.2f}",
    "speedup_over_best": "{:.2f}x the best other",
    "baseline_error": "baseline's error {:.2g}",
    "candidate_error": "error {:.2g}",
}
"""What else a row may say, in a few words each."""
_CEILINGS = {"bandwidth": "bandwidth", "matrix": "matrix rate"}


def _cells(found: Row) -> tuple[str, ...]:
    low, high = found["speedup_quartiles"]
    times = f"{duration(found['baseline_seconds'])} -> {duration(found['candidate_seconds'])}"
    remarks = [form.format(found[key]) for key, form in _REMARKS.items() if key in found]
    shares = {name: found[f"{name}_share"] for name in _CEILINGS if f"{name}_share" in found}
    if shares:
        nearest = max(shares, key=shares.__getitem__)
        remarks.append(f"{shares[nearest]:.0%} of {_CEILINGS[nearest]}")
    return (
        f"{found['speedup']:.2f}x ({low:.2f}-{high:.2f})",
        found["candidate"],
        found["baseline"],
        times,
        found["case"],
        ", ".join(remarks),
    )


def _versions() -> dict[str, str]:
    found = versions()
    with suppress(PackageNotFoundError):
        found["triton"] = version("triton")
    return found if torch.version.cuda is None else found | {"cuda": torch.version.cuda}


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line for line in lines if line.startswith("model name")).split(": ")[1]
    except (OSError, StopIteration, IndexError):
        pass
    return f"{os.cpu_count()} CPU cores, {model}"
