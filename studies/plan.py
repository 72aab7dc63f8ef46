"""What a study will run, before it runs: sizes of variants, origins of values, time and memory.

Every variant is built at its smallest and its largest values. Of all these, the trial that computes
least and the one that computes most run a few steps, from which the study's time is estimated.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from memarch.arch.build import build_model
from memarch.search_spaces.ranges import Range, described
from memarch.search_spaces.sizing import UnreachableError
from memarch.studies.records.provenance import value_at
from memarch.studies.search.costs import measured
from memarch.studies.training.budget import Budget
from memarch.studies.training.machine import peak_memory_bytes, reset_peak_memory
from memarch.studies.training.points import canonical, eval_points, make_task
from memarch.studies.training.session import EVALUATION_ROWS, EVALUATIONS, Session, seed_of
from memarch.studies.training.trainer import SessionTrainer

if TYPE_CHECKING:
    from memarch.search_spaces.study_file import Resolved, StudyFile

Json = dict[str, Any]
Note = Callable[[str], None]

TIMED_STEPS = 6
WARM_UP = 2
"""Steps that do not count: memory is allocated, kernels are chosen."""


@dataclass
class Extreme:
    """A variant with all its ranges at one end."""

    variant: str
    resolved: Resolved
    figures: Json

    @property
    def work(self) -> float:
        """FLOPs of a trial's training, or of a step where the budget is one of time."""
        figures, budget = self.figures, _budget(self.resolved.spec)
        tokens = figures["tokens_per_step"]
        amount = {"steps": budget.amount * tokens, "tokens": budget.amount}.get(budget.unit, tokens)
        return float(figures["flops_train_per_token"] * amount)


def plan_study(study: StudyFile, *, run: bool = True, note: Note = lambda text: None) -> Json:
    """The plan as plain data. `run`: time the smallest and the largest trial."""
    warnings = list(study.validate())
    built: dict[str, Json] = {}
    rows, extremes, origins = [], [], {}
    for variant in study.variants:
        note(f"building {variant or study.path.name}")
        space = study.space(variant)
        pair = []
        for end in (smallest, largest):
            draws = {name: end(known) for name, known in space.items()}
            try:
                resolved = study.resolve(variant, draws)
            except UnreachableError:  # of its level of size
                resolved = study.resolve(variant, study.first_draws(variant))
            key = canonical([resolved.spec[part] for part in ("task", "model")])
            if key not in built:
                built[key] = figures(resolved.spec)
            pair.append(Extreme(variant, resolved, built[key]))
        pair.sort(key=lambda extreme: extreme.figures["parameters"])
        extremes += pair
        rows.append(
            {
                "name": variant,
                **_shown(pair[1].figures),
                "smallest": _shown(pair[0].figures),
                "space": {name: described(known) for name, known in space.items()},
            }
        )
        origins[variant] = _origins(pair[1].resolved)
    settings = study.study
    measured = _measured(extremes, note) if run else []
    trials = planned_trials(study)
    return {
        "name": settings["name"],
        "design": settings["design"],
        "objective": settings["objective"],
        "ablation": study.ablation.about() if study.ablation else None,
        "trials": trials,
        "variants": rows,
        "measured": measured,
        "estimate": _estimate(measured, trials, extremes[0].resolved.spec),
        "origins": origins,
        "sizes": study.sizing.rows,
        "warnings": warnings,
    }


def figures(spec: Mapping[str, Any]) -> Json:
    """Sizes of one concrete spec, from the model itself."""
    task = make_task(spec["task"], spec["model"])
    seed = seed_of(spec, "data")
    model = build_model(spec["model"], vocab_size=task.vocab_size, seed=seed_of(spec, "model"))
    batch = next(task.batches("train", 1, seed))
    context = batch["context_ids"].shape[1] if "context_ids" in batch else 0
    query = batch["input_ids"].shape[1]
    size, accumulate = spec["train"]["batch_size"], spec["train"].get("accumulate", 1)
    choice = model.resolved_schedule(size, context or query, spec["train"].get("truncate"))
    tokens = (context + query * batch["input_ids"].shape[0]) * size * accumulate
    costs = measured(spec, model, task)
    found: Json = {
        name.removeprefix("cost/"): value if math.isfinite(value) else None
        for name, value in costs.items()
    }
    for name in ("parameters", "state_bytes", "state_floats"):
        found[name] = int(found[name])
    shape = {"batch_size": size, "length": context or query}
    return found | asdict(choice) | shape | {"tokens_per_step": tokens}


def smallest(known: Range) -> Any:
    """The end of a range that makes the smaller model."""
    return _ordered(known)[0]


def largest(known: Range) -> Any:
    """The end of a range that makes the larger model."""
    return _ordered(known)[-1]


def _ordered(known: Range) -> list[Any]:
    values = list(known.extremes())
    if all(isinstance(value, list) for value in values):
        return sorted(values, key=len)
    if all(isinstance(value, int | float) for value in values):
        return sorted(values)
    return values


