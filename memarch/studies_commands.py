"""`memarch study extend`, `study diff` and `study show NAME/N`: what they say as documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memarch.components.errors import SpecError
from memarch.inputs import TRIAL, find_trial
from memarch.studies.records.store import StudyFolder, find_study, show_study

Json = dict[str, Any]


def diff(first: str, second: str, storage: Path) -> Json:
    """Two studies, or two trials `A/7` and `B/3`: settings that differ, and results."""
    trials = [TRIAL.fullmatch(name) is not None for name in (first, second)]
    if trials[0] != trials[1]:
        raise SpecError(f"{first!r} and {second!r} are a study and a trial: give two of one kind")
    from memarch.studies.records import differences

    if trials[0]:
        sides = [_trial(name, storage) for name in (first, second)]
        found = differences.spec_differences(sides[0]["spec"], sides[1]["spec"])
        results = differences.result_rows(sides[0]["metrics"], sides[1]["metrics"])
    else:
        folders = [find_study(storage, name) for name in (first, second)]
        found = differences.study_differences(*map(_file, folders))
        results = differences.best_rows(*(show_study(f.name, storage) for f in folders))
    return {
        "first": first,
        "second": second,
        "settings": [asdict(one) for one in found],
        "results": results,
    }


def show_trial(reference: str, storage: Path) -> Json:
    """One trial: settings with their origins, metrics, attempts, where its files are."""
    from memarch.studies.records.provenance import settings_with_origins

    trial = _trial(reference, storage)
    folder = Path(trial["path"])
    result = trial.pop("result") or {}
    kept = ("versions", "commit", "data", "threads", "device", "schedule", "impl", "stages")
    files = ("model", "result.json", "progress.jsonl", "error.txt", "test.json")
    return trial | {
        "settings": settings_with_origins(folder, trial["spec"]),
        "made_with": {name: result[name] for name in kept if name in result},
        "files": [str(folder / name) for name in files if (folder / name).exists()],
    }


def extend(
    name: str,
    storage: Path,
    *,
    trials: str | None,
    hours: str | None,
    seeds: Sequence[int],
    top: int | None,
) -> list[str]:
    """The overrides with which the study is resumed."""
    from memarch.studies.search import extending

    folder = find_study(storage, name)
    return extending.extend(folder, trials=trials, hours=hours, seeds=seeds, top=top)


def _file(folder: StudyFolder) -> Any:
    from memarch.studies.records.snapshot import read_snapshot

    return read_snapshot(folder.path, folder.info["overrides"])


def _trial(reference: str, storage: Path) -> Json:
    trial = find_trial(reference, storage)
    if trial is None or trial.spec is None:
        raise SpecError(f"trial {reference} has no spec.json")
    row = {key: trial.record[key] for key in _SHOWN}
    return row | {
        "name": reference,
        "spec": trial.spec,
        "path": str(trial.path),
        "result": trial.result,
    }


_SHOWN = (
    "number",
    "variant",
    "state",
    "params",
    "metrics",
    "reason",
    "attempts",
    "seed",
    "copy_of",
)
