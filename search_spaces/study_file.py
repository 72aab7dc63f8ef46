"""A study file: YAML with ranges, variants and references becomes concrete specs, one per trial.

    default < extends < file < variant < draw < --set

`StudyFile.load` reads the files and keeps the line of everything, `space` says what a search draws,
`resolve` gives the concrete spec of a variant and its draws, `validate` checks every candidate.
What the sections may hold is the business of the schema, which the caller brings.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from memarch.arch.settings import join, show
from memarch.components.errors import SpecError, did_you_mean
from memarch.components.plugins import load_plugins
from memarch.search_spaces.ablation import Ablation, read_ablation
from memarch.search_spaces.document import KeyPath, Node, Origin, node_of
from memarch.search_spaces.drawn import Drawn, placed
from memarch.search_spaces.environment import restored
from memarch.search_spaces.patches import merge, nest, parse_override
from memarch.search_spaces.points import concrete_stages, with_points
from memarch.search_spaces.ranges import LEVEL, Choice, Range, Solve
from memarch.search_spaces.reading import VARIED, FindTrial, Reader
from memarch.search_spaces.resolution import Mark, Resolver, refuse_ranges
from memarch.search_spaces.sampling import sampled_values
from memarch.search_spaces.sizing import Sized, Sizing
from memarch.search_spaces.validation import validate

_COUNTED = ("task", "model", "train", "eval")
"""Sections that make two specs different trials."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


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
        reader = Reader(schema.sections, find_trial)
        root, patches = reader.read(path, ())
        sections = (*schema.sections, "vars", "plugins")
        sets = tuple(parse_override(text, sections) for text in overrides)
        if "vars" in root.value or any("vars" in patch.value for patch in sets):
            _check_vars(root)
        folders = dict.fromkeys([*(file.parent for file in reader.files), Path()])
        ablation = read_ablation(reader.ablation, root, sets, patches, VARIED)
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
        return {self._names[path]: known for path, known in self.used(variant).items()}

    def used(self, variant: str) -> dict[KeyPath, Range]:
        """The same by where they are written, vars first."""
        return self._used[self._known(variant)][0]

    def solves(self, variant: str) -> dict[KeyPath, Solve]:
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
        drawn = self.drawn(variant, draws, patches)
        spec, marks = drawn.spec, drawn.resolver.marks
        source = "" if sized is None else sized.source
        origins = {
            path: source if origin == "solved" and source else origin
            for path, origin in _origins(spec, marks)
        }
        for section in ("match", "scale"):
            spec.pop(section, None)
        if sized is not None:
            spec[sized.kind] = sized.record()
        spec["vars"] = dict(drawn.resolver.used_vars)
        spec["plugins"] = [str(path) for path in self.plugins]
        spec["eval"] = with_points(drawn)
        sample = sampled_values(drawn)
        stages = concrete_stages(drawn, sample, self.schema.stage_keys)
        if stages:
            spec["train"] = spec["train"] | {"stages": stages}
        if sample:
            spec["train"]["sample"] = sample
        record = restored(spec, drawn.resolver.unresolved)
        digest = _hash(record, spec["study"]["seeds"])
        return Resolved(variant, dict(given), spec, record, origins, digest, sized, marks, self)

    def validate(self) -> list[str]:
        """Check every variant with every candidate value; notes about what looks unintended."""
        return validate(self)

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
    def _used(self) -> dict[str, tuple[dict[KeyPath, Range], dict[KeyPath, Solve]]]:
        """The ranges that each variant searches, vars first, and those that are solved for."""
        used = {}
        for variant in self.named:
            resolver = Resolver(self._tree(variant))
            resolver.run(tuple(self.schema.sections))
            searched = sorted(resolver.used.items(), key=lambda item: item[0][0] != "vars")
            used[variant] = (dict(searched), dict(resolver.solves))
        return used

    @cached_property
    def _names(self) -> dict[KeyPath, str]:
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

    def written(self, variant: str, path: KeyPath) -> Node:
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
        return self.drawn(variant, draws, patches).spec

    def solvable(
        self, variant: str, draws: Mapping[str, Any], patches: Sequence[Node]
    ) -> tuple[dict[str, Any], dict[str, Solve]]:
        """The same with the points of its evaluations, and what is solved for by name."""
        drawn = self._with_points(variant, draws, patches)
        solves = drawn.resolver.solves
        return drawn.spec, {self._names[path]: known for path, known in solves.items()}

    def scalable(
        self, variant: str, draws: Mapping[str, Any], patches: Sequence[Node]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The same, and the sections as they were written."""
        drawn = self._with_points(variant, draws, patches)
        return drawn.spec, drawn.resolver.values

    def _with_points(
        self, variant: str, draws: Mapping[str, Any], patches: Sequence[Node]
    ) -> Drawn:
        drawn = self.drawn(variant, draws, patches)
        drawn.spec["eval"] = with_points(drawn)
        return drawn

    # Values

    def drawn(self, variant: str, draws: Mapping[str, Any], patches: Sequence[Node] = ()) -> Drawn:
        """The checked sections of a variant with these draws."""
        resolver = Resolver(self._tree(variant, patches), self._names, draws)
        raw = resolver.run(tuple(self.schema.sections))
        try:
            load_plugins(self.plugins)
            spec = self.schema.parse(raw, self.folders)
        except SpecError as error:
            raise placed(error, resolver.marks, self.path) from None
        spec["study"]["name"] = spec["study"]["name"] or self.path.stem
        return Drawn(self, variant, draws, patches, spec, resolver)

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


def _is_var(path: KeyPath) -> bool:
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


def _hash(record: Mapping[str, Any], seeds: Mapping[str, Any]) -> str:
    counted = {name: record.get(name) for name in _COUNTED} | {
        "seeds": {kind: seeds[kind] for kind in ("model", "data")}
    }
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def _origins(spec: Mapping[str, Any], marks: Mapping[str, Mark]) -> Iterator[tuple[str, str]]:
    for path in _leaves(spec, ()):
        text = join(*path)
        mark = marks.get(text)
        if mark is None and path[:2] == ("model", "memory"):
            mark = marks.get(join(*path[:3], "store", *path[3:]))
        if mark is None:
            above = marks.get(join(*path[:-1]))
            mark = above if above is not None and above.leaf else None
        yield text, mark.source if mark is not None else "default"


def _leaves(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _leaves(child, (*path, key))
    elif path:
        yield path
