"""One trial in one folder: plugins, training, evaluation, and a result that is there or not.

    spec.json        what was trained (the caller's)
    attempts.jsonl   one line each time training was started here
    progress.jsonl   one line an evaluation: attempt, step, time, metrics (in studies the driver's)
    checkpoints/     until the trial is complete
    model/           the trained model
    trained.json     what training gave, where `resources.eval` leaves the evaluation to another job
    error.txt        traceback of a failure
    result.json      the last act

Nothing that goes wrong while a trial trains is raised: it is the trial's result, with its reason.
Wrong settings too: one bad draw must not end a study. `train_spec` raises them instead.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from memarch.components.plugins import load_plugins
from memarch.studies.driver.failures import DISK_FULL, result_of
from memarch.studies.records.store import read_json, write_json
from memarch.studies.training import machine, training
from memarch.studies.training.fingerprint import fingerprint
from memarch.studies.training.team import Team
from memarch.studies.training.training import Report

Json = dict[str, Any]


def run_trial(spec: Mapping[str, Any], folder: Path, report: Report) -> Json:
    """Train and evaluate; the content of `result.json`, which is written last.

    `{"state": "complete" | "pruned" | "failed", "failure", "reason", "metrics", "converged",
    "attempts", "stages", "versions", "threads", "schedule", "plugins"}` and what
    `studies.fingerprint` adds. A folder with a result is done.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    team = Team.here()
    if not team.leads:
        return _train(spec, folder, report)
    done = read_json(folder / "result.json")
    if done is not None:
        return dict(done)
    _begin(folder)
    try:
        result = _train(spec, folder, report)
    except Exception as error:
        if team.lost_another(error):
            raise
        result = _common(folder) | result_of(error)
        result["metrics"] = _last_metrics(folder)
        _free_memory()
        if result["failure"] == DISK_FULL:  # the trial goes on when there is space
            return result
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
    last = "trained.json" if result["state"] == "trained" else "result.json"
    write_json(folder / last, result)
    if result["state"] != "failed":
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def train_spec(spec: Mapping[str, Any], folder: Path, report: Report) -> Json:
    """The same without the net: errors are raised, and no `result.json` is written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    here = {**spec, "resources": {}}  # all of it in this process
    result = _train(here, folder, _recorded(folder, _begin(folder), report))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def _train(spec: Mapping[str, Any], folder: Path, report: Report) -> Json:
    """Training, with the final evaluation unless `resources.eval` makes it a job of its own."""
    plugins = load_plugins(spec.get("plugins") or [])
    trained = read_json(folder / "trained.json")
    if trained is not None:
        return _evaluate(spec, folder, report, trained)
    later = bool((spec.get("resources") or {}).get("eval"))
    outcome = training.train(spec, folder, report, evaluate=not later)
    state = "pruned" if outcome["pruned"] else "trained" if later else "complete"
    reason = "stopped by the pruner" if outcome["pruned"] else None
    facts = fingerprint(spec) | {"state": state, "reason": reason, "plugins": plugins}
    return _common(folder) | outcome | facts


def _evaluate(spec: Mapping[str, Any], folder: Path, report: Report, trained: Json) -> Json:
    """The final evaluation of a model that an earlier job trained."""
    began = time.perf_counter()
    metrics = trained["metrics"] | training.evaluate_model(spec, folder / "model")
    metrics["cost/wall_seconds"] += time.perf_counter() - began
    report(int(metrics["train/steps"]), metrics)
    curve = trained["curve"] + [metrics[name] for name in [trained["primary"]] if name in metrics]
    converged = trained["solved"] or training.has_converged(curve, trained["maximize"])
    changed = {"state": "complete", "metrics": metrics, "curve": curve, "converged": converged}
    return trained | changed | {"attempts": _common(folder)["attempts"]}


def test_trial(spec: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Scores of a trained trial on the test split, sweeps too: `test/<evaluation>/<metric>`."""
    load_plugins(spec.get("plugins") or [])
    return training.evaluate_model(spec, Path(folder) / "model", split="test", kind="test")


test_trial.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest's


def evaluate_saved(model_dir: Path, spec: Mapping[str, Any]) -> dict[str, float]:
    """A saved model by the `eval:` map of any spec: `eval/<evaluation>/<metric>` and its costs."""
    load_plugins(spec.get("plugins") or [])
    return training.evaluate_model(spec, Path(model_dir))


def _begin(folder: Path) -> int:
    """Note that the trial was started; how often it was by now."""
    path = folder / "attempts.jsonl"
    attempt = len(path.read_text().splitlines()) + 1 if path.exists() else 1
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"attempt": attempt, "time": time.time(), "pid": os.getpid()}) + "\n")
    return attempt


def _recorded(folder: Path, attempt: int, report: Report) -> Report:
    """`report`, and a line in `progress.jsonl` for each call."""

    def record(step: int, metrics: dict[str, float]) -> bool:
        line = {"attempt": attempt, "step": step, "time": time.time(), "metrics": metrics}
        with (folder / "progress.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return report(step, metrics)

    return record


def _common(folder: Path) -> Json:
    """What every result has, whatever became of the trial."""
    path = folder / "attempts.jsonl"
    return {
        "state": "failed",
        "failure": None,
        "reason": None,
        "metrics": {},
        "converged": False,
        "attempts": len(path.read_text().splitlines()) if path.exists() else 1,
        "stages": [],
        "versions": machine.versions(),
        "threads": torch.get_num_threads(),
        "schedule": None,
        "plugins": {},
    }


def _last_metrics(folder: Path) -> dict[str, float]:
    try:
        lines = (folder / "progress.jsonl").read_text(encoding="utf-8").splitlines()
        return dict(json.loads(lines[-1])["metrics"])
    except (OSError, IndexError, json.JSONDecodeError):
        return {}


def _free_memory() -> None:
    """Let go of what a failed trial held: the worker lives on."""
    error = sys.exc_info()[1]
    if error is not None:
        traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
