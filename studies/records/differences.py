"""What differs between two studies or two trials: settings by key path, and results.

Settings are compared as they are resolved, so that a default which one file writes out is no
difference. Of a study every variant is compared with what is searched as ranges; what differs in
all variants alike is told once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memarch.arch.settings import join
from memarch.search_spaces.ranges import as_written
from memarch.studies.results.leaderboard import finished, objectives, ranked, score

if TYPE_CHECKING:
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
    """What differs between two study files: settings of the study, variants, spaces, the rest."""
    found = list(differences({"study": _unnamed(old.study)}, {"study": _unnamed(new.study)}))
    for name in old.variants:
        if name not in new.variants:
            found.append(Difference(f"variants.{name}", {}, None, "new"))
    for name in new.variants:
        if name not in old.variants:
            found.append(Difference(f"variants.{name}", None, {}, "old"))
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


def _in_all(one: Difference, by_variant: Mapping[str, Sequence[Difference]]) -> bool:
    return all(one in rows for rows in by_variant.values())


def variant_settings(file: StudyFile, name: str) -> Json:
    """A variant as it is resolved, what is searched as ranges in place of values."""
    space = file.space(name)
    first = {parameter: range_.extremes()[0] for parameter, range_ in space.items()}
    resolved = file.resolve(name, first)
    spec = _plain({k: v for k, v in resolved.record.items() if k not in ("study", "vars")})
    drawn = [path.split(".") for path, origin in resolved.origins.items() if origin == "draw"]
    for keys in drawn:
        _remove(spec, keys)
    return spec | {"search": {parameter: as_written(r) for parameter, r in space.items()}}


def _remove(place: Any, keys: Sequence[str]) -> None:
    for key in keys[:-1]:
        if not isinstance(place, dict) or key not in place:
            return
        place = place[key]
    if isinstance(place, dict):
        place.pop(keys[-1], None)


def _unnamed(study: Mapping[str, Any]) -> Json:
    return {key: value for key, value in study.items() if key not in ("name", "question")}


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
    """The best of two studies' documents by variant: `{"variant", "metric", "old", "new"}`."""
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
    rows = ranked(document) if next(iter(goals)) == metric else finished(document)
    for trial in rows:
        value = score(trial, metric)
        if value is None or trial["state"] != "complete":
            continue
        known = best.get(trial["variant"], value)
        better = max if goals[metric] == "maximize" else min
        best[trial["variant"]] = better(known, value)
    return best


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_told(one)}" for key, one in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
