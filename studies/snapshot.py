"""A study keeps its own source: files that it was made from may change, the study may not.

    STUDY/snapshot.yaml      the file merged with what it extends (and `snapshot.1.yaml`, … where
                             several files patch one variant)
    STUDY/plugins/0/mine.py  the user's files, which the snapshot names

A first run and a resumed one both read the snapshot, with the `--set` values in `study.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memarch.studies.store import write_text

if TYPE_CHECKING:
    from memarch.search_spaces.study_file import StudyFile


def write_snapshot(study_file: StudyFile, folder: Path) -> None:
    """Keep the study file, as merged, and its plugins."""
    base = study_file.root.plain()
    if study_file.plugins:
        base["plugins"] = []
        for index, plugin in enumerate(study_file.plugins):
            copy = folder / "plugins" / str(index) / plugin.name
            write_text(copy, plugin.read_text(encoding="utf-8"))
            base["plugins"].append(str(copy))
    layers = max((len(patches) for patches in study_file.patches.values()), default=1)
    for layer in range(layers):
        document: dict[str, Any] = (
            base if layer == 0 else {"extends": _path(folder, layer - 1).name}
        )
        variants = {
            name: patches[layer].plain()
            for name, patches in study_file.patches.items()
            if layer < len(patches)
        }
        if variants:
            document["variants"] = variants
        # JSON is YAML, and has one reading.
        write_text(_path(folder, layer), json.dumps(document, indent=1) + "\n")
    places = [str(place) for place in study_file.folders]
    write_text(folder / "snapshot.json", json.dumps({"layers": layers, "folders": places}) + "\n")


def read_snapshot(folder: Path, overrides: Sequence[str]) -> StudyFile:
    """The study as it was when it began, relative paths still looked up where they were then."""
    from memarch.studies.spec import load_study

    about = json.loads((folder / "snapshot.json").read_text(encoding="utf-8"))
    study_file = load_study(_path(folder, about["layers"] - 1), tuple(overrides))
    return replace(study_file, folders=tuple(Path(place) for place in about["folders"]))


def _path(folder: Path, layer: int) -> Path:
    return folder / ("snapshot.yaml" if layer == 0 else f"snapshot.{layer}.yaml")
