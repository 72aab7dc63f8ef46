"""Sizes that follow from a budget: the values marked `{solve: …}`, and a model made larger.

`match:` names a cost and its levels. For each level the marked values of a variant are set so that
the cost is nearest to it (`solving`); the level is one more range of the variant, `match.level`.
What comes no nearer than the tolerance is left out. `scale:` sets other sizes by a rule
(`scaling`). What a spec costs is the business of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from memarch.components.errors import SpecError
from memarch.search_spaces.document import Node, Origin, node_of
from memarch.search_spaces.patches import nest
from memarch.search_spaces.ranges import LEVEL, Solve
from memarch.search_spaces.scaling import Rule, make_rule
from memarch.search_spaces.solving import Cost, Found, Nearest, nearest

if TYPE_CHECKING:
    from memarch.search_spaces.study_file import StudyFile

MOST_STEPS = 2**16
"""Steps of a rule's smallest size up to which a model grows."""

Json = dict[str, Any]


class UnreachableError(SpecError):
    """No model of this variant comes near enough to the size that is asked for."""


@dataclass(frozen=True)
class Sized:
    """What was solved: goes with the draws, and over the tree."""

    kind: str
    """`match`, or `scale`."""
    goal: str
    """The cost's name."""
    level: float
    cost: float
    values: Mapping[str, Any]
    """By name of the range (match) or key path (scale)."""
    rule: str = ""
    draws: Mapping[str, Any] = field(default_factory=dict)
    patches: tuple[Node, ...] = ()

    @property
    def residual(self) -> float:
        return (self.cost - self.level) / self.level

    @property
    def source(self) -> str:
        """What `plan --origins` says of the values."""
        how = "solved" if self.kind == "match" else f"scaled by {self.rule}"
        return (
            f"{how} for {self.goal} = {self.level:.12g} "
            f"({self.cost:.12g}, {100 * self.residual:+.2g} %)"
        )

    def record(self) -> Json:
        """For the spec."""
        rule = {"rule": self.rule} if self.rule else {}
        return {
            "cost": self.goal,
            "level": self.level,
            "value": self.cost,
            "residual": self.residual,
            "values": dict(self.values),
        } | rule


