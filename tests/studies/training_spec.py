"""A small resolved spec for tests that train."""

from __future__ import annotations

import copy
from typing import Any

EVALUATION = {
    "task": "same",
    "split": "validation",
    "size": 16,
    "batch_size": 16,
    "generate": False,
    "sweep": {},
    "points": [],
}


def make_spec(memory: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A small resolved spec; changes go under `train`, those with a section's name into it."""
    spec = {
        "study": {
            "name": "test",
            "seeds": {"model": 1, "data": 2},
            "objective": {"eval/kv/exact_match": "maximize"},
        },
        "vars": {},
        "task": {"type": "kv_retrieval", "pairs": 2, "format": "compact", "alphabet": 4},
        "model": {
            "backbone": {
                "type": "llama",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
            "memory": copy.deepcopy(memory or {}),
            "segment_length": 4,
        },
        "train": {"budget": {"steps": 8}, "batch_size": 4, "lr": 1e-2, "eval_every": 100},
        "eval": {"kv": copy.deepcopy(EVALUATION)},
        "resources": {"cpus": 1},
        "plugins": [],
    }
    for section in ("task", "model", "study", "eval"):
        spec[section] = spec[section] | changes.pop(section, {})
    spec["train"] |= changes
    return spec
