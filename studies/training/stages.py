"""Stages: a curriculum over any value. A stage changes keys, and ends by a metric or after steps.

Every stage starts from the spec itself, not from the stage before it. After the last stage the run
goes on under the spec itself until its budget is spent, and a stage without an end lasts that long.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memarch.components.errors import SpecError

CHANGEABLE_TRAIN_KEYS = ("lr", "batch_size", "truncate", "trainable")
"""Keys under `train` that a stage may set; the others hold for the whole run."""

LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte")


@dataclass
class StageRecord:
    """What became of a stage; part of every checkpoint and of the result."""

    name: str
    start: int
    end: int | None = None
    reason: str = "running"
    """`until` (the metric was reached), `steps`, `budget`, `solved` or `pruned`."""


def stage_specs(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The specs that a run trains under, in order; the last one is the spec itself."""
    stages = spec["train"].get("stages") or []
    return [*(_stage_spec(spec, index, stage) for index, stage in enumerate(stages)), dict(spec)]


def _stage_spec(spec: Mapping[str, Any], index: int, stage: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with the stage's values.

    A spec that was resolved from a file holds, beside `set`, the sections that change, as `spec`:
    there `set` may also name vars.
    """
    if "spec" in stage:
        return {**spec, **stage["spec"]}
    result = copy.deepcopy(dict(spec))
    for path, value in stage["set"].items():
        if path == "train.sample":  # what all of the stage's batches are drawn from, resolved
            continue
        where = f"train.stages.{index}.set.{path}"
        section, *keys = path.split(".")
        if section not in ("task", "model", "train") or not keys:
            raise SpecError(
                "a stage sets keys under task, model or train, such as task.pairs", path=where
            )
        if section == "train" and keys[0] not in CHANGEABLE_TRAIN_KEYS:
            raise SpecError(
                f"train.{keys[0]} holds for the whole run; a stage may set "
                + ", ".join(f"train.{key}" for key in CHANGEABLE_TRAIN_KEYS),
                path=where,
            )
        set_path(result, path, value)
        _unsample(result["train"], path)
    if "train.sample" in stage["set"]:
        result["train"]["sample"] = stage["set"]["train.sample"]
    return result


def _unsample(train: dict[str, Any], path: str) -> None:
    """A key that a stage sets is not drawn for every batch there."""
    if "sample" in train:
        entries = [
            entry | {"keys": [key for key in entry["keys"] if not _overlap(key, path)]}
            for entry in train["sample"]
        ]
        train["sample"] = [entry for entry in entries if entry["keys"]]


def _overlap(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def set_path(spec: dict[str, Any], path: str, value: Any) -> None:
    """Set `model.memory.main.write.steps` in place; the maps on the way must exist."""
    *parents, last = path.split(".")
    node: Any = spec
    for key in parents:
        try:
            node = node[int(key)] if isinstance(node, list) else node[key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise SpecError(f"there is no {key!r} here to set a value in", path=path) from None
    if not isinstance(node, dict):
        raise SpecError(f"expected a map to set {last!r} in, found {node!r}", path=path)
    node[last] = value


def is_met(goals: Mapping[str, float], metrics: Mapping[str, float], path: str) -> bool:
    """Every goal is met: at least the value, or at most where lower is better."""
    for name, goal in goals.items():
        found = [key for key in metrics if key == name or key.endswith("/" + name)]
        if not found:
            raise SpecError(
                f"no metric {name!r} here; known: {', '.join(sorted(metrics))}", path=path
            )
        value = metrics[name] if name in metrics else metrics[found[0]]
        if not (value <= goal if is_lower_better(name) else value >= goal):
            return False
    return True


def is_lower_better(metric: str) -> bool:
    """Losses fall, scores rise."""
    return metric.rsplit("/", 1)[-1] in LOWER_IS_BETTER