class Sizing:
    """The sizes of one study file's models."""

    def __init__(self, file: StudyFile) -> None:
        self.file = file
        self._known: dict[str, Sized | UnreachableError] = {}

    @cached_property
    def match(self) -> Json | None:
        return self._section("match")

    @cached_property
    def scale(self) -> Json | None:
        return self._section("scale")

    def _section(self, name: str) -> Json | None:
        """A section, which is the same for all variants; checked against what it needs."""
        file = self.file
        node = file.section(name)
        if node is None:
            return None
        settings: Json | None = file.canonical(file.named[0]).get(name)
        if settings is None:
            return None
        if name == "match" and not any(file.solves(variant) for variant in file.named):
            raise node.origin.error(
                "nothing is marked to be solved for: write a size of a memory as {solve: [1, 512]}",
                name,
            )
        other = file.section("scale")
        if name == "match" and other is not None and other.value is not None:
            raise other.origin.error(
                "`match` and `scale` both set sizes: scale the winner of a study that matched",
                "scale",
            )
        return settings

    def of(self, variant: str, draws: Mapping[str, Any], patches: Sequence[Node]) -> Sized | None:
        """What this point's sizes are; None where nothing is solved for.

        An UnreachableError where no size is near enough.
        """
        if self.match is not None:
            level = draws.get(LEVEL)
            if level is None and len(self.match["levels"]) == 1:
                level = self.match["levels"][0]
            return self._matched(variant, draws, patches, level)
        if self.scale is not None:
            return self._scaled(variant, draws, patches)
        if self.file.section("match") is None:
            self._refuse_marks(variant)
        return None

    def levels(self, variant: str) -> list[float]:
        """The levels that the variant reaches, wherever its other ranges stand."""
        if self.match is None or not self.file.solves(variant):
            return []
        return [level for level in self.match["levels"] if self._at_level(variant, level)]

    @cached_property
    def rows(self) -> list[Json]:
        """Each variant at each level: what was solved, or why the level is left out."""
        rows: list[Json] = []
        for variant in self.file.named:
            if self.match is not None and self.file.solves(variant):
                rows += [self._row(variant, level) for level in self.match["levels"]]
            elif self.scale is not None:
                sized = self.of(variant, self.file.first_ranges(variant), ())
                assert sized is not None
                rows.append({"variant": variant, "kind": "scale"} | sized.record())
        if rows and all("reason" in row for row in rows):
            node = self.file.section("match")
            assert node is not None
            reasons = "; ".join(f"{row['variant'] or 'the model'}: {row['reason']}" for row in rows)
            raise node.origin.error(f"no variant reaches any level: {reasons}", "match")
        return rows

    def notes(self) -> list[str]:
        """The points that are left out."""
        return [
            f"{row['variant'] or 'the model'} is left out where {row['reason']}"
            for row in self.rows
            if "reason" in row
        ]

    def _row(self, variant: str, level: float) -> Json:
        head = {"variant": variant, "kind": "match"}
        found = self._at_level(variant, level)
        if isinstance(found, Sized):
            return head | found.record()
        reason = str(self._first_error(variant, level).message)
        assert self.match is not None
        return head | {"cost": self.match["cost"], "level": level, "reason": reason}

    def _first_error(self, variant: str, level: float) -> UnreachableError:
        draws = self.file.first_ranges(variant)
        try:
            self._matched(variant, draws, (), level)
        except UnreachableError as error:
            return error
        raise AssertionError("a level is left out only where it is not reached")

    def _at_level(self, variant: str, level: float) -> Sized | None:
        """The sizes with the other ranges at their first values, or at others where that fails."""
        draws = self.corner(variant, level)
        return None if draws is None else self._matched(variant, draws, (), level)

    def corner(self, variant: str, level: float | None = None) -> Json | None:
        """Values of the other ranges with which the level (of several) is reached."""
        if self.match is None or not self.file.solves(variant):
            return None
        levels = self.match["levels"] if level is None else [level]
        for draws in self._corners(variant):
            with suppress(UnreachableError):
                self._matched(variant, draws, (), levels[0])
                return draws
        return None

    def _corners(self, variant: str) -> list[Json]:
        """The first value of every range, each range's others in turn, and the last of all."""
        ranges = self.file.ranges(variant)
        first = {name: known.extremes()[0] for name, known in ranges.items()}
        corners = [first]
        for name, known in ranges.items():
            corners += [{**first, name: value} for value in known.extremes()[1:]]
        return [*corners, {name: known.extremes()[-1] for name, known in ranges.items()}]

    # Match

    def _matched(
        self,
        variant: str,
        draws: Mapping[str, Any],
        patches: Sequence[Node],
        level: float | None,
    ) -> Sized | None:
        base, solves = self.file.solvable(variant, draws, patches)
        free = {name: known for name, known in solves.items() if name not in draws}
        if not free:
            return None
        assert self.match is not None
        node = self.file.section("match")
        assert node is not None
        if level is None:
            listed = ", ".join(f"{level:.12g}" for level in self.match["levels"])
            raise node.origin.error(
                f"several sizes are asked for ({listed}): run the file as a study, or give one "
                f"level, --set match.{self.match['cost']}={self.match['levels'][0]:.12g}",
                "match",
            )
        key = json.dumps([base, level, variant, sorted(free)], sort_keys=True, default=str)
        return self._once(key, lambda: self._solve(base, variant, draws, patches, free, level))

    def _once(self, key: str, find: Callable[[], Sized]) -> Sized:
        """What was found for this key, or why nothing can be."""
        if key not in self._known:
            try:
                self._known[key] = find()
            except UnreachableError as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, UnreachableError):
            raise known
        return known

    def _solve(
        self,
        base: Json,
        variant: str,
        draws: Mapping[str, Any],
        patches: Sequence[Node],
        free: Mapping[str, Solve],
        level: float,
    ) -> Sized:
        assert self.match is not None
        goal = self.match["cost"]

        def cost(values: Mapping[str, Any]) -> float | None:
            return self._cost(base, variant, {**draws, **values}, patches, goal)

        found = nearest({name: known.grid() for name, known in free.items()}, cost, level)
        best = self._near_enough(found, level, self.match, "match")
        return Sized("match", goal, level, best.cost, best.values, draws=best.values)

    def _cost(
        self,
        base: Json,
        variant: str,
        draws: Mapping[str, Any],
        patches: Sequence[Node],
        goal: str,
    ) -> float | None:
        """What a candidate costs, evaluated as `base` is; None where its values do not fit."""
        try:
            spec = self.file.canonical(variant, draws, patches)
            return self.file.schema.cost({**spec, "eval": base["eval"]}, goal)
        except SpecError:
            return None

    def _near_enough(
        self, found: Nearest | None, level: float, settings: Json, section: str
    ) -> Found:
        node = self.file.section(section)
        assert node is not None
        goal = settings["cost"]
        if found is None:
            raise self._unreachable(
                node, f"no values make a model for {goal} = {level:.12g}", section
            )
        if abs(found.best.cost - level) <= settings["tolerance"] * level:
            return found.best
        sides = [side for side in (found.below, found.above) if side is not None]
        listed = " and ".join(f"{side.cost:.12g} ({_words(side.values)})" for side in sides)
        apart = ""
        if len(sides) == 2:
            step = sides[1].cost - sides[0].cost
            apart = f", in a step of {step:.12g}"
        raise self._unreachable(
            node,
            f"{goal} = {level:.12g} is not reached within {100 * settings['tolerance']:g} %: the "
            f"nearest {'are' if len(sides) > 1 else 'is'} {listed}{apart}",
            section,
        )

    def _unreachable(self, node: Node, message: str, section: str) -> UnreachableError:
        error = node.origin.error(message, section)
        return UnreachableError(error.message, path=error.path, file=error.file, line=error.line)

    def _refuse_marks(self, variant: str) -> None:
        for path in self.file.solves(variant):
            node = self.file.written(variant, path)
            raise node.origin.error(
                "`solve` needs a budget to solve for: give the section "
                "`match: {cost/state_floats: [1024, 4096]}`",
                ".".join(str(key) for key in path),
            )

    # Scale

    def _scaled(self, variant: str, draws: Mapping[str, Any], patches: Sequence[Node]) -> Sized:
        base, raw = self.file.scalable(variant, draws, patches)
        key = json.dumps([base, variant], sort_keys=True, default=str)
        return self._once(key, lambda: self._grown(base, raw, variant, draws, patches))

    def _grown(
        self,
        base: Json,
        raw: Json,
        variant: str,
        draws: Mapping[str, Any],
        patches: Sequence[Node],
    ) -> Sized:
        assert self.scale is not None
        node = self.file.section("scale")
        assert node is not None
        settings = self.scale
        try:
            rule = make_rule(settings, base, raw)
        except SpecError as error:
            place = node.get(*error.path.split(".")) if error.path else None
            path = f"scale.{error.path}".rstrip(".")
            raise (place or node).origin.error(error.message, path) from None

        def cost(values: Mapping[str, Any]) -> float | None:
            over = self._patches(rule, values["step"])
            return self._cost(base, variant, draws, [*patches, *over], settings["cost"])

        level = settings["level"]
        found = nearest({"step": rule.steps(_reach(cost, level))}, cost, level)
        if found is not None:
            found = Nearest(*(self._named(rule, one) for one in _sides(found)))
        best = self._near_enough(found, level, settings, "scale")
        over = tuple(
            nest(path, node_of(value, Origin("scale", source="solved")))
            for path, value in best.values.items()
        )
        return Sized(
            "scale", settings["cost"], level, best.cost, best.values, rule.name, patches=over
        )

    def _named(self, rule: Rule, found: Found | None) -> Any:
        if found is None:
            return None
        return Found(rule.values(found.values["step"]), found.cost)

    def _patches(self, rule: Rule, step: int) -> list[Node]:
        origin = Origin("scale", source="solved")
        return [nest(path, node_of(value, origin)) for path, value in rule.values(step).items()]


def _reach(cost: Cost, level: float) -> int:
    """A step at which the cost has reached the level, or no longer grows."""
    step, before = 1, -1.0
    while step < MOST_STEPS:
        value = cost({"step": step})
        if value is not None and (value >= level or value <= before):
            return step
        before = before if value is None else value
        step *= 2
    return step


def _sides(found: Nearest) -> tuple[Found, Found | None, Found | None]:
    return found.best, found.below, found.above


def _words(values: Mapping[str, Any]) -> str:
    sizes = {name: value for name, value in values.items() if not name.startswith("train.")}
    return ", ".join(f"{name.removeprefix('model.')} {value}" for name, value in sizes.items())
