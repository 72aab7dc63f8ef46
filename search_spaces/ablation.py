"""`ablation:`: a baseline and named changes of it become settings, one variant of the study each.

    ablation:
      baseline: gradmem                       # a variant; by default the file as it stands
      changes:
        no_write: {set: {model.memory.main.write.steps: 0}}
        no_memory: {remove: model.memory.main}
        small: {replace: {model.memory.main: {type: rmt, num_tokens: 2}}}
        rmt: {variant: rmt}
        tokens: {vary: {vars.num_tokens: [2, 8]}}         # one setting each: tokens-2, tokens-8
      one_at_a_time: {vars.num_tokens: [2, 8], train.lr: [1e-3, 1e-2]}
      leave_one_out: [model.memory.main, model.memory.cache]
      factorial: {vars.num_tokens: [2, 8], vars.write_steps: [1, 2]}  # or names of changes
      equivalence: 0.01

A setting's patch lies over the baseline's, so it may change whatever a variant may. What `remove`
names is gone, and the defaults hold in its place.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from memarch.arch.settings import join, parse
from memarch.components.errors import SpecError, did_you_mean
from memarch.components.strict import Strict
from memarch.search_spaces.document import Node
from memarch.search_spaces.patches import REMOVED, REPLACE, expand, merge, nest

BASELINE = "baseline"
"""What the file as it stands is called."""

SetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Values = (
    Annotated[list[Any], Field(min_length=1)] | Annotated[dict[SetName, Any], Field(min_length=1)]
)
Places = str | Annotated[list[str], Field(min_length=1)]


class ChangeSettings(Strict):
    """What differs from the baseline."""

    set: dict[str, Any] = Field(default_factory=dict)
    """Key paths to values, as in a variant: maps merge, everything else replaces."""
    replace: dict[str, Any] = Field(default_factory=dict)
    """Key paths to values that take the place of all that stood there."""
    remove: Places = Field(default_factory=list)
    """Key paths that are left out."""
    variant: str | None = None
    """Start from this variant in place of the baseline."""
    vary: dict[str, Values] = Field(default_factory=dict)
    """One key path to its values, a list or a map of names to values: one setting each."""


class AblationSettings(Strict):
    """A baseline and what is changed about it; all settings run over the same seeds and data."""

    baseline: str | None = None
    """A variant; by default the file as it stands."""
    changes: dict[SetName, ChangeSettings] = Field(default_factory=dict)
    """Named changes, one setting each."""
    one_at_a_time: dict[str, Values] = Field(default_factory=dict)
    """Key paths to values: each value is a setting, all else as in the baseline."""
    leave_one_out: Places = Field(default_factory=list)
    """Key paths that are left out, each by itself; `model.memory` leaves out each memory."""
    factorial: dict[str, Values] | list[str] = Field(default_factory=dict)
    """Key paths to values that are crossed, or names of changes that are combined."""
    equivalence: Annotated[float, Field(gt=0)] | None = None
    """Differences below this do not matter: also test whether a setting is equivalent."""


@dataclass(frozen=True)
class Setting:
    """One model of an ablation."""

    words: str
    """What differs from the baseline."""
    patches: tuple[Node, ...]
    """Over the file."""


@dataclass(frozen=True)
class Ablation:
    """All settings of an ablation by their names, the baseline first."""

    baseline: str
    settings: Mapping[str, Setting]
    equivalence: float | None

    @property
    def patches(self) -> dict[str, tuple[Node, ...]]:
        """The settings as variants."""
        return {name: setting.patches for name, setting in self.settings.items()}

    def about(self) -> dict[str, Any]:
        """What a study's record keeps: the baseline, the others with what differs."""
        words = {n: s.words for n, s in self.settings.items() if n != self.baseline}
        return {"baseline": self.baseline, "settings": words, "equivalence": self.equivalence}

    def notes(self, seeds: int, levels: Mapping[str, Collection[float]]) -> list[str]:
        """What so few seeds cannot show; each level of size is compared by itself."""
        base = set(levels[self.baseline])
        own = [set(levels[name]) for name in self.settings if name != self.baseline]
        tests = sum(len(one & base if one and base else one | base) or 1 for one in own)
        if tests * smallest_p(seeds) <= 0.05:
            return []
        enough = next(n for n in itertools.count(2) if tests * smallest_p(n) <= 0.05)
        few = "one seed" if seeds == 1 else f"{seeds} seeds"
        many = "one comparison" if tests == 1 else f"{tests} comparisons"
        more = f"study.seeds.model={list(range(1, enough + 1))}"
        return [f"{few} cannot show any difference over {many}; {enough} can: {more}"]


def smallest_p(n: int) -> float:
    """The share of the most extreme arrangement of n scores on either side: no p is below it."""
    return 2 / math.comb(2 * n, n)


def merged(base: Node | None, own: Node) -> Node:
    """An `ablation:` over that of the file which it extends: key by key, changes by name."""
    if base is None or not (base.is_map and own.is_map):
        return own
    entries = {**base.value, **own.value}
    changes = [part.value["changes"] for part in (base, own) if "changes" in part.value]
    if changes and all(part.is_map for part in changes):
        entries["changes"] = Node(
            {name: child for part in changes for name, child in part.value.items()},
            changes[-1].origin,
        )
    return Node(entries, own.origin)


