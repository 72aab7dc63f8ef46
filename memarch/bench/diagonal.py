"""`bench diagonal`: the orders of a model's cells side by side, at the same leaves and `impl`.

Small shapes: inference (`model.write`: the state, no logits) and a training step (forward and
backward of the language model's loss) at several batch sizes, sequential against every other order
that the memory allows, and against `auto` with what it chose. A training step keeps activations of
all segments, so large batches train on fewer segments. Llama shapes: see `long_input`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from time import perf_counter

import torch

from memarch.arch.model import MemarchModel
from memarch.bench import long_input
from memarch.bench.result import Document, Row, document, duration, row
from memarch.bench.shapes import Shape, build, in_order, token_ids
from memarch.bench.timing import Work, side_by_side
from memarch.components.errors import SpecError

BASELINE = "sequential"


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    shapes: Sequence[Shape]
    memories: Sequence[str]
    modes: Sequence[str]
    batches: Sequence[int]
    training_tokens: int
    """Of all rows together, at most, in a training step."""
    impl: str
    device: torch.device
    seconds: float
    """Time for one case; each candidate runs three times at least."""


def run(settings: Settings, note: Callable[[str], None]) -> Iterator[Document]:
    """What is found so far, after every case; `note` is told of each as it begins."""
    rows: list[Row] = []
    notes: list[str] = []
    start = perf_counter()
    long = [shape for shape in settings.shapes if shape.long_input]
    small = [shape for shape in settings.shapes if not shape.long_input]
    cases = list(product(small, settings.memories, settings.modes, settings.batches))
    total = len(cases) + len(long)
    note(f"{total} cases, at least {duration(total * settings.seconds)} in all")
    models: dict[tuple[Shape, str], MemarchModel] = {}
    for number, (shape, memory, mode, batch) in enumerate(cases, start=1):
        if (shape, memory) not in models:
            models[shape, memory] = build(shape, memory, settings.impl, settings.device)
        model = models[shape, memory]
        if mode == "training":
            shape = shape.cut_to(settings.training_tokens // batch)
        case = f"{shape.label}, {memory}, {mode}, batch {batch}"
        note(f"[{number}/{total}, {duration(perf_counter() - start)}] {case}")
        rows += _case(case, model, shape, mode, batch, settings)
        yield document("diagonal", settings.device, rows, notes)
    for number, shape in enumerate(long, start=len(cases) + 1):
        note(f"[{number}/{total}, {duration(perf_counter() - start)}] {shape.label}")
        found = long_input.measure(shape, settings.impl, settings.device, settings.seconds, note)
        rows += found.rows
        notes += found.notes
        yield document("diagonal", settings.device, rows, notes)


def _case(
    case: str, model: MemarchModel, shape: Shape, mode: str, batch: int, settings: Settings
) -> list[Row]:
    ids = token_ids(shape, batch, settings.device, tokens=shape.tokens)
    models = {BASELINE: model} | _others(model)
    work = training if mode == "training" else inference
    timed = side_by_side(
        {name: work(each, ids) for name, each in models.items()},
        settings.device,
        seconds=settings.seconds,
    )
    best = min(each.median for name, each in timed.items() if name != "auto")
    more = {"mode": mode, "batch": batch, "segments": shape.segments, "impl": settings.impl}
    rows = []
    for name in list(models)[1:]:
        found = row(case, BASELINE, name, timed, **more)
        if name == "auto":
            with torch.set_grad_enabled(mode == "training"):
                plan = models[name].resolved_schedule(batch, ids.shape[1])
            found["chose"], found["reason"] = plan.schedule, plan.reason
            found["choice_of_best"] = best / timed[plan.schedule].median
            found["share_of_best"] = best / timed[name].median
        rows.append(found)
    return rows


def _others(model: MemarchModel) -> dict[str, MemarchModel]:
    """The model in each other order that is right for it, `auto` last."""
    found = {}
    for schedule in ("diagonal", "layerwise", "auto"):
        try:
            found[schedule] = in_order(model, schedule)
        except SpecError:
            continue
    return found


def inference(model: MemarchModel, ids: torch.Tensor) -> Work:
    """Reading the whole input for the state alone."""

    def work() -> None:
        with torch.no_grad():
            model.eval().write(ids)

    return work


def training(model: MemarchModel, ids: torch.Tensor) -> Work:
    """Forward and backward of the loss of every next token, gradients through all segments."""

    def work() -> None:
        model.train().zero_grad(set_to_none=True)
        model(ids, labels=ids).loss.backward()

    return work
