"""One variant of a file and one set of draws become plain values, each with where it came from.

`$name` and `=expression` are followed, ranges take what was drawn, `$env.NAME` is read from the
environment, and remembered as it was written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from memarch.arch.settings import join, parse, show
from memarch.arch.spec import BackboneSpec
from memarch.arch.units import parse_number
from memarch.components.errors import SpecError, did_you_mean
from memarch.search_spaces.document import KeyPath, Node, Origin
from memarch.search_spaces.expressions import evaluate
from memarch.search_spaces.patches import is_structure, range_at
from memarch.search_spaces.ranges import (
    KINDS,
    Choice,
    Range,
    Sample,
    Solve,
    Subset,
    as_written,
    is_range,
    near_range,
    parse_range,
)

_ENV = re.compile(r"\$env\.([A-Za-z_][A-Za-z0-9_]*)")
_WRONG_ENV = re.compile(r"[$=].*\$\{?env\b|\$\{?env\b")
_REFERENCE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")

RANGED = ("vars", "task", "model", "train")
"""Sections in which ranges may stand."""

DRAWN = " (drawn from this range)"
SAMPLED = " (drawn from this range for every batch)"
SOLVED = " (solved for)"


@dataclass(frozen=True)
class Mark:
    """Where the value at a key path came from."""

    origin: Origin
    source: str
    """As in `Resolved.origins`."""
    note: str = ""
    """What a message about the value adds, such as the name of the var behind it."""
    leaf: bool = False
    """Written as one value, whatever the schema makes of it."""
    last: Origin | None = None
    """Where a merged map was last added to."""
    near: str = ""
    """What to say where one value was expected: a map that is nearly a range."""
    key: Origin | None = None
    """Where the key was written, if the value is a var's."""


