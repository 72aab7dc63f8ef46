"""A trial that takes no time: solves its task by chance, and never where the write is disabled.

Its luck follows from the seed and the whole training section, so that a change which does nothing
(another checkpoint interval) has luck of its own.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any


def run(spec: dict[str, Any], folder: Path, report: Any) -> dict[str, Any]:
    seed = spec["study"]["seeds"]["model"]
    luck = random.Random(json.dumps([seed, spec["train"], spec["task"]], sort_keys=True))
    steps = spec["model"]["memory"]["main"]["write"]["steps"]
    if spec["train"]["batch_size"] == 13 and seed == 2:
        raise ValueError("told to fail")
    solved = steps > 0 and luck.random() < 0.9
    value = 1.0 - 0.0004 * luck.random() if solved else 0.33 + 0.02 * luck.random()
    return {
        "state": "complete",
        "metrics": {"eval/kv/exact_match": value, "cost/state_bytes": 512.0},
        "converged": solved,
    }


def test(spec: dict[str, Any], folder: Path) -> dict[str, float]:
    return {}


test.__test__ = False  # type: ignore[attr-defined]
