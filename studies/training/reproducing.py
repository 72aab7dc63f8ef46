"""A trial again, from its record: the same spec, seeds, threads, order of cells, implementation.

What cannot be made the same (versions, data, commit, device) is compared and told, and the numbers
are compared with the record's. On a CPU they are equal bit for bit where all of it agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from memarch.components.plugins import load_plugins
from memarch.search_spaces.environment import resolve_env
from memarch.studies.records.store import TrialFolder
from memarch.studies.training import fingerprint, machine
from memarch.studies.training.session import Session, default_device
from memarch.studies.training.training import Report
from memarch.studies.training.trial import train_spec

Json = dict[str, Any]

TIMINGS = (
    "cost/tokens_per_second",
    "cost/wall_seconds",
    "cost/peak_memory_bytes",
    "train/seconds",
)
"""Metrics that no two runs share."""


def reproduce(
    trial: TrialFolder, folder: Path, report: Report, tell: Callable[[str], None]
) -> Json:
    """Train the trial anew in a folder: `{"metrics", "path", "equal", "differs", "changed"}`.

    `equal` is None where the record has no numbers to compare with.
    """
    result = trial.result or {}
    spec = resolve_env(trial.spec or {})
    load_plugins(spec.get("plugins") or [])
    now = fingerprint.fingerprint(spec) | {"versions": machine.versions()}
    changed = list(_changed(result, now))
    for line in changed:
        tell(f"not as in the record: {line}")
    if result.get("threads"):
        torch.set_num_threads(result["threads"])
    spec = spec | {"model": _as_recorded(spec, result, folder / "probe", tell)}
    state = result.get("state")
    stop = _last_step(trial) if state == "pruned" else None
    done = train_spec(spec, folder, _stopping(report, stop))
    recorded = {} if state in (None, "failed") else result["metrics"]
    differs = list(_differing(recorded, done["metrics"]))
    return {
        "metrics": done["metrics"],
        "path": done["path"],
        "equal": not differs if recorded else None,
        "differs": differs,
        "changed": changed,
    }


def _as_recorded(
    spec: Mapping[str, Any], result: Mapping[str, Any], probe: Path, tell: Callable[[str], None]
) -> Json:
    """The model's settings, with the record's choices where this machine would choose others."""
    model = dict(spec["model"])
    if model.get("impl") == "auto" and _on_cpu(result) and default_device().type != "cpu":
        model["impl"] = "reference"
        tell("impl: reference, as on the CPU of the record")
    recorded = (result.get("schedule") or {}).get("schedule")
    if model.get("schedule") == "auto" and recorded:
        here = {**spec, "model": model, "resources": {}}
        chosen = Session(here, probe, lambda step, metrics: False).schedule().schedule
        if chosen != recorded:
            model["schedule"] = recorded
            tell(f"schedule: {recorded}, as in the record; this machine would take {chosen}")
    return model


def _on_cpu(result: Mapping[str, Any]) -> bool:
    return bool(result.get("device") == "cpu")


def _changed(result: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs from the record, a line each."""
    for name in ("commit", "data", "device", "cpu"):
        if name in result and result[name] != now[name]:
            yield f"{name} was {_short(result[name])}, and is {_short(now[name])}"
    before, after = result.get("versions") or {}, now["versions"]
    for name in dict.fromkeys([*before, *after]):
        if before and before.get(name) != after.get(name):
            yield f"{name} was {before.get(name, 'absent')}, and is {after.get(name, 'absent')}"


def _short(value: Any) -> str:
    return "unknown" if value is None else str(value)[:48]


def _last_step(trial: TrialFolder) -> int | None:
    """Where a trial was stopped early."""
    steps = [report["step"] for report in trial.progress()]
    return max(steps) if steps else None


def _stopping(report: Report, stop: int | None) -> Report:
    def told(step: int, metrics: dict[str, float]) -> bool:
        return report(step, metrics) or (stop is not None and step >= stop)

    return told


def _differing(recorded: Mapping[str, Any], metrics: Mapping[str, Any]) -> Iterator[Json]:
    for name, value in recorded.items():
        if name not in TIMINGS and metrics.get(name) != value:
            yield {"metric": name, "record": value, "now": metrics.get(name)}
