"""Points of a search space: Optuna's samplers, drawn so that a resumed study draws the same.

A sampler lives for one trial. Its seed follows from the search seed and the trial's number, and
what it knows is the finished trials in the storage: so a study that was cut off and resumed draws
what an uninterrupted one would have drawn. The variant is the categorical parameter `variant`; what
other parameters there are depends on it, which TPE models branch by branch (`group=True`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from memarch.components.errors import SpecError, did_you_mean
from memarch.search_spaces.ranges import LEVEL, Choice, Float, Int, Range, Subset

optuna.logging.set_verbosity(optuna.logging.WARNING)

Draws = dict[str, Any]
Space = Mapping[str, Range]

VARIANT = "variant"
SAMPLERS = ("tpe", "random", "grid", "nsga2", "gp", "cmaes", "qmc")

MOST_SUBSETS = 256
"""A subset range with more subsets than this cannot be crossed by a grid."""

MOST_VALUES = 4096
"""An integer range with more values than this cannot be crossed by a grid."""


@dataclass(frozen=True)
class Point:
    """One point of the space: a variant, a value for every range that it uses, and a model seed."""

    variant: str
    draws: Draws
    seed: int = 0

    @property
    def key(self) -> str:
        """Equal for points that differ in their seed only."""
        return json.dumps([self.variant, self.draws], sort_keys=True)


def seed_of(*parts: object) -> int:
    """A seed from any parts, the same on every machine and in every process."""
    digest = hashlib.sha256(json.dumps(parts, default=str).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def make_sampler(
    settings: Mapping[str, Any], seed: int, number: int, objectives: int
) -> BaseSampler:
    """The sampler for one trial. `settings` is `{type: tpe, ...}`, further keys as Optuna's."""
    settings = dict(settings)
    kind = settings.pop("type")
    own = seed_of(seed, number)
    if kind == "cmaes" and objectives > 1:
        raise SpecError(
            "sampler cmaes takes one objective; use nsga2, tpe or gp", path="study.sampler"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if kind == "tpe":
            jointly = settings.get("multivariate", True)
            defaults = {"multivariate": jointly, "group": jointly, "seed": own}
            return optuna.samplers.TPESampler(**defaults | settings)
        if kind in ("random", "grid"):
            return optuna.samplers.RandomSampler(seed=own)
        if kind == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=own, **settings)
        fallback = optuna.samplers.RandomSampler(seed=own)
        if kind == "gp":
            return optuna.samplers.GPSampler(
                seed=own, independent_sampler=fallback, warn_independent_sampling=False, **settings
            )
        if kind == "cmaes":
            return optuna.samplers.CmaEsSampler(
                seed=own, independent_sampler=fallback, warn_independent_sampling=False, **settings
            )
        if kind == "qmc":
            # One scrambling for the whole study: one sequence, counted in the storage.
            return optuna.samplers.QMCSampler(
                **{"scramble": True} | settings,
                seed=seed_of(seed),
                independent_sampler=fallback,
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            )
    raise SpecError(
        f"unknown sampler {kind!r}; {did_you_mean(kind, SAMPLERS)}", path="study.sampler"
    )


def told_as(
    kind: str, state: str, values: Sequence[float | None]
) -> tuple[list[float] | None, TrialState]:
    """How Optuna is told of a finished trial: its values, where it has any, and its state.

    Infeasible points are told as pruned, with their violations: failed ones would be invisible to
    the sampler, which would go on drawing beside them. A Gaussian process knows complete trials
    only, so there they are complete where they have all values.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    whole = len(known) == len(values)
    if state == "complete" or (state == "infeasible" and kind == "gp" and whole):
        return known, TrialState.COMPLETE
    return None, TrialState.FAIL if state == "failed" else TrialState.PRUNED


class Coder:
    """Points of our space as parameters of Optuna, and back.

    Optuna's categories are scalars, and two variants may give one name different ranges, which
    Optuna refuses: then the variant leads the name. A subset is one rank a value, `layers.3`, and
    a size, `layers.size`: the highest ranks are in. Every draw is a subset of an allowed size, and
    what a sampler learns about one layer holds whatever the others are.
    """

    def __init__(self, spaces: Mapping[str, Space]) -> None:
        self.spaces = spaces
        self.names: dict[tuple[str, str], str] = {}
        by_name: dict[str, list[Range]] = {}
        for space in spaces.values():
            for name, range_ in space.items():
                known = by_name.setdefault(name, [])
                if range_ not in known:
                    known.append(range_)
        for variant, space in spaces.items():
            for name in space:
                shared = len(by_name[name]) == 1 and name != VARIANT
                self.names[variant, name] = name if shared else f"{variant}.{name}"

    @property
    def has_variants(self) -> bool:
        return list(self.spaces) != [""]

    def variant_distribution(self) -> dict[str, BaseDistribution]:
        """The parameter `variant`, where there are variants."""
        return {VARIANT: CategoricalDistribution(list(self.spaces))} if self.has_variants else {}

    def kinds(self, variant: str) -> dict[str, BaseDistribution]:
        """All parameters of a variant's trials."""
        found = self.variant_distribution()
        for name, range_ in self.spaces[variant].items():
            found |= distributions(self.names[variant, name], range_)
        return found

    def suggest(self, trial: optuna.Trial) -> tuple[str, Draws]:
        """Draw the variant, then what it uses."""
        variant = ""
        for name, kind in self.variant_distribution().items():
            variant = str(trial._suggest(name, kind))
        draws: Draws = {}
        for name, range_ in self.spaces[variant].items():
            parameters = distributions(self.names[variant, name], range_)
            values = {p: trial._suggest(p, d) for p, d in parameters.items()}
            draws[name] = decode(self.names[variant, name], range_, values)
        return variant, draws

    def encode(self, point: Point) -> dict[str, Any]:
        """The parameters that make Optuna draw this point."""
        values: dict[str, Any] = {VARIANT: point.variant} if self.has_variants else {}
        for name, value in point.draws.items():
            known = self.names[point.variant, name]
            values |= encode(known, self.spaces[point.variant][name], value)
        return values