@dataclass
class Resolver:
    """Resolves one tree. Without `draws` ranges take their first values, to see which are used."""

    root: Node
    names: Mapping[KeyPath, str] = field(default_factory=dict)
    draws: Mapping[str, Any] | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def __post_init__(self) -> None:
        self.marks: dict[str, Mark] = {}
        self.used: dict[KeyPath, Range] = {}
        """Searched ranges by where they are written."""
        self.solves: dict[KeyPath, Solve] = {}
        """Ranges that `match` solves for, by where they are written."""
        self.sampled: dict[KeyPath, tuple[KeyPath, Sample]] = {}
        """Ranges that training draws for every batch, by where they are used: where they are
        written, and what they are."""
        self.values: dict[str, Any] = {}
        """What `run` has given."""
        self.used_vars: dict[str, Any] = {}
        self.unresolved: dict[str, str] = {}
        """Texts with `$env.NAME`, by key path."""
        self._open: list[str] = []
        self._section = ""
        self._expressions: list[tuple[Origin, KeyPath]] = []

    def run(self, sections: tuple[str, ...]) -> dict[str, Any]:
        """The plain values of the sections."""
        self.marks[""] = Mark(self.root.origin, str(self.root.origin))
        values = {}
        for name in sections:
            node = self.root.get(name)
            if node is not None:
                self._section = name
                values[name] = self.value(node, (name,), (name,))
        self.values = values
        return values

    def value(
        self, node: Node, written: KeyPath, path: KeyPath, note: str = "", key: Origin | None = None
    ) -> Any:
        """The value of a node written at one path and used at another (equal but for `$name`)."""
        leaf = not node.is_map and not node.is_list
        near = near_range(node.value) if node.is_map else ""
        self.marks[join(*path)] = Mark(
            node.origin, str(node.origin), note, leaf, node.last, near, key
        )
        if range_at(node, written):
            return self._draw(node, written, path, note)
        if node.is_map:
            return {
                name: self.value(child, (*written, name), (*path, name), note)
                for name, child in node.value.items()
            }
        if node.is_list:
            return [
                self.value(child, (*written, index), (*path, index), note)
                for index, child in enumerate(node.value)
            ]
        return self._text(node, path) if isinstance(node.value, str) else node.value

    # Texts

    def _text(self, node: Node, path: KeyPath) -> Any:
        text: str = node.value
        if text[:2] in ("$$", "=="):
            return text[1:]
        if _ENV.search(text):
            self.unresolved[join(*path)] = text
            return self.expand_environment(text, node.origin, join(*path))
        if _WRONG_ENV.match(text):
            raise node.origin.error(
                f"{text!r} does not name an environment variable; write $env.NAME", join(*path)
            )
        if text.startswith("$"):
            match = _REFERENCE.fullmatch(text)
            if match is None:
                raise node.origin.error(
                    f"{text!r} must be $ and the name of a var; write $$ for a plain $",
                    join(*path),
                )
            return self._variable(match[1], node.origin, path)
        if text.startswith("="):
            self._expressions.append((node.origin, path))
            try:
                return evaluate(text[1:], lambda name: self._name(name, node.origin, path))
            except SpecError as error:
                if error.file is not None:
                    raise
                raise node.origin.error(error.message, join(*path)) from None
            finally:
                self._expressions.pop()
        return text

    def expand_environment(self, text: str, origin: Origin, path: str) -> str:
        """The text with the values of the environment in it."""

        def read(match: re.Match[str]) -> str:
            if match[1] not in self.environment:
                raise origin.error(f"the environment variable {match[1]} is not set", path)
            return self.environment[match[1]]

        return _ENV.sub(read, text)

    def _variable(self, name: str, origin: Origin, path: KeyPath) -> Any:
        variables = self.root.get("vars")
        node = self.root.get("vars", name)
        if node is None:
            known = list(variables.value) if variables is not None and variables.is_map else []
            raise origin.error(
                f"there is no var {name!r}; {did_you_mean(name, known)}", join(*path)
            )
        with_note = f" (the value of vars.{name})"
        value = self._once(
            f"vars.{name}",
            origin,
            path,
            lambda: self.value(node, ("vars", name), path, with_note, origin),
        )
        self.used_vars[name] = value
        return value

    def _name(self, name: str, origin: Origin, path: KeyPath) -> Any:
        """A name in an expression: a var, else a value beside the expression or further out."""
        if self.root.get("vars", name) is not None:
            return _numeric(self._variable(name, origin, ("vars", name)))
        scopes = [path[:depth] for depth in range(len(path) - 1, 0, -1)]
        for scope in (*scopes, ("model", "backbone"), ("model",)):
            found = (*scope, name)
            node = self.root.get(*found)
            if node is not None and found != path:
                return self._beside(node, found, origin, path)
        value = self._backbone_value(name)
        if value is None:
            raise SpecError(f"there is no var or value {name!r} here; {self._near(name, scopes)}")
        return value

    def _near(self, name: str, scopes: list[KeyPath]) -> str:
        """The nearest of all names that an expression could have used, else the vars."""
        places = [*scopes, ("vars",), ("model", "backbone"), ("model",)]
        nodes = [node for place in places if (node := self.root.get(*place)) is not None]
        names = {str(key) for node in nodes if node.is_map for key, _ in node.children()} - {name}
        near = did_you_mean(name, names)
        variables = self.root.get("vars")
        known = list(variables.value) if variables is not None and variables.is_map else []
        return near.split(" (")[0] if near.startswith("did") else did_you_mean(name, known)

    def _beside(self, node: Node, found: KeyPath, origin: Origin, path: KeyPath) -> Any:
        return self._once(
            join(*found), origin, path, lambda: _numeric(self.value(node, found, found))
        )

    def _backbone_value(self, name: str) -> Any:
        """A value that the backbone has by default or in its config.json, but not in the file."""
        node = self.root.get("model", "backbone")
        if node is None or "model.backbone" in self._open:
            return None
        path = ("model", "backbone")
        raw = self._once("model.backbone", node.origin, path, lambda: self.value(node, path, path))
        try:
            return parse(BackboneSpec, raw).value(name)
        except SpecError:
            return None

    def _once(self, key: str, origin: Origin, path: KeyPath, compute: Callable[[], Any]) -> Any:
        if key in self._open:
            circle = " -> ".join([*self._open[self._open.index(key) :], key])
            raise origin.error(f"refers to itself: {circle}", join(*path))
        self._open.append(key)
        try:
            return compute()
        finally:
            self._open.pop()

    # Ranges

    def _draw(self, node: Node, written: KeyPath, path: KeyPath, note: str) -> Any:
        if "sample" in node.value:
            return self._sample(node, written, path, note)
        if self._section in ("study", "resources") or "sweep" in path[:3]:
            raise node.origin.error(
                "a searched value cannot be used here, where all trials must agree", join(*path)
            )
        known = self.read_range(node, written, path)
        if isinstance(known, Solve):
            return self._solve(node, known, written, path)
        self.used[written] = known
        name = self.names.get(written, join(*written))
        if self.draws is None:
            return _first(known)
        note = note or DRAWN
        mark = self.marks[join(*path)]
        self.marks[join(*path)] = replace(mark, source="draw", note=note, leaf=True, last=None)
        if name not in self.draws:
            raise node.origin.error(
                f"is a range, and no value was drawn for {name!r}: give one by `--set`, or run the "
                "file as a study",
                join(*path),
            )
        value = self.draws[name]
        if not known.contains(value):
            raise node.origin.error(f"the value {show(value)} lies outside the range", join(*path))
        return list(value) if isinstance(known, Subset) else value

    def _solve(self, node: Node, known: Solve, written: KeyPath, path: KeyPath) -> Any:
        """The value that was solved for; the first one until then."""
        if path[0] not in ("vars", "model"):
            raise node.origin.error(
                "`solve` sets a size of the model: it stands under model, or is a var that the "
                "model uses",
                join(*path),
            )
        self.solves[written] = known
        mark = self.marks[join(*path)]
        self.marks[join(*path)] = replace(mark, source="solved", note=SOLVED, leaf=True, last=None)
        name = self.names.get(written, join(*written))
        value = (self.draws or {}).get(name, known.grid()[0])
        return list(value) if isinstance(value, tuple) else value

    def _sample(self, node: Node, written: KeyPath, path: KeyPath, note: str) -> Any:
        """The value that evaluations take of what is drawn for every batch."""
        what = f"the range {join(*written)}" if written != path else "a range"
        if self._expressions:
            origin, place = self._expressions[-1]
            raise origin.error(
                f"nothing can be computed from {join(*written)}, which `sample` draws anew for "
                "every training batch; use a plain value or a range without `sample`",
                join(*place),
            )
        in_stage = path[:2] == ("train", "stages") and path[3:4] == ("set",)
        target = tuple(str(path[4]).split(".")) if in_stage and len(path) == 5 else path
        fits = target[0] == "task" and all(isinstance(key, str) for key in target)
        if target == ("task", "type") or not (fits or (in_stage and target[0] == "vars")):
            raise node.origin.error(
                f"{what} with `sample` is drawn anew for every training batch, so it can only be "
                "the value of a key under `task`, not its `type`; without `sample` it is drawn "
                "once a trial",
                join(*path),
            )
        known = self.read_range(node, written, path)
        assert isinstance(known, Sample)
        if in_stage:
            return as_written(known)
        mark = self.marks[join(*path)]
        self.marks[join(*path)] = replace(mark, note=note or SAMPLED, leaf=True, last=None)
        self.sampled[path] = (written, known)
        return known.evaluated

    def read_range(self, node: Node, written: KeyPath, path: KeyPath) -> Range:
        """The range written at a node; its ends may be vars that are no ranges."""
        where = join(*path)
        if written[0] not in RANGED:
            raise node.origin.error(
                f"a range cannot stand here, only under {', '.join(RANGED)}", where
            )
        for kind in ("sample", "solve"):
            below = node.value[kind] if list(node.value) == [kind] else None
            nested = below is not None and range_at(below, (*path, kind))
            if below is not None and nested and not {"sample", "solve"} & set(below.value):
                held = self.read_range(below, (*written, kind), (*path, kind))
                return self._holding(kind, held, node, where)
        inner = Resolver(self.root, environment=self.environment)
        inner._open = self._open
        raw = {
            key: inner.value(child, (*written, key), (*path, key))
            for key, child in node.value.items()
            if not (range_at(child, written) and key in ("sample", "solve"))
        }
        raw |= {
            key: child.plain()
            for key, child in node.value.items()
            if key == "sample" or (key == "solve" and child.is_map)
        }
        ranges = [*inner.used, *(place for place, _ in inner.sampled.values())]
        inside = [place for place in ranges if place[: len(written)] == written]
        if inside:
            rest = inside[0][len(written) :]
            raise (node.get(*rest) or node).origin.error(
                "a range cannot stand inside a range; alternatives of maps are `variants`",
                join(where, *rest),
            )
        if ranges:
            raise node.origin.error("the ends of a range cannot come from another range", where)
        self.used_vars |= inner.used_vars
        try:
            known = parse_range(raw)
        except SpecError as error:
            at = node.get(*error.path.split(".")) if error.path else None
            place = (at or node).origin
            raise place.error(error.message, join(where, error.path)) from None
        return known

    def _holding(self, kind: str, inner: Range, node: Node, where: str) -> Range:
        if kind == "sample":
            return Sample(inner)
        if inner.grid() is None:
            raise node.origin.error(
                "needs finitely many values to solve for: give the range a `step`", where
            )
        return Solve(inner)


def _first(known: Range) -> Any:
    return known.values[0] if isinstance(known, Choice) else known.extremes()[0]


def _numeric(value: Any) -> Any:
    """Numbers with units count in expressions too."""
    parsed = parse_number(value) if isinstance(value, str) else None
    return value if parsed is None else parsed


def refuse_ranges(node: Node, path: KeyPath) -> None:
    """An error where a range stands in a place that must be the same in all trials."""
    if node.is_map and not is_structure(path) and is_range(node.value):
        kind = next(kind for kind in KINDS if kind in node.value)
        raise node.origin.error(
            f"a range ({kind}) cannot stand here: ranges stand under {', '.join(RANGED)}",
            join(*path),
        )
    for key, child in node.children():
        refuse_ranges(child, (*path, key))