def read_ablation(
    node: Node | None,
    root: Node,
    overrides: Sequence[Node],
    variants: Mapping[str, tuple[Node, ...]],
    sections: Sequence[str],
) -> Ablation | None:
    """The settings of `ablation:` over a file and its variants; `sections` may be changed.

    The section and `study.design: ablation` go together: one without the other is an error.
    """
    tree = root
    for patch in overrides:
        tree = merge(tree, patch)
    design = tree.get("study", "design")
    asked = design is not None and design.value == "ablation"
    if node is None:
        if design is not None and asked:
            raise design.origin.error(
                "an ablation needs the section `ablation`: {baseline: …, changes: {…}}",
                "study.design",
            )
        return None
    if not asked:
        found = "search" if design is None else design.plain()
        raise node.origin.error(
            f"an ablation needs study.design=ablation, which is {found}", "ablation"
        )
    return _Reader(node, root, variants, sections).read()


@dataclass(frozen=True)
class _Option:
    """A change, under the name and in the words of the setting that it makes."""

    name: str
    words: str
    patches: tuple[Node, ...]
    """Over the baseline, or over `start`."""
    start: tuple[Node, ...] | None = None


@dataclass
class _Reader:
    node: Node
    root: Node
    variants: Mapping[str, tuple[Node, ...]]
    sections: Sequence[str]

    def read(self) -> Ablation:
        try:
            given = parse(AblationSettings, self.node.plain())
        except SpecError as error:
            raise self._error(error.message, *error.path.split(".")) from None
        self.base: tuple[Node, ...] = ()
        if given.baseline is not None:
            self.base = self._variant(given.baseline, "baseline")
        self.tree = self.root
        for patch in self.base:
            self.tree = merge(self.tree, patch)
        baseline = given.baseline or BASELINE
        self.settings = {baseline: Setting("", self.base)}
        self.changes = {
            name: list(self._change(name, change)) for name, change in given.changes.items()
        }
        for name, options in self.changes.items():
            self._add(options, "changes", name)
        for path in given.one_at_a_time:
            self._add(self._values("one_at_a_time", path), "one_at_a_time", path)
        self._add(self._left_out(given.leave_one_out), "leave_one_out")
        self._add(self._crossed(given.factorial), "factorial")
        if len(self.settings) == 1:
            raise self._error("compares nothing: give `changes`, such as {no_write: {set: {…}}}")
        return Ablation(baseline, self.settings, given.equivalence)

    def _add(self, options: Iterable[_Option], *keys: str) -> None:
        for option in options:
            if option.name in self.settings:
                raise self._error(f"makes a second setting with the name {option.name!r}", *keys)
            start = self.base if option.start is None else option.start
            own = (patch.sourced(f"setting {option.name}") for patch in option.patches)
            self.settings[option.name] = Setting(option.words, (*start, *own))

    def _change(self, name: str, change: ChangeSettings) -> Iterator[_Option]:
        keys = ("changes", name)
        words, patches = [], []
        start = None
        if change.variant is not None:
            start = self._variant(change.variant, *keys, "variant")
            words.append(f"variant {change.variant}")
        for path in _listed(change.remove):
            patches.append(self._removal(path, *keys, "remove"))
            words.append(f"without {path}")
        for kind in ("replace", "set"):
            for path in getattr(change, kind):
                patches.append(self._patch(path, self._at(*keys, kind, path), kind, *keys, kind))
                words.append(f"{path}: {_in_words(getattr(change, kind)[path])}")
        own = _Option(name, ", ".join(words), tuple(patches), start)
        if len(change.vary) > 1:
            raise self._error(
                "takes one key path; several are `one_at_a_time` or `factorial`", *keys, "vary"
            )
        for path in change.vary:
            for option in self._values(*keys, "vary", path):
                label = f"{name}-{option.name.removeprefix(f'{_last(path)}-')}"
                yield _joined([own, replace(option, name=label)], label)
        if not change.vary:
            if not words:
                raise self._error(
                    "changes nothing: give `set`, `replace`, `remove`, `variant` or `vary`", *keys
                )
            yield own

    def _values(self, *keys: str) -> Iterator[_Option]:
        """The values of the key path that is the last of the keys."""
        node, path = self._at(*keys), keys[-1]
        assert node is not None
        for index, (key, child) in enumerate(node.children()):
            plain = child.plain()
            label = key if node.is_map else _label(plain, index)
            name = f"{_last(path)}-{label}"
            patch = self._patch(path, child, "replace", *keys[:-1])
            words = f"{path}: {key if node.is_map else _in_words(plain)}"
            yield _Option(name, words, (patch,))

    def _left_out(self, given: str | list[str]) -> Iterator[_Option]:
        paths = _listed(given)
        if len(paths) == 1:
            found = self.tree.get(*paths[0].split("."))
            if found is not None and found.is_map and paths[0] == "model.memory":
                paths = [join(paths[0], name) for name in found.value]
        for path in paths:
            name = f"without-{_last(path)}"
            patch = self._removal(path, "leave_one_out")
            yield _Option(name, f"without {path}", (patch,))

    def _crossed(self, given: Mapping[str, Any] | Sequence[str]) -> Iterator[_Option]:
        """Every combination of values; of named changes, every one of two or more of them."""
        if isinstance(given, Mapping):
            factors = [list(self._values("factorial", path)) for path in given]
            if len(factors) == 1:
                raise self._error("crosses nothing: one key path is `one_at_a_time`", "factorial")
            for combination in itertools.product(*factors) if factors else ():
                yield _joined(combination, "_".join(option.name for option in combination))
            return
        chosen: list[list[_Option | None]] = []
        for name in given:
            if name not in self.changes:
                hint = did_you_mean(name, self.changes)
                raise self._error(f"there is no change {name!r}; {hint}", "factorial")
            if any(option.start is not None for option in self.changes[name]):
                raise self._error(
                    f"{name!r} starts from another variant, which cannot be combined", "factorial"
                )
            chosen.append([None, *self.changes[name]])
        for combined in itertools.product(*chosen):
            options = [option for option in combined if option is not None]
            if len(options) > 1:
                yield _joined(options, "_".join(option.name for option in options))

    # Patches

    def _variant(self, name: str, *keys: str) -> tuple[Node, ...]:
        if name not in self.variants:
            hint = did_you_mean(name, self.variants)
            raise self._error(f"there is no variant {name!r}; {hint}", *keys)
        return self.variants[name]

    def _patch(self, path: str, node: Node | None, kind: str, *keys: str) -> Node:
        assert node is not None
        self._check(path, *keys)
        value = node
        if kind == "replace" and node.is_map:
            value = Node({REPLACE: node}, node.origin)
        return expand(Node({path: value}, node.origin))

    def _removal(self, path: str, *keys: str) -> Node:
        self._check(path, *keys)
        places = path.split(".")
        if self.tree.get(*places) is None:
            above = next(
                found
                for n in range(len(places) - 1, -1, -1)
                if (found := self.tree.get(*places[:n])) is not None
            )
            names = [str(name) for name, _ in above.children()]
            missing = next(
                join(*places[: n + 1])
                for n in range(len(places))
                if self.tree.get(*places[: n + 1]) is None
            )
            hint = did_you_mean(missing.rpartition(".")[2], names)
            raise self._error(f"the baseline has no {missing!r} to leave out; {hint}", *keys)
        origin = (self._at(*keys) or self.node).origin
        return nest(path, Node(REMOVED, origin))

    def _check(self, path: str, *keys: str) -> None:
        """The key path begins in a section that may vary, and what is inside of it is there."""
        places = path.split(".")
        if len(places) < 2 or places[0] not in self.sections or not all(places):
            known = ", ".join(f"{name}.…" for name in self.sections)
            raise self._error(f"must be a key path ({known}), got {path!r}", *keys, path)
        for depth, owner in ((2, ("vars",)), (3, ("model", "memory"))):
            inside = tuple(places[: depth - 1]) == owner and (depth == 2 or len(places) > depth)
            if inside and self.tree.get(*places[:depth]) is None:
                holder = self.tree.get(*owner)
                known_names = list(holder.value) if holder is not None and holder.is_map else []
                what = "var" if depth == 2 else "memory"
                hint = did_you_mean(places[depth - 1], known_names)
                raise self._error(
                    f"the baseline has no {what} {places[depth - 1]!r}; {hint}", *keys, path
                )

    # Places

    def _at(self, *keys: str) -> Node | None:
        """The node at a path whose keys may hold dots."""
        node: Node | None = self.node
        for key in keys:
            if node is None:
                return None
            if node.is_list and key.isdigit():
                node = node.get(int(key))
            else:
                node = node.value.get(key) if node.is_map else None
        return node

    def _error(self, message: str, *keys: str) -> SpecError:
        """An error at the innermost of these keys that is in the file."""
        for depth in range(len(keys), -1, -1):
            found = self._at(*keys[:depth])
            if found is not None:
                return found.origin.error(message, join("ablation", *keys))
        return self.node.origin.error(message, "ablation")


def _joined(options: Sequence[_Option], name: str) -> _Option:
    words = ", ".join(option.words for option in options if option.words)
    patches = tuple(patch for option in options for patch in option.patches)
    return _Option(name, words, patches, options[0].start)


def _listed(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _label(value: Any, index: int) -> str:
    """A value in the name of a setting: letters, digits, `_ - .`."""
    if isinstance(value, Mapping):
        return str(value.get("type", index + 1))
    if isinstance(value, list):
        value = "-".join(map(str, value))
    text = f"{value:g}" if isinstance(value, float) else str(value).lower()
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text) or str(index + 1)


def _in_words(value: Any) -> str:
    """A value on one line, as a study file would have it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_in_words(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_in_words, value))}]"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
