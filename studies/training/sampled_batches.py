"""Training batches under task settings that are drawn for each batch: `{sample: {int: [2, 8]}}`.

A resolved spec has the settings of evaluations under `task`, and what training draws as

    train.sample = [{"keys": ["task.pairs"], "range": {"int": [2, 8]}}, ...]

Keys of one entry get the same value. Values and samples of batch n depend on the seed and n alone.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from memarch.components.errors import SpecError
from memarch.search_spaces.ranges import Choice, Float, Int, Range, Subset, parse_range
from memarch.studies.tasks.base import Task, build_task, stream
from memarch.studies.training.points import backbone_tokenizer
from memarch.studies.training.stages import set_path

if TYPE_CHECKING:
    import numpy as np

Spec = Mapping[str, Any]

TASKS_KEPT = 256
"""Tasks of different values that are kept, those used last."""


def training_batches(
    spec: Spec, task: Task, batch_size: int, seed: int, start: int
) -> Iterator[dict[str, Any]]:
    """Endless batches from number `start` on; `task` is that of the spec's own values."""
    entries = spec["train"].get("sample") or []
    if not entries:
        return task.batches("train", batch_size, seed, start)
    ranges = [(entry["keys"], parse_range(entry["range"])) for entry in entries]
    tokenizer = backbone_tokenizer(spec["model"])

    @lru_cache(maxsize=TASKS_KEPT)
    def build(values: str) -> Task:
        return _task_at(spec, json.loads(values), tokenizer, task.vocab_size)

    for keys, known in ranges:
        for value in known.extremes():
            build(json.dumps(dict.fromkeys(keys, value)))

    def batches() -> Iterator[dict[str, Any]]:
        for index in itertools.count(start):
            rng = stream(seed, "train", index, purpose=3)
            values: dict[str, Any] = {}
            for keys, known in ranges:
                values |= dict.fromkeys(keys, draw(known, rng))
            yield next(build(json.dumps(values)).batches("train", batch_size, seed, index))

    return batches()


def draw(known: Range, rng: np.random.Generator) -> Any:
    """One value, each equally likely; on a logarithmic scale where the range says so."""
    match known:
        case Choice(values):
            return values[int(rng.integers(len(values)))]
        case Int(low, high, log=True):
            exponent = rng.uniform(math.log(low - 0.5), math.log(high + 0.5))
            return min(max(round(math.exp(exponent)), low), high)
        case Int(low, high, step=step):
            return low + step * int(rng.integers((high - low) // step + 1))
        case Float(low, high, log=True):
            return min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high)
        case Float(low, high, step=None):
            return float(rng.uniform(low, high))
        case Float():
            grid = known.grid() or [known.low]
            return grid[int(rng.integers(len(grid)))]
        case Subset(values, low, high):
            size = int(rng.integers(low, high + 1))
            return [values[i] for i in sorted(rng.permutation(len(values))[:size].tolist())]
    raise TypeError(f"cannot be drawn: {known!r}")


def _task_at(spec: Spec, values: Mapping[str, Any], tokenizer: Any, vocab_size: int) -> Task:
    changed = {"task": copy.deepcopy(dict(spec["task"]))}
    for path, value in values.items():
        set_path(changed, path, value)
    task = build_task(changed["task"], tokenizer=tokenizer)
    if task.vocab_size != vocab_size:
        path, value = next(iter(values.items()))
        raise SpecError(
            f"must not change the task's vocabulary from batch to batch, but with {value!r} there "
            f"are {task.vocab_size} tokens, in evaluations {vocab_size}: sample other settings",
            path=path,
        )
    return task
