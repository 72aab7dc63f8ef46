"""A study file: YAML with ranges, variants and references becomes concrete specs, one per trial.

    default < extends < file < variant < draw < --set

`StudyFile.load` reads the files and keeps the line of everything, `space` says what a search draws,
`resolve` gives the concrete spec of a variant and its draws, `validate` checks every candidate.
What the sections may hold is the business of the schema, which the caller brings.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from memarch.arch.settings import join, show
from memarch.components.errors import SpecError, did_you_mean
from memarch.components.plugins import load_plugins
from memarch.search_spaces.ablation import Ablation, merged, read_ablation
from memarch.search_spaces.document import Node, Origin, node_of, read_file
from memarch.search_spaces.first_points import first_points
from memarch.search_spaces.patches import REPLACE, expand, merge, nest, parse_override
from memarch.search_spaces.ranges import LEVEL, Choice, Range, Sample, Solve, as_written
from memarch.search_spaces.resolution import DRAWN, SAMPLED, Mark, Path_, Resolver, refuse_ranges
from memarch.search_spaces.sizing import Sized, Sizing, UnreachableError

_FRAME = ("vars", "variants", "ablation", "extends", "plugins")
_VARIED = ("vars", "task", "model", "train", "eval", "resources")
_COUNTED = ("task", "model", "train", "eval")
"""Sections that make two specs different trials."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIANT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

FindTrial = Callable[[str, int | str], Mapping[str, Any]]
"""The spec of a trial of a study by name, and number or `best`."""