def distributions(name: str, range_: Range) -> dict[str, BaseDistribution]:
    """The Optuna parameters of one range: one of the same name, but for subset ranges."""
    if isinstance(range_, Choice):
        return {name: CategoricalDistribution(_labels(range_.values))}
    if isinstance(range_, Int):
        return {name: IntDistribution(range_.low, range_.high, log=range_.log, step=range_.step)}
    if isinstance(range_, Float):
        return {name: FloatDistribution(range_.low, range_.high, log=range_.log, step=range_.step)}
    if isinstance(range_, Subset):
        ranks = {f"{name}.{value}": FloatDistribution(0, 1) for value in range_.values}
        if range_.low == range_.high:
            return dict(ranks)
        return {f"{name}.size": IntDistribution(range_.low, range_.high), **ranks}
    raise SpecError(f"a {type(range_).__name__.lower()} range is not drawn by a search", path=name)


def decode(name: str, range_: Range, values: Mapping[str, Any]) -> Any:
    """The value that the Optuna parameters of one range stand for."""
    if isinstance(range_, Choice):
        return range_.values[_labels(range_.values).index(values[name])]
    if isinstance(range_, Subset):
        size = values.get(f"{name}.size", range_.low)
        ranked = sorted(range_.values, key=lambda value: -values[f"{name}.{value}"])
        return [value for value in range_.values if value in ranked[:size]]
    return values[name]


def encode(name: str, range_: Range, value: Any) -> dict[str, Any]:
    """The reverse of `decode`."""
    if isinstance(range_, Choice):
        return {name: _labels(range_.values)[_index(range_.values, value)]}
    if isinstance(range_, Subset):
        ranks = {f"{name}.{one}": 0.75 if one in value else 0.25 for one in range_.values}
        return ranks if range_.low == range_.high else {f"{name}.size": len(value), **ranks}
    return {name: value}


def _labels(values: Sequence[Any]) -> list[Any]:
    """The values themselves where Optuna can tell them apart, else each as a line of JSON."""
    scalar = all(value is None or isinstance(value, (bool, int, float, str)) for value in values)
    if scalar and len(set(values)) == len(values):
        return list(values)
    return [json.dumps(value, sort_keys=True) for value in values]


def _index(values: Sequence[Any], value: Any) -> int:
    """Where the value stands; True is not 1."""
    return [json.dumps(one, sort_keys=True) for one in values].index(
        json.dumps(value, sort_keys=True)
    )


def _subsets(range_: Subset) -> list[list[Any]] | None:
    sizes = range(range_.low, range_.high + 1)
    every = (list(c) for size in sizes for c in itertools.combinations(range_.values, size))
    subsets = list(itertools.islice(every, MOST_SUBSETS + 1))
    return subsets if len(subsets) <= MOST_SUBSETS else None


def grid_size(spaces: Mapping[str, Space]) -> int:
    """How many points `grid_points` has; an endless range is a SpecError."""
    return sum(
        math.prod(len(_finite(name, range_)) for name, range_ in space.items())
        for space in spaces.values()
    )


def grid_points(spaces: Mapping[str, Space], shuffle: int | None = None) -> list[Point]:
    """Every variant crossed with every value of its ranges, in file order or shuffled by a seed."""
    points = [
        Point(variant, dict(zip(space, values, strict=True)))
        for variant, space in spaces.items()
        for values in itertools.product(*(_finite(name, r) for name, r in space.items()))
    ]
    if shuffle is not None:
        random.Random(shuffle).shuffle(points)
    return points


def _finite(name: str, range_: Range) -> list[Any]:
    if isinstance(range_, Int) and range_.high - range_.low >= MOST_VALUES * range_.step:
        values = None
    else:
        values = _subsets(range_) if isinstance(range_, Subset) else range_.grid()
    if values is None:
        raise SpecError(
            f"a grid needs finitely many values, and this {type(range_).__name__.lower()} range "
            "has too many; write {choice: [...]} or give a step, or use design: search",
            path=name,
        )
    return values


def one_of_each(spaces: Mapping[str, Space], seed: int) -> list[Point]:
    """Every variant once, at each of its levels of size.

    What variants share (a var) is drawn once and has one value for all.
    """
    coder = Coder(spaces)
    study = _in_memory(optuna.samplers.RandomSampler(seed=seed_of(seed, "one of each")))
    trial = study.ask()
    points = []
    for variant, space in spaces.items():
        draws: Draws = {}
        for name, range_ in space.items():
            known = coder.names[variant, name]
            parameters = distributions(known, range_)
            draws[name] = decode(
                known, range_, {p: trial._suggest(p, d) for p, d in parameters.items()}
            )
        levels = space[LEVEL].extremes() if LEVEL in space else []
        points += [Point(variant, draws | {LEVEL: level}) for level in levels]
        points += [] if levels else [Point(variant, draws)]
    return points


def _in_memory(sampler: BaseSampler, **settings: Any) -> optuna.Study:
    return optuna.create_study(
        storage=optuna.storages.InMemoryStorage(), sampler=sampler, **settings
    )


def with_seeds(points: Sequence[Point], seeds: Sequence[int]) -> list[Point]:
    """Each point once per model seed: first all points with the first seed, then with the next."""
    return [Point(point.variant, point.draws, seed) for seed in seeds for point in points]
