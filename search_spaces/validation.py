"""Whether a study can run: every variant with every candidate value, and notes.

A choice is checked at all its values, other ranges at their ends; each range in turn, the others at
their first value, then all at their last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from memarch.arch.settings import join, show
from memarch.components.errors import SpecError
from memarch.search_spaces.document import Node
from memarch.search_spaces.first_points import first_points
from memarch.search_spaces.ranges import LEVEL
from memarch.search_spaces.resolution import DRAWN
from memarch.search_spaces.sizing import UnreachableError

if TYPE_CHECKING:
    from memarch.search_spaces.study_file import Resolved, StudyFile


def validate(file: StudyFile) -> list[str]:
    """A SpecError where something is wrong; notes about what looks unintended."""
    _check_budget(file)
    if file.study.get("design") == "grid" or _type(file.study.get("sampler")) == "grid":
        _check_finite(file)
    bases: dict[str, Resolved] = {}
    idle: dict[str, bool] = {}
    for variant in file.variants:
        bases[variant], changing = _check_values(file, variant)
        for name, changes in changing.items():
            idle[name] = idle.get(name, name != LEVEL) and not changes
    _check_first(file)
    _check_racing(file)
    return [
        *_twins(file, bases),
        *file.sizing.notes(),
        *(f"{name!r} is searched, but changes nothing" for name in idle if idle[name]),
        *_of_ablation(file),
        *_unused_vars(file, bases),
    ]


def _check_values(file: StudyFile, variant: str) -> tuple[Resolved, dict[str, bool]]:
    """The trial of the first values, and by name of a range whether its values change anything."""
    first, space = file.first_draws(variant), file.space(variant)
    base = file.resolve(variant, first)
    changing = {}
    for name, known in space.items():
        others = [value for value in known.extremes() if value != first[name]]
        found = [_hash_with(file, variant, first, name, value) for value in others]
        changing[name] = any(one != base.hash for one in found)
    with suppress(UnreachableError):
        file.resolve(variant, {name: known.extremes()[-1] for name, known in space.items()})
    return base, changing


def _hash_with(
    file: StudyFile, variant: str, first: Mapping[str, Any], name: str, value: Any
) -> str:
    """The hash with another value; empty where that is out of reach of its level of size."""
    try:
        return file.resolve(variant, {**first, name: value}).hash
    except UnreachableError:
        return ""
    except SpecError as error:
        message = f"{error.message.removesuffix(DRAWN)} (with {name}={show(value)})"
        raise SpecError(message, path=error.path, file=error.file, line=error.line) from None


def _twins(file: StudyFile, bases: Mapping[str, Resolved]) -> Iterator[str]:
    what = "variants" if file.ablation is None else "settings"
    known: dict[str, str] = {}
    for variant, base in bases.items():
        same = known.setdefault(base.hash, variant)
        if same != variant:
            yield f"{what} {same!r} and {variant!r} are the same model and training"


def _of_ablation(file: StudyFile) -> list[str]:
    if file.ablation is None:
        return []
    seeds = file.study["seeds"]["model"]
    levels = {name: file.sizing.levels(name) for name in file.named}
    return file.ablation.notes(len(seeds) if isinstance(seeds, list) else 1, levels)


def _unused_vars(file: StudyFile, bases: Mapping[str, Resolved]) -> list[str]:
    node = file.root.get("vars")
    names = list(node.value) if node is not None else []
    used = {name for base in bases.values() for name in base.spec["vars"]}
    return [f"vars.{name} is not used by any variant" for name in names if name not in used]


def _check_budget(file: StudyFile) -> None:
    """A search draws on until something stops it."""
    study = file.study
    searched = len(file.variants) > 1 or any(file.space(name) for name in file.variants)
    endless = study.get("design") == "search" and _type(study.get("sampler")) != "grid"
    if searched and endless and not study.get("budget"):
        origin = (file.root.get("study") or file.root).origin
        raise origin.error(
            "is required for a search: {trials: 24}, or hours or flops", "study.budget"
        )


def _check_finite(file: StudyFile) -> None:
    for variant in file.variants:
        for path, known in file.used(variant).items():
            if known.grid() is None:
                raise file.written(variant, path).origin.error(
                    "a grid needs finitely many values: give the range a `step`, or a `choice`",
                    join(*path),
                )


def _check_first(file: StudyFile) -> None:
    """Points that are to run first lie in the space."""
    given = file.study.get("first") or []
    try:
        first_points(given, {variant: file.space(variant) for variant in file.variants})
    except SpecError as error:
        raise _in_study(file, join("first", error.path), error.message) from None


def _check_racing(file: StudyFile) -> None:
    """Racing has seeds to save. A trial has one seed, so this is about the file."""
    racing, model = file.study.get("racing"), file.study.get("seeds", {}).get("model")
    count = len(model) if isinstance(model, list) else 1
    if racing and count <= racing["after"]:
        raise _in_study(
            file,
            "racing",
            f"saves seeds after the first {racing['after']}, and seeds.model has {count}: "
            "give more of them, such as [1, 2, 3, 4, 5]",
        )


def _in_study(file: StudyFile, path: str, message: str) -> SpecError:
    """An error about a key of the section `study`, with the place where it was written."""
    keys = ("study", *(int(key) if key.isdigit() else key for key in path.split(".")))
    origin = file.root.origin
    for patch in (file.root, *file.overrides):
        found = (node for n in range(len(keys), 1, -1) if (node := patch.get(*keys[:n])))
        origin = next(found, Node({}, origin)).origin
    return origin.error(message, join("study", path))


def _type(settings: Any) -> Any:
    return settings.get("type") if isinstance(settings, Mapping) else settings