class Schema(Protocol):
    """What sections there are, and what they may hold."""

    sections: Sequence[str]
    stage_keys: Sequence[str]
    """Keys under `train` that a stage may change."""

    def parse(self, raw: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
        """Concrete sections -> the same checked, in one form, with all defaults; else SpecError."""
        ...

    def cost(self, spec: Mapping[str, Any], name: str) -> float:
        """What a model of this spec costs, measured."""
        ...


@dataclass(frozen=True)
class Resolved:
    """One trial's spec, concrete."""

    variant: str
    draws: Mapping[str, Any]
    spec: dict[str, Any]
    """Plain values: study, vars, task, model, train, eval, resources, plugins."""
    record: dict[str, Any]
    """The same with `$env.NAME` as it was written: what may be stored. See `resolve_env`."""
    origins: dict[str, str]
    """By key path: `default`, `file:line`, `variant NAME`, `draw` or `--set`."""
    hash: str
    """Equal for specs that are the same trial, however they are written."""
    sized: Sized | None = None
    """The sizes that a budget gave, and how near they come."""
    marks: Mapping[str, Mark] = field(repr=False, default_factory=dict)
    file: StudyFile | None = field(repr=False, default=None)

    def at(self, overrides: Mapping[str, Any]) -> Resolved:
        """The same draws with some vars or keys replaced: `{"vars.write_steps": 2}`."""
        assert self.file is not None
        origin = Origin("override", source="override")
        patches = [nest(path, node_of(value, origin)) for path, value in overrides.items()]
        return self.file.resolve_with(self.variant, self.draws, patches)


@dataclass(frozen=True)
class StudyFile:
    """A study as it was written, with everything it extends, and `--set` values over it."""

    path: Path
    root: Node
    """The sections, vars and plugins."""
    patches: Mapping[str, tuple[Node, ...]]
    """The variants; of an ablation, its settings."""
    overrides: tuple[Node, ...]
    schema: Schema
    folders: tuple[Path, ...]
    """Where relative paths are looked up."""
    written_variants: Mapping[str, tuple[Node, ...]] = field(default_factory=dict)
    """The variants as they were written, where `patches` are the settings of an ablation."""
    ablation_node: Node | None = None
    ablation: Ablation | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        overrides: Sequence[str] = (),
        *,
        schema: Schema,
        find_trial: FindTrial | None = None,
    ) -> StudyFile:
        """Read a file and what it extends; a SpecError says file, line and key."""
        path = Path(path)
        reader = _Reader(schema, find_trial)
        root, patches = reader.read(path, ())
        sections = (*schema.sections, "vars", "plugins")
        sets = tuple(parse_override(text, sections) for text in overrides)
        if "vars" in root.value or any("vars" in patch.value for patch in sets):
            _check_vars(root)
        folders = dict.fromkeys([*(file.parent for file in reader.files), Path()])
        ablation = read_ablation(reader.ablation, root, sets, patches, _VARIED)
        file = cls(
            path,
            root,
            patches if ablation is None else ablation.patches,
            sets,
            schema,
            tuple(folder.resolve() for folder in folders),
            patches,
            reader.ablation,
            ablation,
        )
        file._refuse_computed()
        return file

    @property
    def named(self) -> list[str]:
        """Names of the variants; `[""]` where there are none."""
        return list(self.patches) or [""]

    @cached_property
    def variants(self) -> list[str]:
        """The variants that run: all, but for those that reach no level of `match`."""
        if self.section("match") is None:
            return self.named
        out = {row["variant"] for row in self.sizing.rows if "reason" in row}
        return [name for name in self.named if name not in out or self.sizing.levels(name)]

    @cached_property
    def sizing(self) -> Sizing:
        """Sizes that follow from a budget."""
        return Sizing(self)

    @cached_property
    def plugins(self) -> list[Path]:
        """The user's own files, as absolute paths."""
        root = self._tree(self.named[0])
        node = root.get("plugins")
        if node is None:
            return []
        if not node.is_list:
            raise node.origin.error(f"must be a list of files, got {show(node.plain())}", "plugins")
        resolver = Resolver(root)
        return [
            self._plugin(
                child, f"plugins.{index}", resolver.value(child, ("plugins",), ("plugins",))
            )
            for index, child in enumerate(node.value)
        ]

    def _plugin(self, node: Node, where: str, text: Any) -> Path:
        if not isinstance(text, str):
            raise node.origin.error(f"must be the path of a file, got {show(text)}", where)
        for folder in self.folders:
            if (folder / text).expanduser().is_file():
                return (folder / text).expanduser().resolve()
        places = " or ".join(str(folder) for folder in self.folders)
        raise node.origin.error(f"there is no file {text!r} (looked in {places})", where)

    @cached_property
    def study(self) -> dict[str, Any]:
        """The section `study`, with defaults; the same for all trials."""
        spec = self.canonical(self.named[0])
        study: dict[str, Any] = spec["study"]
        return study

    def space(self, variant: str = "") -> dict[str, Range]:
        """What a search draws for this variant: names of parameters to ranges."""
        levels = self.sizing.levels(variant) if self.section("match") is not None else []
        several = len((self.sizing.match or {"levels": []})["levels"]) > 1 if levels else False
        level: dict[str, Range] = {LEVEL: Choice(tuple(levels))} if several else {}
        return level | self.ranges(variant)

    def ranges(self, variant: str) -> dict[str, Range]:
        """The ranges that are written in the file and searched."""
        used, _ = self._used[self._known(variant)]
        return {self._names[path]: known for path, known in used.items()}

    def solves(self, variant: str) -> dict[Path_, Solve]:
        """What is marked to be solved for, by where it is written."""
        return self._used[self._known(variant)][1]

    def first_ranges(self, variant: str) -> dict[str, Any]:
        """The first value of every range of the file."""
        return {name: known.extremes()[0] for name, known in self.ranges(variant).items()}

    def resolve(self, variant: str = "", draws: Mapping[str, Any] | None = None) -> Resolved:
        """The concrete spec of a variant with these draws (none for a file without ranges)."""
        return self.resolve_with(variant, draws or {}, ())

    def resolve_with(
        self, variant: str, draws: Mapping[str, Any], patches: Sequence[Node]
    ) -> Resolved:
        """The same with patches over everything else."""
        sized = self.sizing.of(variant, draws, patches)
        given = draws
        if sized is not None:
            draws, patches = {**draws, **sized.draws}, [*patches, *sized.patches]
        spec, resolver = self._canonical(variant, draws, patches)
        source = "" if sized is None else sized.source
        origins = {
            path: source if origin == "solved" and source else origin
            for path, origin in self._origins(spec, resolver.marks)
        }
        for section in ("match", "scale"):
            spec.pop(section, None)
        if sized is not None:
            spec[sized.kind] = sized.record()
        spec["vars"] = dict(resolver.used_vars)
        spec["plugins"] = [str(path) for path in self.plugins]
        self._add_points(spec, variant, draws, patches, resolver)
        self._add_stages(spec, variant, draws, patches, resolver)
        sample = self._sample(resolver)
        if sample:
            spec["train"]["sample"] = sample
        record = _restored(spec, resolver.unresolved)
        counted = {name: record.get(name) for name in _COUNTED} | {
            "seeds": {kind: spec["study"]["seeds"][kind] for kind in ("model", "data")}
        }
        text = json.dumps(counted, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        marks = resolver.marks
        return Resolved(variant, dict(given), spec, record, origins, digest, sized, marks, self)

    def validate(self) -> list[str]:
        """Check every variant with every candidate value; notes about what looks unintended.

        A choice is checked at all its values, other ranges at their ends; each range in turn, the
        others at their first value, then all at their last.
        """
        notes: list[str] = []
        hashes: dict[str, str] = {}
        idle: dict[str, bool] = {}
        self._check_budget()
        for variant in self.variants:
            first = self.first_draws(variant)
            base = self.resolve(variant, first)
            if self.study.get("design") == "grid" or _type(self.study.get("sampler")) == "grid":
                self._check_finite(variant)
            for name, known in self.space(variant).items():
                others = [value for value in known.extremes() if value != first[name]]
                found = [self._try(variant, first, name, value) for value in others]
                idle[name] = idle.get(name, True) and all(one == base.hash for one in found)
            last = {name: known.extremes()[-1] for name, known in self.space(variant).items()}
            with suppress(UnreachableError):
                self.resolve(variant, last)
            same = hashes.setdefault(base.hash, variant)
            if same != variant:
                what = "variants" if self.ablation is None else "settings"
                notes.append(f"{what} {same!r} and {variant!r} are the same model and training")
        self._check_first()
        self._check_racing()
        notes += self.sizing.notes()
        notes += [f"{name!r} is searched, but changes nothing" for name in idle if idle[name]]
        if self.ablation is not None:
            seeds = self.study["seeds"]["model"]
            levels = {name: self.sizing.levels(name) for name in self.named}
            notes += self.ablation.notes(len(seeds) if isinstance(seeds, list) else 1, levels)
        return notes + self._unused_vars()

    def _check_budget(self) -> None:
        """A search draws on until something stops it."""
        study = self.study
        searched = len(self.variants) > 1 or any(self.space(name) for name in self.variants)
        endless = study.get("design") == "search" and _type(study.get("sampler")) != "grid"
        if searched and endless and not study.get("budget"):
            origin = (self.root.get("study") or self.root).origin
            raise origin.error(
                "is required for a search: {trials: 24}, or hours or flops", "study.budget"
            )

    def _check_first(self) -> None:
        """Points that are to run first lie in the space."""
        given = self.study.get("first") or []
        try:
            first_points(given, {variant: self.space(variant) for variant in self.variants})
        except SpecError as error:
            raise self._in_study(join("first", error.path), error.message) from None

    def _check_racing(self) -> None:
        """Racing has seeds to save. A trial has one seed, so this is about the file."""
        racing, model = self.study.get("racing"), self.study.get("seeds", {}).get("model")
        count = len(model) if isinstance(model, list) else 1
        if racing and count <= racing["after"]:
            raise self._in_study(
                "racing",
                f"saves seeds after the first {racing['after']}, and seeds.model has {count}: "
                "give more of them, such as [1, 2, 3, 4, 5]",
            )

    def _in_study(self, path: str, message: str) -> SpecError:
        """An error about a key of the section `study`, with the place where it was written."""
        keys = ("study", *(int(key) if key.isdigit() else key for key in path.split(".")))
        origin = self.root.origin
        for patch in (self.root, *self.overrides):
            found = (node for n in range(len(keys), 1, -1) if (node := patch.get(*keys[:n])))
            origin = next(found, Node({}, origin)).origin
        return origin.error(message, join("study", path))

    def _try(self, variant: str, first: Mapping[str, Any], name: str, value: Any) -> str:
        """The hash with another value; empty where that is out of reach of its level of size."""
        try:
            return self.resolve(variant, {**first, name: value}).hash
        except UnreachableError:
            return ""
        except SpecError as error:
            message = f"{error.message.removesuffix(DRAWN)} (with {name}={show(value)})"
            raise SpecError(message, path=error.path, file=error.file, line=error.line) from None

    def _check_finite(self, variant: str) -> None:
        for path, known in self._used[variant][0].items():
            if known.grid() is None:
                node = self._tree(variant).get(*path)
                assert node is not None
                raise node.origin.error(
                    "a grid needs finitely many values: give the range a `step`, or a `choice`",
                    join(*path),
                )

    def _unused_vars(self) -> list[str]:
        node = self.root.get("vars")
        names = list(node.value) if node is not None else []
        used = {
            name
            for variant in self.variants
            for name in self.resolve(variant, self.first_draws(variant)).spec["vars"]
        }
        return [f"vars.{name} is not used by any variant" for name in names if name not in used]

    # Trees

    def _known(self, variant: str) -> str:
        if variant not in self.named:
            raise SpecError(
                f"there is no variant {variant!r}; {did_you_mean(variant, self.named)}",
                path="variants",
                file=str(self.path),
            )
        return variant

    def _tree(self, variant: str, patches: Sequence[Node] = ()) -> Node:
        tree = self.root
        for patch in (*self.patches.get(self._known(variant), ()), *self.overrides, *patches):
            tree = merge(tree, patch)
        return tree

    @cached_property
    def _used(self) -> dict[str, tuple[dict[Path_, Range], dict[Path_, Solve]]]:
        """The ranges that each variant searches, vars first, and those that are solved for."""
        used = {}
        for variant in self.named:
            resolver = Resolver(self._tree(variant))
            resolver.run(tuple(self.schema.sections))
            searched = sorted(resolver.used.items(), key=lambda item: item[0][0] != "vars")
            used[variant] = (dict(searched), dict(resolver.solves))
        return used

    @cached_property
    def _names(self) -> dict[Path_, str]:
        """Parameter names: a var's own, else the shortest end of the key path that is unique."""
        both = [known for pair in self._used.values() for known in pair]
        paths = list(dict.fromkeys(path for known in both for path in known))
        names = {path: str(path[1]) for path in paths if _is_var(path)}
        taken = {*names.values(), "variant"}
        rest = [path for path in paths if not _is_var(path)]
        for path in rest:
            ends = (path[-length:] for length in range(1, len(path) + 1))
            names[path] = next(
                join(*end)
                for end in ends
                if join(*end) not in taken
                and (end == path or all(p == path or p[-len(end) :] != end for p in rest))
            )
        return names

    def first_draws(self, variant: str) -> dict[str, Any]:
        """The first value of every range, and a level that is reached with them."""
        first = self.first_ranges(variant)
        if LEVEL not in self.space(variant):
            return self.sizing.corner(variant) or first
        level = self.space(variant)[LEVEL].extremes()[0]
        return {LEVEL: level} | (self.sizing.corner(variant, level) or first)

    # What sizes are solved from

    def section(self, name: str) -> Node | None:
        """A section that no variant changes, as it was written; None where there is none."""
        node = self._tree(self.named[0]).get(name)
        return None if node is None or node.value is None else node

    def written(self, variant: str, path: Path_) -> Node:
        """What stands in the file at a path."""
        return self._tree(variant).get(*path) or self.root

    def canonical(
        self,
        variant: str,
        draws: Mapping[str, Any] | None = None,
        patches: Sequence[Node] = (),
    ) -> dict[str, Any]:
        """The checked sections, of what is solved for the first value unless it is drawn."""
        draws = self.first_ranges(variant) if draws is None else draws
        return self._canonical(variant, draws, patches)[0]

    def solvable(
        self, variant: str, draws: Mapping[str, Any], patches: Sequence[Node]
    ) -> tuple[dict[str, Any], dict[str, Solve]]:
        """The same with the points of its evaluations, and what is solved for by name."""
        spec, resolver = self._canonical(variant, draws, patches)
        self._add_points(spec, variant, draws, patches, resolver)
        return spec, {self._names[path]: known for path, known in resolver.solves.items()}

    def scalable(
        self, variant: str, draws: Mapping[str, Any], patches: Sequence[Node]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The same, and the sections as they were written."""
        spec, resolver = self._canonical(variant, draws, patches)
        self._add_points(spec, variant, draws, patches, resolver)
        return spec, resolver.values

    # Values

    def _canonical(
        self, variant: str, draws: Mapping[str, Any], patches: Sequence[Node]
    ) -> tuple[dict[str, Any], Resolver]:
        tree = self._tree(variant, patches)
        resolver = Resolver(tree, self._names, draws)
        raw = resolver.run(tuple(self.schema.sections))
        try:
            self._load_plugins()
            spec = self.schema.parse(raw, self.folders)
            spec["study"]["name"] = spec["study"]["name"] or self.path.stem
            return spec, resolver
        except SpecError as error:
            raise self._placed(error, resolver.marks) from None

    def _load_plugins(self) -> None:
        load_plugins(self.plugins)

    def _placed(self, error: SpecError, marks: Mapping[str, Mark]) -> SpecError:
        """The error with the place where the value at fault, or what holds it, was written."""
        if error.file is not None:
            return error
        probe = error.path
        while probe and probe not in marks:
            probe = probe.rpartition(".")[0]
        mark = marks.get(probe)
        if mark is None:
            return SpecError(error.message, path=error.path, file=str(self.path))
        message = error.message
        if mark.near and probe == error.path and message.endswith("got a map"):
            message = mark.near
        own_key = probe == error.path and message.startswith("unknown key")
        message += "" if own_key else mark.note
        parent = marks.get(join(probe.rpartition(".")[0], "type"))
        unknown = message.startswith("unknown key") and "did you mean" not in message
        if unknown and parent and parent.origin != mark.origin:
            aside = parent.origin.file != mark.origin.file or parent.source != mark.source
            if aside and (parent.origin.source or mark.origin.source):
                message += (
                    f" (`type` was set at {_place(parent.origin)}: maps merge, and "
                    "`{replace: …}` drops what was there before)"
                )
        at = mark.last if mark.last is not None and probe == error.path else mark.origin
        if own_key and mark.key is not None:
            at = mark.key
        return SpecError(message, path=error.path, file=at.file, line=at.line)

    def _origins(
        self, spec: Mapping[str, Any], marks: Mapping[str, Mark]
    ) -> Iterator[tuple[str, str]]:
        for path in _leaves(spec, ()):
            text = join(*path)
            mark = marks.get(text)
            if mark is None and path[:2] == ("model", "memory"):
                mark = marks.get(join(*path[:3], "store", *path[3:]))
            if mark is None:
                above = marks.get(join(*path[:-1]))
                mark = above if above is not None and above.leaf else None
            yield text, mark.source if mark is not None else "default"

    # Sweeps of evaluations and stages of training, as concrete specs

    def _add_points(
        self,
        spec: dict[str, Any],
        variant: str,
        draws: Mapping[str, Any],
        patches: Sequence[Node],
        resolver: Resolver,
    ) -> None:
        spec["eval"] = {name: dict(settings) for name, settings in spec.get("eval", {}).items()}
        for name, settings in spec["eval"].items():
            axes: dict[str, list[Any]] = {}
            for path, values in (settings.get("sweep") or {}).items():
                where = f"eval.{name}.sweep.{path}"
                self._check_target(path, ("vars", "task", "model"), where, resolver)
                self._check_memory(path, where, variant, resolver)
                if not path.startswith("vars.") or path[5:] in resolver.used_vars:
                    axes[path] = values
            points = []
            for combination in itertools.product(*axes.values()) if axes else ():
                changes = dict(zip(axes, combination, strict=True))
                place = f"eval.{name}.sweep"
                at, _ = self._changed(changes, place, variant, draws, patches, resolver)
                changed = {key: at[key] for key in ("task", "model") if at[key] != spec[key]}
                own = at["eval"][name]["task"]
                if settings["task"] != "same":  # its own task counts, not the training task
                    changed.pop("task", None)
                if own != settings["task"]:
                    changed["task"] = own
                points.append({"name": _point_name(changes), "set": changes, "spec": changed})
            settings["points"] = points

    def _add_stages(
        self,
        spec: dict[str, Any],
        variant: str,
        draws: Mapping[str, Any],
        patches: Sequence[Node],
        resolver: Resolver,
    ) -> None:
        stages = spec.get("train", {}).get("stages")
        if not stages:
            return
        concrete = []
        for index, stage in enumerate(stages):
            place = f"train.stages.{index}.set"
            for path in stage["set"]:
                self._check_target(
                    path, ("vars", "task", "model", "train"), f"{place}.{path}", resolver
                )
            at, there = self._changed(stage["set"], place, variant, draws, patches, resolver)
            changes = dict(_difference(spec, at, ()))
            for path in changes:
                section, key = path.split(".")[:2]
                if section == "train" and key not in self.schema.stage_keys:
                    known = ", ".join(f"train.{name}" for name in self.schema.stage_keys)
                    message = f"train.{key} holds for the whole run; a stage may change {known}"
                    raise self._placed(SpecError(message, path=place), resolver.marks)
            sample = self._sample(there)
            if sample != self._sample(resolver):
                changes |= {
                    join(*path): _get(at, path)
                    for path in resolver.sampled
                    if path not in there.sampled
                }
                changes["train.sample"] = sample
            concrete.append(stage | {"set": changes})
        spec["train"] = spec["train"] | {"stages": concrete}

    def _check_target(
        self, path: str, sections: Sequence[str], where: str, resolver: Resolver
    ) -> None:
        section, _, rest = path.partition(".")
        message = ""
        if section not in sections or not rest:
            message = f"must be a key path under {', '.join(sections)}, got {path!r}"
        elif section == "vars" and resolver.root.get("vars", rest) is None:
            variables = resolver.root.get("vars")
            known = list(variables.value) if variables is not None else []
            message = f"there is no var {rest!r}; {did_you_mean(rest, known)}"
        if message:
            raise self._placed(SpecError(message, path=where), resolver.marks)

    def _check_memory(self, path: str, where: str, variant: str, resolver: Resolver) -> None:
        """A sweep inside a memory needs the memory; only the whole of one can be added."""
        keys = path.split(".")
        memories = resolver.values["model"].get("memory") or {}
        if keys[:2] != ["model", "memory"] or len(keys) < 4 or keys[2] in memories:
            return
        who = f"variant {variant!r}" if variant else "the model"
        message = f"{who} has nothing at {join(*keys[:3])} for the sweep to change; "
        message += (
            "put the sweep into the variants that have it"
            if variant
            else did_you_mean(keys[2], memories)
        )
        raise self._placed(SpecError(message, path=where), resolver.marks)

    def _changed(
        self,
        changes: Mapping[str, Any],
        place: str,
        variant: str,
        draws: Mapping[str, Any],
        patches: Sequence[Node],
        resolver: Resolver,
    ) -> tuple[dict[str, Any], Resolver]:
        more = []
        for path, value in changes.items():
            mark = resolver.marks.get(f"{place}.{path}")
            origin = mark.origin if mark is not None else self.root.origin
            more.append(nest(path, node_of(value, replace(origin, source=place))))
        return self._canonical(variant, draws, [*patches, *more])

    # Values that training draws for every batch

    def _sample(self, resolver: Resolver) -> list[dict[str, Any]]:
        """`[{keys, range}]`: what is drawn, and for which keys; every extreme is checked."""
        drawn: dict[Path_, tuple[Sample, list[Path_]]] = {}
        for path, (written, known) in sorted(resolver.sampled.items()):
            drawn.setdefault(written, (known, []))[1].append(path)
        entries = []
        for known, paths in drawn.values():
            values = [
                self._sampled_at(resolver, dict.fromkeys(paths, value), paths[0])
                for value in known.extremes()
            ]
            # In the form of the schema: units are numbers, files are found from anywhere.
            inner = Choice(tuple(values)) if isinstance(known.inner, Choice) else known.inner
            entries.append({"keys": [join(*path) for path in paths], "range": as_written(inner)})
        if len(drawn) > 1:
            first = {path: k.extremes()[0] for k, paths in drawn.values() for path in paths}
            self._sampled_at(resolver, first, next(iter(first)))
        return entries

    def _sampled_at(self, resolver: Resolver, values: Mapping[Path_, Any], key: Path_) -> Any:
        """The value of a key when these are drawn, in the form that the schema gives it."""
        raw = copy.deepcopy(resolver.values)
        for path, value in values.items():
            _get(raw, path[:-1])[path[-1]] = value
        try:
            return _get(self.schema.parse(raw, self.folders), key)
        except SpecError as error:
            placed = self._placed(error, resolver.marks)
            at = ", ".join(f"{join(*path)}={show(value)}" for path, value in values.items())
            message = placed.message.removesuffix(SAMPLED).removesuffix(DRAWN)
            message += f" (when a batch has {at})"
            raise SpecError(message, path=placed.path, file=placed.file, line=placed.line) from None

    def _refuse_computed(self) -> None:
        """Keys that `resolve` fills in are not the user's to write."""
        for variant in self.named:
            tree = self._tree(variant)
            for name, child in (tree.get("eval") or Node({}, tree.origin)).children():
                found = child.get("points")
                if found is not None:
                    raise found.origin.error("unknown key 'points'", join("eval", name, "points"))
            for section in self.schema.sections:
                node = tree.get(section)
                if node is not None and section not in ("task", "model", "train"):
                    refuse_ranges(node, (section,))


@dataclass
class _Reader:
    """Files and what they extend, laid over each other."""

    schema: Schema
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
        known = (*self.schema.sections, *_FRAME)
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
        return node_of(_as_written(spec), origin)

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
                if key.split(".")[0] not in (*_VARIED, "extends"):
                    hint = did_you_mean(key.split(".")[0], _VARIED)
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


def resolve_env(record: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Any:
    """A stored record -> a spec, with `$env.NAME` read on the machine that uses it."""
    resolver = Resolver(Node({}, Origin("record")), environment=environment)

    def walk(value: Any, path: Path_) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(child, (*path, key)) for key, child in value.items()}
        if isinstance(value, list):
            return [walk(child, (*path, index)) for index, child in enumerate(value)]
        if isinstance(value, str):
            return resolver.expand_environment(value, Origin("record"), join(*path))
        return value

    return walk(record, ())


def _is_var(path: Path_) -> bool:
    return path[0] == "vars" and len(path) == 2


def _check_vars(root: Node) -> None:
    node = root.get("vars")
    if node is None:
        return
    if not node.is_map:
        raise node.origin.error("must be a map of names to values or ranges", "vars")
    for name, child in node.value.items():
        if not _NAME.fullmatch(name) or name in ("env", "variant", "min", "max"):
            raise child.origin.error(f"{name!r} cannot be the name of a var", f"vars.{name}")


def _leaves(value: Any, path: Path_) -> Iterator[Path_]:
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _leaves(child, (*path, key))
    elif path:
        yield path


def _restored(spec: dict[str, Any], unresolved: Mapping[str, str]) -> dict[str, Any]:
    """The spec with what was written in place of what the environment gave."""
    record = json.loads(json.dumps(spec))
    places = [record]
    places += [p["spec"] for e in record["eval"].values() for p in e.get("points", ())]
    for path, text in unresolved.items():
        keys = path.split(".")
        candidates = [keys]
        if keys[:2] == ["model", "memory"] and keys[3:4] == ["store"]:
            candidates.append([*keys[:3], *keys[4:]])
        for place, way in itertools.product(places, candidates):
            _put(place, way, text)
    return record


def _get(place: Any, path: Path_) -> Any:
    for key in path:
        place = place[key]
    return place


def _put(place: Any, keys: Sequence[str], text: str) -> None:
    for key in keys[:-1]:
        inside = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, list) and key.isdigit() and int(key) < len(place):
            inside = place[int(key)]
        if inside is None:
            return
        place = inside
    if isinstance(place, dict) and keys[-1] in place:
        place[keys[-1]] = text
    elif isinstance(place, list) and keys[-1].isdigit() and int(keys[-1]) < len(place):
        place[int(keys[-1])] = text


def _as_written(spec: Mapping[str, Any]) -> dict[str, Any]:
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
            _put({"task": task}, key.split("."), value)


def _difference(
    old: Mapping[str, Any], new: Mapping[str, Any], path: Path_
) -> Iterator[tuple[str, Any]]:
    """What differs under task, model and train, as values by key path."""
    if not path:
        for section in ("task", "model", "train"):
            yield from _difference(old[section], new[section], (section,))
        return
    for key, value in new.items():
        before, where = old.get(key), (*path, key)
        if value == before or where == ("train", "stages"):
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping) and set(value) == set(before):
            yield from _difference(before, value, where)
        else:
            yield join(*where), value


def _point_name(changes: Mapping[str, Any]) -> str:
    """`write_steps-2`: in names of metrics, so of letters, digits, `_ - .` only."""
    names = (f"{path.rpartition('.')[2]}-{_short(value)}" for path, value in changes.items())
    return "_".join(re.sub(r"[^A-Za-z0-9_.-]+", "-", name) for name in names)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type(settings: Any) -> Any:
    return settings.get("type") if isinstance(settings, Mapping) else settings


def _place(origin: Origin) -> str:
    return origin.file if origin.line is None else f"{origin.file}:{origin.line}"
