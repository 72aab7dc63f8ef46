"""What commands are given: a study file and one of its specs, or a trial as STUDY/NUMBER."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memarch.components.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from memarch.search_spaces.study_file import Resolved, StudyFile
    from memarch.studies.records.store import TrialFolder

TRIAL = re.compile(r"(?P<study>.+)/(?P<number>\d+)")


def open_study(
    file: str | Path, overrides: Sequence[str] = (), storage: str | Path | None = None
) -> StudyFile:
    """Read a study file; what it may extend besides files are the trials of a storage folder."""
    from memarch.studies.records.store import find_spec, storage_folder
    from memarch.studies.settings.spec import load_study

    folder = storage_folder(storage)
    return load_study(
        Path(file),
        tuple(overrides),
        find_trial=lambda study, trial: find_spec(folder, study, trial),
    )


def resolve_one(
    study: StudyFile, variant: str | None, known: Mapping[str, Any] | None = None
) -> Resolved:
    """The one spec of a file. `known` are values for its ranges; any other range is an error."""
    names = study.variants
    if variant is None and len(names) > 1:
        raise SpecError(
            f"the file has variants: choose one with --variant ({', '.join(names)}), or run them "
            "all with `memarch study run`",
            file=str(study.path),
        )
    chosen = variant if variant is not None else names[0]
    if chosen not in names:
        raise SpecError(f"no variant {chosen!r}; {did_you_mean(chosen, names)}", path="variants")
    space = study.space(chosen)
    draws = {name: value for name, value in (known or {}).items() if name in space}
    missing = [name for name in space if name not in draws]
    if missing:
        raise SpecError(
            f"the file searches {', '.join(missing)}: give values with --set, or run it with "
            "`memarch study run`",
            file=str(study.path),
        )
    return study.resolve(chosen, draws)


def what_runs(study: StudyFile, variant: str) -> str:
    """What the study's design does with a variant's ranges, in words."""
    from memarch.search_spaces.ranges import LEVEL

    design, space = study.study["design"], study.space(variant)
    if design in ("search", "grid"):
        does = "searches" if design == "search" else "crosses"
        return f"{does} {', '.join(space)}" if space else "nothing is searched"
    levels = space.pop(LEVEL).extremes() if LEVEL in space else []
    once = f"runs at each {LEVEL}, {' and '.join(map(str, levels))}" if levels else "runs once"
    drawn = f", {', '.join(space)} drawn once for all variants" if space else ""
    what = once + drawn
    if study.ablation is None:
        return what
    change = study.ablation.about()["settings"].get(variant, "the baseline")
    return f"{change}; {what}" if levels else change


def find_trial(reference: str, storage: Path) -> TrialFolder | None:
    """The trial that `STUDY/7` names; None where it is not of that form."""
    from memarch.studies.records.store import find_study

    match = TRIAL.fullmatch(reference)
    if match is None:
        return None
    study = find_study(storage, match["study"])
    trial = study.trial(int(match["number"]))
    if not trial.path.is_dir():
        numbers = sorted(study.records())
        known = f"there are {numbers[0]} to {numbers[-1]}" if numbers else "there are none yet"
        raise SpecError(f"study {study.name!r} has no trial {match['number']}; {known}")
    return trial
