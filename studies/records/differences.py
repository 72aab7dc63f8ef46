"""What differs between two studies or two trials: settings by key path, and results.

Settings are compared as they are resolved, so that a default which one file writes out is no
difference. Of a study every variant is compared with what is searched or solved for as ranges; what
differs in all variants alike is told once. A variant that only one study has is told as it was
written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from memarch.arch.settings import join
from memarch.search_spaces.patches import merge
from memarch.search_spaces.ranges import as_written
from memarch.studies.results.leaderboard import objectives
from memarch.studies.results.replicates import replicates

if TYPE_CHECKING:
    from memarch.search_spaces.document import Node
    from memarch.search_spaces.study_file import StudyFile

Json = dict[str, Any]

_COMPUTED = ("points", "plugins")
"""What `resolve` adds to a spec, or what names copies of files."""


@dataclass(frozen=True)
class Difference:
    """One key path with its two values; a side that has no such key has `absent`."""

    path: str
    old: Any
    new: Any
    absent: str = ""
    """`old` or `new` where that side has no such key."""

    def __str__(self) -> str:
        old = "-" if self.absent == "old" else _told(self.old)
        new = "-" if self.absent == "new" else _told(self.new)
        return f"{self.path}: {old} -> {new}"


def differences(old: Any, new: Any, path: str = "") -> Iterator[Difference]:
    """What differs between two plain values, in the order of the first."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            where = join(path, key)
            if key not in new:
                yield Difference(where, old[key], None, "new")
            elif key not in old:
                yield Difference(where, None, new[key], "old")
            else:
                yield from differences(old[key], new[key], where)
    elif old != new or type(old) is not type(new):
        yield Difference(path, old, new)


def spec_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """What differs between the specs of two trials."""
    return list(differences(_plain(old), _plain(new)))


def study_differences(old: StudyFile, new: StudyFile) -> list[Difference]:
    """What differs between two study files: the sections about all trials, variants, the rest."""
    found = list(differences(_sections(old), _sections(new)))
    found += list(differences(_only(old, new), _only(new, old), "variants"))
    shared = [name for name in old.variants if name in new.variants]
    by_variant = {
        name: list(differences(variant_settings(old, name), variant_settings(new, name)))
        for name in shared
    }
    everywhere = [
        one for one in (by_variant[shared[0]] if shared else []) if _in_all(one, by_variant)
    ]
    found += everywhere
    for name in shared:
        for one in by_variant[name]:
            if one not in everywhere:
                path = join("variants", name, one.path) if name else one.path
                found.append(Difference(path, one.old, one.new, one.absent))
    return found


def _sections(file: StudyFile) -> Json:
    """`study`, and those of `match`, `scale` and `ablation` that the file has."""
    sizing, ablation = file.sizing, file.ablation
    study = {key: value for key, value in file.study.items() if key not in ("name", "question")}
    given = {"match": sizing.match, "scale": sizing.scale}
    given["ablation"] = None if ablation is None else ablation.about()
    return {"study": study} | {name: section for name, section in given.items() if section}


def _only(file: StudyFile, other: StudyFile) -> Json:
    """Variants that the other file lacks, as they were written; settings are under `ablation`."""
    if file.ablation is not None:
        return {}
    names = [name for name in file.patches if name not in other.named]
    return {name: _written(file.patches[name]) for name in names}


def _written(patches: Sequence[Node]) -> Any:
    return reduce(merge, patches).plain()


def _in_all(one: Difference, by_variant: Mapping[str, Sequence[Difference]]) -> bool:
    return all(one in rows for rows in by_variant.values())


def variant_settings(file: StudyFile, name: str) -> Json:
    """A variant as it is resolved, what is searched or solved for as ranges in place of values."""
    space = file.space(name)
    first = {parameter: range_.extremes()[0] for parameter, range_ in space.items()}
    resolved = file.resolve(name, first)
    about_all = ("study", "vars", "match", "scale")
    spec = _plain({k: v for k, v in resolved.record.items() if k not in about_all})
    ranged = {"draw"} | ({resolved.sized.source} if resolved.sized else set())
    for path, origin in resolved.origins.items():
        if origin in ranged:
            _remove(spec, path.split("."))
    solved = {join(*path): as_written(one) for path, one in file.solves(name).items()}
    spec["search"] = {parameter: as_written(range_) for parameter, range_ in space.items()}
    return spec | ({"solve": solved} if solved else {})


def _remove(place: Any, keys: Sequence[str]) -> None:
    for key in keys[:-1]:
        if not isinstance(place, dict) or key not in place:
            return
        place = place[key]
    if isinstance(place, dict):
        place.pop(keys[-1], None)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if k not in _COMPUTED}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


# Results


def result_rows(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Json]:
    """Metrics of two trials side by side: `{"metric", "old", "new"}`."""
    names = dict.fromkeys([*old, *new])
    return [{"metric": name, "old": old.get(name), "new": new.get(name)} for name in names]


def best_rows(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Json]:
    """The best setting of each variant in two studies' documents, by its mean over seeds.

    `{"variant", "metric", "old", "new"}`.
    """
    rows = []
    for metric in dict.fromkeys([*objectives(old), *objectives(new)]):
        sides = [_best(document, metric) for document in (old, new)]
        for variant in dict.fromkeys([*sides[0], *sides[1]]):
            values = {"old": sides[0].get(variant), "new": sides[1].get(variant)}
            rows.append({"variant": variant, "metric": metric} | values)
    return rows


def _best(document: Mapping[str, Any], metric: str) -> dict[str, float]:
    goals = objectives(document)
    if metric not in goals:
        return {}
    best: dict[str, float] = {}
    better = max if goals[metric] == "maximize" else min
    for setting in replicates(document):
        value = setting.metrics().get(metric)
        if value is not None:
            best[setting.variant] = better(best.get(setting.variant, value), value)
    return best


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_told(one)}" for key, one in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
