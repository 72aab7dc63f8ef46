"""Files and what they extend, laid over each other: one tree, and what each variant changes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memarch.arch.settings import join, show
from memarch.components.errors import SpecError, did_you_mean
from memarch.search_spaces.ablation import merged
from memarch.search_spaces.document import Node, Origin, node_of, read_file
from memarch.search_spaces.patches import REPLACE, expand, merge
from memarch.search_spaces.paths import put

VARIED = ("vars", "task", "model", "train", "eval", "resources")
"""Sections that a variant may change."""
_FRAME = ("vars", "variants", "ablation", "extends", "plugins")
_VARIANT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

FindTrial = Callable[[str, int | str], Mapping[str, Any]]
"""The spec of a trial of a study by name, and number or `best`."""


@dataclass
class Reader:
    """Reads a file, and with it all that it extends."""

    sections: Sequence[str]
    """Known to the schema."""
    find_trial: FindTrial | None
    files: list[Path] = field(default_factory=list)
    ablation: Node | None = None
    """What the files say about an ablation."""

    def read(self, path: Path, above: tuple[Path, ...]) -> tuple[Node, dict[str, tuple[Node, ...]]]:
        document = read_file(path)
        self.files.append(path)
        self._check_keys(document)
        extends = document.value.get("extends")
        base = Node({}, document.origin)
        patches: dict[str, tuple[Node, ...]] = {}
        if extends is not None:
            base, patches = self._base(extends, path, above)
        apart = ("extends", "variants", "ablation")
        own = {k: v for k, v in document.value.items() if k not in apart}
        if "ablation" in document.value:
            self.ablation = merged(self.ablation, document.value["ablation"])
        root = merge(base, expand(Node(own, document.origin)))
        variants = document.value.get("variants")
        if variants is not None:
            patches = self._variants(variants, patches)
        return Node(root.value, document.origin), patches

    def _check_keys(self, document: Node) -> None:
        known = (*self.sections, *_FRAME)
        for key, child in document.value.items():
            first = key.split(".")[0]
            if first not in known:
                raise child.origin.error(
                    f"unknown key {first!r}; {did_you_mean(first, known)}", key
                )

    def _base(
        self, node: Node, path: Path, above: tuple[Path, ...]
    ) -> tuple[Node, dict[str, tuple[Node, ...]]]:
        if node.is_map:
            return self._trial(node), {}
        if not isinstance(node.value, str):
            raise node.origin.error("must be a file, or {study: NAME, trial: best}", "extends")
        base = path.parent / node.value
        chain = (*above, path)
        if base.resolve() in [one.resolve() for one in chain]:
            raise node.origin.error(f"{node.value!r} extends itself", "extends")
        if not base.is_file():
            raise node.origin.error(f"there is no file {str(base)!r}", "extends")
        return self.read(base, chain)

    def _trial(self, node: Node) -> Node:
        for key, child in node.value.items():
            if key not in ("study", "trial"):
                hint = did_you_mean(key, ("study", "trial"))
                raise child.origin.error(f"unknown key {key!r}; {hint}", f"extends.{key}")
        name, trial = node.plain().get("study"), node.plain().get("trial", "best")
        if not isinstance(name, str):
            raise node.origin.error("must name a study", "extends.study")
        if trial != "best" and (isinstance(trial, bool) or not isinstance(trial, int)):
            raise node.origin.error(
                f"must be `best` or a number, got {show(trial)}", "extends.trial"
            )
        if self.find_trial is None:
            raise node.origin.error("needs the folder where studies are stored", "extends")
        try:
            spec = self.find_trial(name, trial)
        except SpecError as error:
            raise node.origin.error(error.message, "extends") from None
        origin = Origin(f"study {name} trial {trial}", source=f"study {name} trial {trial}")
        return node_of(trial_as_written(spec), origin)

    def _variants(
        self, node: Node, base: Mapping[str, tuple[Node, ...]]
    ) -> dict[str, tuple[Node, ...]]:
        if node.is_map and list(node.value) == [REPLACE]:
            node, base = node.value[REPLACE], {}
        if not node.is_map:
            raise node.origin.error("must be a map of named patches", "variants")
        patches = dict(base)
        for name, child in node.value.items():
            where = f"variants.{name}"
            if not _VARIANT.fullmatch(name):
                raise child.origin.error("must be a name of letters, digits, _ . -", where)
            if not child.is_map:
                raise child.origin.error(
                    "must be a map of what differs; write {} for nothing", where
                )
            for key, value in child.value.items():
                if key.split(".")[0] not in (*VARIED, "extends"):
                    hint = did_you_mean(key.split(".")[0], VARIED)
                    raise value.origin.error(
                        f"a variant cannot change {key!r}; {hint}", f"{where}.{key}"
                    )
            try:
                patches[name] = (*patches.get(name, ()), *self._patch(name, child))
            except SpecError as error:
                path = join(where, error.path)
                raise SpecError(
                    error.message, path=path, file=error.file, line=error.line
                ) from None
        return patches

    def _patch(self, name: str, node: Node) -> Iterator[Node]:
        """What a variant changes; first, where it extends a trial, the trial's model and training.

        Task and evaluations stay the study's: variants are compared on the same data.
        """
        extends = node.value.get("extends")
        if extends is not None:
            if not extends.is_map:
                raise extends.origin.error(
                    "a variant extends a trial, {study: NAME, trial: best}", "extends"
                )
            trial = self._trial(extends)
            sections = {
                key: Node({REPLACE: trial.value[key]}, trial.origin) for key in ("model", "train")
            }
            yield Node(sections, trial.origin)
        own = {key: child for key, child in node.value.items() if key != "extends"}
        if own or extends is None:
            yield expand(Node(own, node.origin)).sourced(f"variant {name}")


def trial_as_written(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's spec without what `resolve` computed."""
    names = ("task", "model", "train", "eval", "resources", "plugins")
    sections = {name: spec[name] for name in names if name in spec}
    plain = json.loads(json.dumps(sections))
    for settings in plain["eval"].values():
        settings.pop("points", None)
    _sample_as_written(plain["task"], plain["train"].pop("sample", []), plain)
    for stage in plain["train"].get("stages") or []:
        for entry in stage["set"].pop("train.sample", []):
            stage["set"] |= {key: {"sample": entry["range"]} for key in entry["keys"]}
    return plain


def _sample_as_written(
    task: dict[str, Any], entries: Sequence[Mapping[str, Any]], sections: dict[str, Any]
) -> None:
    """Ranges go back to where they are used; one that several keys share becomes a var."""
    for entry in entries:
        value: Any = {"sample": entry["range"]}
        if len(entry["keys"]) > 1:
            name = entry["keys"][0].replace(".", "_")
            sections.setdefault("vars", {})[name] = value
            value = f"${name}"
        for key in entry["keys"]:
            put({"task": task}, key.split("."), value)
