"""`memarch train` and `memarch eval`: one model, in this process, without Ray."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memarch.components.errors import SpecError
from memarch.inputs import find_trial, open_study, resolve_one
from memarch.output import WorkFailedError, log

if TYPE_CHECKING:
    from memarch.studies.records.store import TrialFolder

Json = dict[str, Any]


def train_file(
    file: Path, storage: Path, overrides: Sequence[str], variant: str | None, *, again: bool
) -> Json:
    """Train the one model of a file; `{"metrics", "spec", "path"}`."""
    from memarch.studies.records.store import read_json, write_json

    study = open_study(file, overrides, storage)
    resolved = resolve_one(study, variant)
    chosen = variant or next(iter(study.variants), "")
    name = "-".join(part for part in (file.stem, chosen, resolved.hash[:8]) if part)
    folder = storage / "models" / name
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    result = read_json(folder / "result.json")
    if result is None:
        write_json(folder / "spec.json", resolved.spec)
        result = _train(resolved.spec, folder)
        write_json(folder / "result.json", result)
    else:
        log(f"{folder} has this model, trained already; --again trains it anew")
    return {"metrics": result["metrics"], "spec": resolved.spec, "path": result["path"]}


def train_trial(reference: str, storage: Path, overrides: Sequence[str]) -> Json:
    """Train a study's trial again by its record, in a folder beside the trial's own files.

    `{"metrics", "spec", "path", "reproduced"}`: whether the numbers are those of the record.
    """
    from memarch.studies.training.reproducing import reproduce
    from memarch.studies.training.training import NotFiniteError

    if overrides:
        raise SpecError("a trial has its spec; --set goes with a file")
    trial = _recorded(reference, storage)
    folder = trial.path / "local"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        done = reproduce(trial, folder, _told(), log)
    except NotFiniteError as error:
        raise WorkFailedError(str(error)) from error
    told = {name: done[name] for name in ("equal", "differs", "changed")}
    log(_verdict(told))
    return {
        "metrics": done["metrics"],
        "spec": trial.spec,
        "path": done["path"],
        "reproduced": told,
    }


def _recorded(reference: str, storage: Path) -> TrialFolder:
    """The trial, or, of a draw that was not run because it equals an earlier one, that one."""
    trial = find_trial(reference, storage)
    if trial is None:
        raise SpecError(f"{reference!r} is not STUDY/NUMBER, such as quickstart/7")
    original = trial.record.get("copy_of")
    if original is not None:
        study = reference.rpartition("/")[0]
        log(f"trial {reference} is equal to {study}/{original}, which ran in its stead")
        return _recorded(f"{study}/{original}", storage)
    if trial.spec is None:
        raise SpecError(f"trial {reference} has no spec.json")
    return trial


def _verdict(told: Json) -> str:
    if told["equal"] is None:
        return "the record has no numbers to compare with"
    if told["equal"]:
        return "the numbers are those of the record, bit for bit"
    names = ", ".join(row["metric"] for row in told["differs"][:4])
    return f"{len(told['differs'])} numbers differ from the record: {names}"


def evaluate(
    model: str, file: Path, storage: Path, overrides: Sequence[str], variant: str | None
) -> Json:
    """A saved model by the `eval:` section of a file; `{"metrics", "spec", "path"}`."""
    from memarch.studies.training.trial import evaluate_saved

    path, record = _saved_model(model, storage)
    study = open_study(file, overrides, storage)
    if variant is None and record.get("variant") in study.variants:
        variant = record["variant"]
    spec = resolve_one(study, variant, record.get("params", {})).spec
    return {"metrics": evaluate_saved(path, spec), "spec": spec, "path": str(path)}


def _saved_model(model: str, storage: Path) -> tuple[Path, Json]:
    """Where a model is saved, and the record of its trial if it has one."""
    for path in (Path(model), Path(model) / "model"):
        if (path / "config.json").is_file():
            return path, {}
    if Path(model).exists():
        raise SpecError(f"no saved model in {model!r}: there is no config.json")
    trial = find_trial(model, storage)
    if trial is None:
        raise SpecError(
            f"no saved model {model!r}: neither a folder nor STUDY/NUMBER{_nearest(model, storage)}"
        )
    if not (trial.path / "model" / "config.json").is_file():
        raise SpecError(f"trial {model} has no saved model; its state is {trial.record['state']}")
    return trial.path / "model", trial.record


def _nearest(model: str, storage: Path) -> str:
    """The trained models whose folders are called most like it, or nothing to say."""
    places = dict.fromkeys([Path(model).parent, storage / "models"])
    found = [config.parents[1] for place in places for config in place.glob("*/model/config.json")]
    names = {str(path): path.name for path in found}
    begin = [path for path, name in names.items() if name.startswith(Path(model).name)]
    like = difflib.get_close_matches(Path(model).name, names.values(), n=3, cutoff=0.5)
    near = begin or [path for path, name in names.items() if name in like]
    return f"; did you mean {' or '.join(sorted(near)[:3])}?" if near else ""


def _train(spec: Json, folder: Path) -> Json:
    from memarch.studies.training.training import NotFiniteError
    from memarch.studies.training.trial import train_spec

    try:
        return train_spec(spec, folder, _told())
    except NotFiniteError as error:
        raise WorkFailedError(str(error)) from error


def _told() -> Callable[[int, dict[str, float]], bool]:
    """Tells each report in a line on stderr, and never asks to stop."""

    def report(step: int, metrics: dict[str, float]) -> bool:
        shown = [
            f"{name.removeprefix('eval/')} {value:.4f}"
            for name, value in metrics.items()
            if name == "train/loss" or (name.startswith("eval/") and name.count("/") == 2)
        ]
        log(f"step {step}  {'  '.join(shown)}")
        return False

    return report
