"""Training of one resolved spec, and evaluation of what came of it.

    train(spec, folder, report)     trains, or goes on from the checkpoint in the folder
    evaluate_model(spec, path)      a saved model by the `eval:` map of any spec

A run that was cut off goes on as if it had not been: on a CPU with the same number of threads its
final weights are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memarch.arch.model import MemarchModel
from memarch.components.errors import SpecError
from memarch.studies.search.matching import match_metrics
from memarch.studies.tasks.base import Split
from memarch.studies.training import optimizers
from memarch.studies.training.machine import (
    peak_memory_bytes,
    reset_peak_memory,
    without_progress_bars,
)
from memarch.studies.training.points import Evaluator, Models, eval_points
from memarch.studies.training.session import (
    NotFiniteError,
    Report,
    Session,
    default_device,
    seed_of,
)
from memarch.studies.training.trainer import SessionTrainer

__all__ = ["NotFiniteError", "Report", "evaluate_model", "train"]

STILL_RISING = 0.01
"""A gain above this over the last quarter of the evaluations means that the run was not done."""


def train(
    spec: Mapping[str, Any], folder: Path, report: Report, *, evaluate: bool = True
) -> dict[str, Any]:
    """Train a resolved spec in a folder; the model ends up in `folder/model`.

    Without `evaluate`, the evaluation at the end is left to a job of its own.

    Returns `{"metrics", "path", "pruned", "solved", "curve", "primary", "maximize", "converged",
    "stages", "schedule", "resumed_at"}`. A pruned run has the metrics of its last evaluation and
    saves no model.
    """
    reset_peak_memory()
    session = Session(spec, folder, report)
    progress = session.progress
    if not progress.over:
        SessionTrainer(session).train()
    path = folder / "model"
    metrics = dict(progress.metrics)
    if not progress.pruned:
        if session.team.leads:
            save_model(session, path)
        if evaluate:
            metrics = session.final_metrics()
            if not progress.solved:
                session.note(metrics)
    metrics |= session.training_metrics() | session.costs() | spending(session)
    metrics |= match_metrics(spec, metrics)
    if not progress.pruned and evaluate:
        session.team.ask(lambda: report(progress.spent.steps, metrics))
    curve = [value for _, value in progress.curve]
    return {
        "metrics": metrics,
        "path": str(path),
        "pruned": progress.pruned,
        "solved": progress.solved,
        "curve": curve,
        "primary": session.primary,
        "maximize": session.maximize,
        "converged": progress.solved or has_converged(curve, session.maximize),
        "stages": [asdict(record) for record in progress.stages],
        "schedule": asdict(session.schedule()),
        "resumed_at": session.resumed_at,
    }


def evaluate_model(
    spec: Mapping[str, Any], path: Path, *, split: Split | None = None, kind: str = "eval"
) -> dict[str, float]:
    """A saved model at every evaluation point of a spec: `eval/<name>/<metric>`.

    The model keeps its own settings. Where a point of a sweep changes settings of the spec's model,
    the same changes are made to it.
    """
    if not (path / "config.json").is_file():
        raise SpecError(f"no saved model in {str(path)!r}")
    with without_progress_bars():
        model = MemarchModel.from_pretrained(path).to(default_device())
    own = model.spec.canonical()
    evaluator = Evaluator(Models(model, own), seed_of(spec, "data"), default_device())
    metrics = {}
    for point in eval_points(spec):
        here = point.with_model(with_changes(own, spec["model"], point.model))
        for name, value in evaluator.at(here, split or point.settings["split"]).items():
            metrics[f"{kind}/{point.prefix}/{name}"] = value
    return metrics


def with_changes(own: Any, before: Any, after: Any) -> Any:
    """`own` with what differs between `before` and `after` as it is in `after`."""
    if before == after:
        return own
    if isinstance(own, Mapping) and isinstance(before, Mapping) and isinstance(after, Mapping):
        changed = {
            key: with_changes(own.get(key), before.get(key), value) for key, value in after.items()
        }
        return dict(own) | changed
    return after


def spending(session: Session) -> dict[str, float]:
    """Speed, time and memory of the whole run, all attempts together."""
    spent = session.progress.spent
    return {
        "cost/tokens_per_second": spent.tokens / max(spent.seconds, 1e-9),
        "cost/wall_seconds": session.wall_seconds,
        "cost/peak_memory_bytes": float(peak_memory_bytes()),
    }


def save_model(session: Session, path: Path) -> None:
    """Save the trained model; adapters are merged into the weights."""
    if session.settings.trainable == "lora":
        optimizers.merge_lora(session.model.backbone)
    with without_progress_bars():
        session.model.save_pretrained(path)


def has_converged(curve: list[float], maximize: bool) -> bool:
    """No longer getting better: the last quarter of the curve gained little on all before it.

    Scores count absolutely, losses relatively. Fewer than four evaluations tell nothing.
    """
    if len(curve) < 4:
        return False
    cut = len(curve) - len(curve) // 4
    before, after = curve[:cut], curve[cut:]
    if maximize:
        return max(after) - max(before) <= STILL_RISING
    return min(before) - min(after) <= STILL_RISING * abs(min(before))
