"""Evaluation points: each named evaluation at the training setting and at every point of its sweep.

A resolved spec is self-contained: beside `sweep`, each evaluation holds `points`, a list of
`{name: "write_steps-2", spec: {task, model}}` with the concrete settings at that point.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch

from memarch.components.errors import SpecError
from memarch.studies.tasks.base import Split, Task, build_task
from memarch.studies.training.evaluation import evaluate

Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One evaluation to make."""

    evaluation: str
    name: str
    """Empty at the training setting."""
    task: Spec
    model: Spec
    settings: Spec

    @property
    def prefix(self) -> str:
        """`kv`, or `kv/write_steps-2` inside a sweep."""
        return f"{self.evaluation}/{self.name}" if self.name else self.evaluation

    def with_model(self, model: Spec) -> Point:
        """The same evaluation of another model."""
        return replace(self, model=model)


def eval_points(spec: Spec) -> Iterator[Point]:
    """The points of every evaluation of a resolved spec."""
    for name, settings in (spec.get("eval") or {}).items():
        task = spec["task"] if settings["task"] == "same" else settings["task"]
        yield Point(name, "", task, spec["model"], settings)
        for point in settings.get("points") or []:
            changed = point["spec"]
            here = changed.get("task", task)
            yield Point(name, point["name"], here, changed.get("model", spec["model"]), settings)


def watched_points(spec: Spec) -> list[Point]:
    """What is evaluated while a run goes on: what objectives, the pruner and early stop depend on.

    Where they name no evaluation, the first.
    """
    study, train = spec.get("study") or {}, spec.get("train") or {}
    names = list(study.get("objective") or {})
    for rule in (study.get("pruner"), train.get("early_stop")):
        if isinstance(rule, Mapping) and rule.get("on"):
            names.append(rule["on"])
    points = list(eval_points(spec))
    named = set()
    for name in names:
        fitting = [point.prefix for point in points if name.startswith(f"eval/{point.prefix}/")]
        named |= {max(fitting, key=len)} if fitting else set()
    return [point for point in points if point.prefix in named] or points[:1]


class Models:
    """One set of weights under every setting that is asked for."""

    def __init__(self, base: Any, spec: Spec) -> None:
        self.base = base
        self._at = {canonical(spec): base}

    def at(self, spec: Spec) -> Any:
        """The model with other settings over the same parameters."""
        key = canonical(spec)
        if key not in self._at:
            self._at[key] = self.base.respec(spec)
        return self._at[key]


class Evaluator:
    """Evaluates points; a task's rows are made once."""

    def __init__(self, models: Models, seed: int, device: torch.device) -> None:
        self.models, self.seed, self.device = models, seed, device
        self._rows: dict[str, tuple[Task, Any]] = {}

    def at(self, point: Point, split: Split, limit: int | None = None) -> dict[str, float]:
        """Metrics by their own names, over at most `limit` rows. Random states stay as they are."""
        task, rows = self._data(point, split)
        if limit is not None and len(rows) > limit:
            rows = rows.select(range(limit))
        model = self.models.at(point.model)
        training = model.training
        model.eval()
        try:
            with own_random_state(self.device):
                return evaluate(
                    model,
                    task,
                    rows,
                    batch_size=point.settings["batch_size"],
                    generate=point.settings["generate"],
                    device=self.device,
                )
        finally:
            model.train(training)

    def _data(self, point: Point, split: Split) -> tuple[Task, Any]:
        key = canonical([point.task, split, point.settings["size"]])
        if key not in self._rows:
            task = make_task(point.task, point.model)
            check_vocabulary(task, self.models.base, f"eval.{point.evaluation}.task")
            whole = split == "test" and not task.endless
            size = None if whole else point.settings["size"]
            self._rows[key] = (task, task.dataset(split, size, self.seed))
        return self._rows[key]


def make_task(task: Spec, model: Spec) -> Task:
    """The task, with the tokenizer of a pretrained backbone."""
    return build_task(task, tokenizer=backbone_tokenizer(model))


def backbone_tokenizer(model: Spec) -> Any:
    """The tokenizer of a pretrained backbone; None where it starts from random weights."""
    backbone = model["backbone"]
    if backbone.get("pretrained") is None:
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(backbone["pretrained"], revision=backbone.get("revision"))


def check_vocabulary(task: Task, model: Any, path: str) -> None:
    """Raise SpecError where a task has token ids that the model does not know."""
    known = model.backbone.get_input_embeddings().num_embeddings
    if task.vocab_size > known:
        raise SpecError(
            f"has {task.vocab_size} tokens, but the model knows {known}: give "
            f"model.backbone.vocab_size={task.vocab_size}, or a task with fewer tokens",
            path=path,
        )


def own_random_state(device: torch.device) -> AbstractContextManager[None]:
    """What is drawn inside leaves the random states outside as they were."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def canonical(value: Any) -> str:
    """Equal text for equal settings."""
    return json.dumps(value, sort_keys=True, default=str)
