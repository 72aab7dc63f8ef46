"""What a trial costs, by its concrete spec: the cost model at the lengths of the trial's own data.

    measured(spec, model)   every figure of `arch.cost`, of a model that is there
    of_spec(spec)           the same of a model that is built for it, a large one without numbers
    size(spec, name)        parameters or state alone, by shapes: milliseconds

Lengths are those of the task's first sample. A state that grows is that after the longest context
that the trial trains on or is evaluated on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memarch.arch.build import build_model, unfilled_model
from memarch.arch.cost import SMALL, measure
from memarch.arch.model import MemarchModel
from memarch.arch.spec import parse_model_spec
from memarch.studies.tasks.base import Task
from memarch.studies.training import optimizers
from memarch.studies.training.points import canonical, eval_points, make_task, own_random_state

Spec = Mapping[str, Any]

SIZES = ("cost/parameters", "cost/state_bytes", "cost/state_floats")
"""Costs that follow from shapes, without a run over the whole input."""
KEPT = 4096
"""Specs whose figures a process remembers."""


def measured(spec: Spec, model: MemarchModel, task: Task | None = None) -> dict[str, float]:
    """`cost/…` of this model in a trial of this spec. Random states stay as they are."""
    lengths = _lengths(spec, task)
    train = spec["train"]
    with own_random_state(model.device):
        return measure(
            model,
            **lengths,
            state_length=longest_context(spec),
            truncate=train.get("truncate"),
            batch_size=train["batch_size"],
            precision=train.get("precision") or "fp32",
        )


def of_spec(spec: Spec) -> dict[str, float]:
    """`cost/…` of a trial before there is one. A NoNumbersError where only a run can tell."""
    return dict(_of_spec(_key(spec), _Held(spec)))


def size(spec: Spec, name: str) -> float:
    """One cost of a spec. A SpecError where there is no such model."""
    if name not in SIZES:
        return of_spec(spec)[name]
    return _sizes(canonical([spec["model"], _data(spec)]), _Held(spec))[name]


def longest_context(spec: Spec) -> int:
    """Tokens of the longest context that a trial meets."""
    return _longest(canonical(_data(spec)), _Held(spec))


class _Held:
    """Hands a spec past the keys of a cache, which say the same."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held)


def _key(spec: Spec) -> str:
    train = spec["train"]
    names = ("truncate", "batch_size", "precision", "trainable", "lora")
    return canonical([spec["model"], _data(spec), [train.get(name) for name in names]])


def _data(spec: Spec) -> list[Any]:
    """What the lengths follow from."""
    points = [[point.task, point.settings["split"]] for point in eval_points(spec)]
    return [spec["task"], points, spec["model"]["backbone"].get("pretrained")]


@lru_cache(maxsize=KEPT)
def _of_spec(_: str, held: _Held) -> dict[str, float]:
    spec = held.spec
    task = make_task(spec["task"], spec["model"])
    lengths = _lengths(spec, task)
    samples = spec["train"]["batch_size"] * (
        lengths["context_length"] + lengths["queries"] * lengths["query_length"]
    )
    large = size(spec, "cost/parameters") * samples > SMALL
    with FakeTensorMode(allow_non_fake_inputs=True) if large else nullcontext():
        model = (_unfilled if large else _built)(spec, task)
        trainable = spec["train"].get("trainable") or "all"
        if trainable == "lora":
            optimizers.add_lora(model.backbone, spec["train"]["lora"])
        optimizers.set_trainable(model, trainable)
    return measured(spec, model.train(), task)


def _built(spec: Spec, task: Task) -> MemarchModel:
    return build_model(spec["model"], vocab_size=task.vocab_size, seed=0)


def _unfilled(spec: Spec, task: Task) -> MemarchModel:
    with torch.random.fork_rng(devices=[]):
        model = parse_model_spec(spec["model"], "model")
        return unfilled_model(model, vocab_size=task.vocab_size)


@lru_cache(maxsize=KEPT)
def _sizes(_: str, held: _Held) -> dict[str, float]:
    spec = held.spec
    with torch.device("meta"):
        model = _unfilled(spec, make_task(spec["task"], spec["model"]))
        state = model.init_memory(1)
    if _grows(spec):
        model = _built(spec, make_task(spec["task"], spec["model"]))
        with own_random_state(model.device), torch.no_grad():
            state = model.write(torch.zeros(1, longest_context(spec), dtype=torch.long))
    parameters = sum(weight.numel() for weight in model.parameters())
    figures = (parameters, state.nbytes, state.numel)
    return {name: float(figure) for name, figure in zip(SIZES, figures, strict=True)}


def _grows(spec: Spec) -> bool:
    """Whether the state after a token, or after two segments, is not as large as at the start.

    That follows from what kind of memory there is, not from the numbers in its settings.
    """
    return _growing(canonical(_kinds(spec["model"]["memory"])), _Held(spec))


def _kinds(settings: Any) -> Any:
    """Settings with the types of their numbers in place of these."""
    if isinstance(settings, Mapping):
        return {name: _kinds(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [_kinds(value) for value in settings[:1]]
    return type(settings).__name__ if isinstance(settings, int | float) else settings


@lru_cache(maxsize=KEPT)
def _growing(_: str, held: _Held) -> bool:
    spec = held.spec
    if not spec["model"]["memory"]:
        return False
    model = _built(spec, make_task(spec["task"], spec["model"]))
    context = torch.zeros(1, model.spec.segment_length + 1, dtype=torch.long)
    with own_random_state(model.device), torch.no_grad():
        states = [model.init_memory(1), model.write(context[:, :1]), model.write(context)]
    return len({state.nbytes for state in states}) > 1


def _lengths(spec: Spec, task: Task | None = None) -> dict[str, int]:
    """Of the first sample of training."""
    task = task or make_task(spec["task"], spec["model"])
    seed = ((spec.get("study") or {}).get("seeds") or {}).get("data") or 0
    batch = next(task.batches("train", 1, seed, 0))
    scored = (batch["labels"][:, 1:] != -100).sum(dim=1)
    return {
        "context_length": _context(batch),
        "query_length": int(batch["input_ids"].shape[1]),
        "queries": int(batch["input_ids"].shape[0]),
        "scored": math.ceil(float(scored.float().mean())),
    }


@lru_cache(maxsize=KEPT)
def _longest(_: str, held: _Held) -> int:
    spec = held.spec
    seed = ((spec.get("study") or {}).get("seeds") or {}).get("data") or 0
    longest = _lengths(spec)["context_length"]
    for point in eval_points(spec):
        task = make_task(point.task, point.model)
        batch = next(task.batches(point.settings["split"], 1, seed, 0))
        longest = max(longest, _context(batch))
    return longest


def _context(batch: Mapping[str, Any]) -> int:
    return int(batch["context_ids"].shape[1]) if "context_ids" in batch else 0