def planned_trials(study: StudyFile) -> int | None:
    """How many trials there will be; None where the budget is one of time or FLOPs."""
    settings = study.study
    model_seeds = settings["seeds"]["model"]
    seeds = len(model_seeds) if isinstance(model_seeds, list) else 1
    limit = settings["budget"].get("trials")
    count: int | None = None
    if settings["design"] == "all":
        count = seeds * sum(max(1, len(study.sizing.levels(name))) for name in study.variants)
    elif settings["design"] == "grid":
        count = seeds * sum(_grid_size(study, variant) for variant in study.variants)
    elif not any(study.space(variant) for variant in study.variants):
        count = len(study.variants) * seeds
    if count is None or limit is None:
        return count if limit is None else int(limit)
    return min(count, int(limit))


def _grid_size(study: StudyFile, variant: str) -> int:
    size = 1
    for known in study.space(variant).values():
        size *= len(known.grid() or [None])
    return size


def _shown(found: Json) -> Json:
    costs = ("parameters", "state_bytes", "state_floats", "flops_per_token")
    names = (*costs, "schedule", "grouped_steps", "reason", "batch_size", "length")
    return {name: found[name] for name in names}


def _origins(resolved: Resolved) -> Json:
    return {
        path: {"value": value_at(resolved.record, path), "origin": origin}
        for path, origin in resolved.origins.items()
    }


# Time and memory


def _measured(extremes: list[Extreme], note: Note) -> list[Json]:
    chosen = {"smallest": min(extremes, key=lambda e: e.work)}
    most = max(extremes, key=lambda e: e.work)
    if most.resolved.hash != chosen["smallest"].resolved.hash:
        chosen["largest"] = most
    rows = []
    for which, extreme in chosen.items():
        note(f"running {TIMED_STEPS} steps of the {which} trial ({extreme.variant or 'model'})")
        rows.append(
            {"which": which, "variant": extreme.variant, "params": dict(extreme.resolved.draws)}
            | _timed(extreme)
        )
    return rows


class _Timed(Session):
    """A session that notes when each step ends."""

    ends: list[float]

    def after_update(self) -> None:
        super().after_update()
        self.ends.append(time.perf_counter())


def _timed(extreme: Extreme) -> Json:
    """Seconds a step, seconds a trial with its evaluations, and peak memory."""
    spec = dict(extreme.resolved.spec)
    spec["train"] = spec["train"] | {
        "budget": {"steps": TIMED_STEPS},
        "eval_every": 10 * TIMED_STEPS,
        "stages": [],
        "init_from": None,
        "warmup": 0.0,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(spec["resources"]["cpus"])))
    reset_peak_memory()
    try:
        with tempfile.TemporaryDirectory() as folder:
            session = _Timed(spec, Path(folder), lambda step, metrics: False)
            session.ends = []
            SessionTrainer(session).train()
            evaluation, last = _evaluation_seconds(session)
            memory = peak_memory_bytes()
    finally:
        torch.set_num_threads(threads)
    step = (session.ends[-1] - session.ends[WARM_UP - 1]) / (len(session.ends) - WARM_UP)
    budget, tokens = _budget(extreme.resolved.spec), extreme.figures["tokens_per_step"]
    steps = _steps(budget, tokens, extreme.figures["flops_train_per_token"], step)
    every = extreme.resolved.spec["train"].get("eval_every")
    looks = steps / every if every else EVALUATIONS
    return {
        "steps": round(steps),
        "seconds_per_step": step,
        "seconds": steps * step + looks * evaluation + last,
        "memory_bytes": memory,
    }


def _steps(budget: Budget, tokens: int, flops_per_token: float, seconds: float) -> float:
    """Steps in a budget."""
    a_step = {
        "steps": 1.0,
        "tokens": float(tokens),
        "flops": tokens * flops_per_token,
        "hours": seconds / 3600,
    }
    return budget.amount / a_step[budget.unit]


def _evaluation_seconds(session: Session) -> tuple[float, float]:
    """Seconds of one look during training, and of the evaluation of everything at the end."""
    points = list(eval_points(session.spec))
    if not points:
        return 0.0, 0.0
    point = points[0]
    split = point.settings["split"]
    session.evaluator.at(point, split, 8)  # makes the data
    started = time.perf_counter()
    session.evaluator.at(point, split, EVALUATION_ROWS)
    seconds = time.perf_counter() - started
    shares = [max(1.0, (p.settings["size"] or EVALUATION_ROWS) / EVALUATION_ROWS) for p in points]
    return seconds, seconds * sum(shares)


def _estimate(measured: list[Json], trials: int | None, spec: Mapping[str, Any]) -> Json:
    """Bounds of the whole study's time: all trials like the smallest, and all like the largest."""
    resources = spec["resources"]
    workers = max(1, int((os.cpu_count() or 1) / resources["cpus"]))
    if resources.get("gpus"):
        workers = min(workers, max(1, int(torch.cuda.device_count() / resources["gpus"])))
    seconds = None
    if measured and trials is not None:
        rounds = -(-trials // workers)
        seconds = [rounds * row["seconds"] for row in (measured[0], measured[-1])]
    return {
        "workers": workers,
        "seconds": seconds,
        "memory_bytes": max((row["memory_bytes"] for row in measured), default=None),
    }


def _budget(spec: Mapping[str, Any]) -> Budget:
    return Budget.parse(spec["train"]["budget"])
