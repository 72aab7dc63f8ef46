"""Checkpoints of a run: one file each, complete or absent, from which a run goes on exactly.

A checkpoint holds the weights, the optimizer, the learning-rate schedule, the random number
generators of python, numpy and torch, and the run's own counters. Only the newest is kept.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memarch.studies.driver.failures import is_disk_full
from memarch.studies.records.artifacts import checkpoint_saved

SPACE = 2**16
"""A disk with less than this is full."""


class NoSpaceError(RuntimeError):
    """There was no space for a checkpoint; the one before it is whole."""


def save_checkpoint(folder: Path, step: int, content: Mapping[str, Any]) -> Path:
    """Write `step-00000100.pt` (synced, then renamed) and remove what it replaces."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    partial = folder / f".{path.name}.{os.getpid()}"
    try:
        with partial.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        # torch's own error does not say why; before the partial file is gone, the disk does.
        full = is_disk_full(error) or _free_bytes(folder) < SPACE
        partial.unlink(missing_ok=True)
        if full:
            raise NoSpaceError(f"no space left for {folder}") from error
        raise
    for old in folder.iterdir():
        if old != path and old.name.lstrip(".").startswith("step-"):
            old.unlink(missing_ok=True)
    checkpoint_saved()
    return path


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint, or None. It is our own file, so unpickling it is safe."""
    paths = sorted(folder.glob("step-*.pt"))
    if not paths:
        return None
    content: dict[str, Any] = torch.load(paths[-1], map_location="cpu", weights_only=False)
    return content


def random_state() -> dict[str, Any]:
    """The state of every random number generator that training may draw from."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """The reverse of `random_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
