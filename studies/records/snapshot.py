"""A study keeps its own source: files that it was made from may change, the study may not.

    STUDY/snapshot.yaml      the file merged with what it extends (and `snapshot.1.yaml`, … where
                             several files patch one variant)
    STUDY/plugins/0/mine.py  the user's files, which the snapshot names

A first run and a resumed one both read the snapshot, with the `--set` values in `study.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memarch.search_spaces.document import Node
from memarch.studies.records.store import write_text

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
    if study_file.ablation_node is not None:
        base["ablation"] = study_file.ablation_node.plain()
    layers = max((len(patches) for patches in study_file.written_variants.values()), default=1)
    for layer in range(layers):
        document: dict[str, Any] = (
            base if layer == 0 else {"extends": _path(folder, layer - 1).name}
        )
        variants = {
            name: patches[layer].plain()
            for name, patches in study_file.written_variants.items()
            if layer < len(patches)
        }
        if variants:
            document["variants"] = variants
        # JSON is YAML, and has one reading.
        write_text(_path(folder, layer), json.dumps(document, indent=1) + "\n")
    places = [str(place) for place in study_file.folders]
    origins = {
        "root": _origins(study_file.root),
        "variants": {n: [_origins(p) for p in ps] for n, ps in study_file.patches.items()},
    }
    about = {"layers": layers, "folders": places, "origins": origins}
    write_text(folder / "snapshot.json", json.dumps(about) + "\n")


def read_snapshot(folder: Path, overrides: Sequence[str]) -> StudyFile:
    """The study as it was when it began, relative paths still looked up where they were then."""
    from memarch.studies.settings.spec import load_study

    about = json.loads((folder / "snapshot.json").read_text(encoding="utf-8"))
    study_file = load_study(_path(folder, about["layers"] - 1), tuple(overrides))
    origins = about["origins"]
    return replace(
        study_file,
        folders=tuple(Path(place) for place in about["folders"]),
        root=_placed(study_file.root, iter(origins["root"])),
        patches={
            name: tuple(
                _placed(patch, iter(places))
                for patch, places in zip(patches, origins["variants"][name], strict=True)
            )
            for name, patches in study_file.patches.items()
        },
    )


def _origins(node: Node) -> list[str]:
    """Where each value was written, in the order of the tree."""
    below = [_origins(child) for key, child in node.children() if key != "plugins"]
    return [str(node.origin), *(place for places in below for place in places)]


def _placed(node: Node, places: Iterator[str]) -> Node:
    """The tree with the origins that `_origins` gave for it."""
    origin = replace(node.origin, source=next(places))
    value = node.value
    if node.is_map:
        value = {
            key: child if key == "plugins" else _placed(child, places)
            for key, child in node.value.items()
        }
    elif node.is_list:
        value = [_placed(child, places) for child in node.value]
    return Node(value, origin, node.last)


def _path(folder: Path, layer: int) -> Path:
    return folder / ("snapshot.yaml" if layer == 0 else f"snapshot.{layer}.yaml")
