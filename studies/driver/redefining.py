"""A study that goes on under a changed file: what may change, and what its trials stand for.

Further trials, seeds, wider ranges, other limits and policies leave the finished trials what they
are. Whatever says what a trial is, what makes one good, or which categories Optuna knows, may not
change: such a file is another study.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memarch.components.errors import SpecError
from memarch.search_spaces.ranges import as_written
from memarch.studies.records.differences import (
    Difference,
    differences,
    study_differences,
    variant_settings,
)
from memarch.studies.records.snapshot import read_snapshot, write_snapshot
from memarch.studies.records.store import Json, StudyFolder, find_spec, read_json, write_json

if TYPE_CHECKING:
    from memarch.search_spaces.study_file import StudyFile

FREE = (
    "study.budget",
    "study.finalists",
    "study.trial_time_limit",
    "study.eval_time_limit",
    "study.stall_limit",
    "study.on_failure",
    "study.sampler",
    "study.pruner",
    "study.racing",
    "study.repeat",
    "study.first",
    "study.seeds.search",
    "match.tolerance",
    "scale.tolerance",
    "ablation.equivalence",
    "resources",
    "train.checkpoint_every",
)
"""What may change whatever it is: it is about trials to come, or how they run."""

FIXED = {
    "study.objective": "the trials so far were told under the old one",
    "study.constraints": "the trials so far were judged by the old ones",
    "study.design": "it decides what a trial's number means",
    "study.warm_start": "the trials' numbers begin after those of earlier studies",
    "study.seeds.data": "the trials so far saw other data",
    "study.seeds.model": "only more seeds may follow those that there are",
    "variants": "they are one categorical choice, which stays as it began",
    "ablation": "its settings are the variants, which stay as they began",
    "plugins": "the trials so far ran the old code",
}
"""Why other settings may not."""


def write_definition(folder: StudyFolder, study_file: StudyFile) -> None:
    """Keep the study as it is resolved, with its hash."""
    ranges = {
        name: {n: as_written(r) for n, r in study_file.space(name).items()}
        for name in study_file.variants
    }
    variants = {name: variant_settings(study_file, name) for name in study_file.variants}
    definition: Json = {"study": study_file.study, "ranges": ranges, "variants": variants}
    write_json(folder.path / "resolved.json", definition | {"hash": hash_of(definition)})


def hash_of(definition: Json) -> str:
    """The hash of a resolved study."""
    text = json.dumps(definition, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def redefine(
    folder: StudyFolder, info: Json, file: Path | None, overrides: Sequence[str]
) -> tuple[StudyFile, list[str]]:
    """The study that goes on, and what has changed; a SpecError where that may not be.

    Without a file it is what it was, with further overrides. Nothing is written.
    """
    from memarch.studies.settings.spec import load_study

    old = read_snapshot(folder.path, info["overrides"])
    if file is None:
        if not overrides:
            return old, _resolved_otherwise(folder, old)
        new = read_snapshot(folder.path, [*info["overrides"], *overrides])
    else:
        root = folder.storage
        new = load_study(file, overrides, find_trial=lambda name, n: find_spec(root, name, n))
    changes = [*study_differences(old, new), *_plugins(old, new)]
    refused = [f"{one} ({why})" for one in changes if (why := refusal(one, old.study))]
    if refused and folder.records():
        raise SpecError(
            f"study {folder.name!r} cannot go on with this: {'; '.join(refused)}. Give it a name "
            "of its own: `memarch study run FILE --as NAME2`"
        )
    return new, [f"changed: {one}" for one in changes]


def keep(folder: StudyFolder, info: Json, file: Path | None, study_file: StudyFile) -> None:
    """Let the study be the changed one from now on; the files that were are kept beside."""
    if file is not None:
        history = len(list(folder.path.glob("study.*.yaml"))) + 1
        shutil.copyfile(folder.path / "study.yaml", folder.path / f"study.{history}.yaml")
        shutil.copyfile(file, folder.path / "study.yaml")
        write_snapshot(study_file, folder.path)
        info["file"] = str(file.absolute())
        info["ablation"] = study_file.ablation.about() if study_file.ablation else None
    write_definition(folder, study_file)


def refusal(change: Difference, study: Json) -> str:
    """Why a change cannot be; empty where it can."""
    path = change.path
    if path == "study.seeds.model":
        old, new = (one if isinstance(one, list) else [one] for one in (change.old, change.new))
        return "" if new[: len(old)] == old else FIXED[path]
    if _below(path, FREE):
        return ""
    searched = "search." in f"{path}." and not path.startswith("study.")
    if searched:
        return _refused_range(change, study)
    if path.startswith("variants.") and path.count(".") == 1:
        return FIXED["variants"]
    for name, why in FIXED.items():
        if name != "variants" and _below(path, (name,)):
            return why
    return "the trials so far ran with the old value"


def _refused_range(change: Difference, study: Json) -> str:
    kind = change.path.rpartition(".")[2]
    if study["design"] != "search" or study["sampler"]["type"] == "grid":
        return "its points are counted from the ranges"
    if kind not in ("int", "float") or change.absent:
        return "choices and kinds of ranges stay as they began"
    wider = change.new[0] <= change.old[0] and change.new[1] >= change.old[1]
    return "" if wider else "a range may only become wider"


def _below(path: str, names: Sequence[str]) -> bool:
    bare = path.split(".", 2)[2] if path.startswith("variants.") and path.count(".") > 1 else path
    return any(f"{one}.".startswith(f"{name}.") for one in (path, bare) for name in names)


def _plugins(old: StudyFile, new: StudyFile) -> list[Difference]:
    texts = [{p.name: p.read_text(encoding="utf-8") for p in one.plugins} for one in (old, new)]
    return [
        Difference(f"plugins.{name}", "its text", "another text", "")
        for name in dict.fromkeys([*texts[0], *texts[1]])
        if texts[0].get(name) != texts[1].get(name)
    ]


def _resolved_otherwise(folder: StudyFolder, study_file: StudyFile) -> list[str]:
    """Where the same file means something else than when the study began: another version."""
    stored = read_json(folder.path / "resolved.json") or {}
    if "variants" not in stored:
        return []
    now = {name: variant_settings(study_file, name) for name in study_file.variants}
    shown = [
        str(one)
        for one in (
            *differences(stored["study"], study_file.study, "study"),
            *differences(stored["variants"], now, "variants"),
        )
    ]
    if not shown:
        return []
    return [f"this version of memarch resolves the study otherwise: {'; '.join(shown[:5])}"]
