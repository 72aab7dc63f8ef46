"""Begin a study, or go on with one: who may, under which file, and where its records lie."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memarch.components.errors import SpecError
from memarch.studies.driver.driver import Driver, OnEvent
from memarch.studies.driver.events import StudyResult
from memarch.studies.driver.redefining import keep, redefine, write_definition
from memarch.studies.records.places import Places
from memarch.studies.records.snapshot import write_snapshot
from memarch.studies.records.store import (
    Json,
    StudyFolder,
    find_spec,
    find_study,
    lease,
    storage_folder,
)

if TYPE_CHECKING:
    from memarch.search_spaces.study_file import StudyFile

TRIAL_FUNCTION = "memarch.studies.training.trial:run_trial"
TEST_FUNCTION = "memarch.studies.training.trial:test_trial"
COST_FUNCTION = "memarch.studies.driver.feasibility:costs_of"


def run_study(
    file: str | Path,
    *,
    storage: str | Path | None = None,
    overrides: Sequence[str] = (),
    name: str | None = None,
    address: str | None = None,
    database: str | None = None,
    artifacts: str | None = None,
    on_event: OnEvent | None = None,
    trial_function: str = TRIAL_FUNCTION,
    test_function: str = TEST_FUNCTION,
    cost_function: str = COST_FUNCTION,
) -> StudyResult:
    """Run the study of a YAML file to its end, or until Ctrl-C; `name` overrides the file's."""
    from memarch.studies.settings.spec import load_study

    root = storage_folder(storage)
    study_file = load_study(
        Path(file), tuple(overrides), find_trial=lambda study, trial: find_spec(root, study, trial)
    )
    notes = study_file.validate()
    places = Places.choose(root, database, artifacts)
    folder = StudyFolder(root, name or study_file.study["name"] or Path(file).stem)
    with lease(folder.path):
        if folder.exists():
            state = folder.info["state"]
            raise SpecError(
                f"study {folder.name!r} is there already ({state}) in {folder.storage}; go on with "
                f"`memarch study resume {folder.name}`, or start anew with `--as NAME2`"
            )
        info = {
            "file": str(Path(file).absolute()),
            "overrides": list(overrides),
            "trial_function": trial_function,
            "test_function": test_function,
            "cost_function": cost_function,
        } | places.written()
        _begin(folder, study_file, info)
        try:
            return Driver(folder, places, address, on_event).run(notes)
        except SpecError:  # without a first trial it has not begun, and its name stays free
            if not folder.records():
                (folder.path / "study.json").unlink()
            raise


def resume_study(
    name: str,
    *,
    file: str | Path | None = None,
    storage: str | Path | None = None,
    overrides: Sequence[str] = (),
    address: str | None = None,
    database: str | None = None,
    artifacts: str | None = None,
    on_event: OnEvent | None = None,
) -> StudyResult:
    """Go on with a study by name, under its file as it was, or under a changed one.

    `overrides` may raise its budget: `study.budget.trials=48`.
    """
    folder, changed = find_study(storage, name), None if file is None else Path(file)
    with lease(folder.path):
        info = folder.info
        study_file, changes = redefine(folder, info, changed, overrides)
        before = [] if changed else info["overrides"]
        info["overrides"] = [*before, *overrides]
        notes = [*study_file.validate(), *changes]
        places = Places.choose(folder.storage, database, artifacts, info)
        if changed or overrides:
            keep(folder, info, changed, study_file)
        folder.write_info(info | places.written())
        return Driver(folder, places, address, on_event).run(notes)


def _begin(folder: StudyFolder, study_file: StudyFile, info: Json) -> None:
    """Make the study's folder: from now on it is there, and can be resumed."""
    study = study_file.study
    shutil.copyfile(info["file"], folder.path / "study.yaml")
    write_snapshot(study_file, folder.path)
    write_definition(folder, study_file)
    folder.write_info(
        {
            "name": folder.name,
            "id": uuid.uuid4().hex,
            "state": "running",
            "objective": study["objective"],
            "design": study["design"],
            "ablation": study_file.ablation.about() if study_file.ablation else None,
            "sizes": study_file.sizing.rows,
            "created": time.time(),
            "elapsed": 0.0,
            "counts": {},
            "best": [],
            "best_values": {},
        }
        | info
    )
