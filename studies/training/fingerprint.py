"""What a trial's numbers depend on besides its spec: code, data and machine, for its result.

commit    the commit of memarch's own source, with `+changes` where files differ from it; null
          where memarch was installed from a wheel, whose version then says as much
data      a hash of what training and evaluation saw first: four training batches, and 32 rows
          of every evaluation. It covers files, generators, tokenizers and seeds alike
device, cpu
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from memarch.studies.records.store import plain
from memarch.studies.training.points import eval_points, make_task, own_random_state
from memarch.studies.training.sampled_batches import training_batches
from memarch.studies.training.session import default_device, seed_of

BATCHES = 4
ROWS = 32


def fingerprint(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The facts above, of this process."""
    device = default_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"commit": commit(), "data": data_hash(spec), "device": name, "cpu": _cpu()}


def data_hash(spec: Mapping[str, Any]) -> str:
    """Equal where training and evaluation begin with the same data."""
    digest = hashlib.sha256()
    with own_random_state(default_device()):
        for part in _data(spec):
            digest.update(json.dumps(plain(part), sort_keys=True).encode())
    return digest.hexdigest()


def _data(spec: Mapping[str, Any]) -> Iterator[Any]:
    task, seed = make_task(spec["task"], spec["model"]), seed_of(spec, "data")
    batches = training_batches(spec, task, spec["train"].get("batch_size", 32), seed, 0)
    for batch in islice(batches, BATCHES):
        yield {name: tensor.tolist() for name, tensor in batch.items()}
    for point in eval_points(spec):
        if not point.name:
            rows = make_task(point.task, point.model).dataset(point.settings["split"], ROWS, seed)
            yield [rows[index] for index in range(min(ROWS, len(rows)))]


@lru_cache(maxsize=1)
def commit() -> str | None:
    """The commit that memarch's source is at, if it is a checkout."""
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    head = _git(here.parent, "rev-parse", "HEAD")
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no", "--", ":/")
    return f"{head}+changes" if changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@lru_cache(maxsize=1)
def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()
