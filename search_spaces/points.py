"""Sweeps of evaluations and stages of training as concrete specs: what differs from the trial's."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memarch.arch.settings import join
from memarch.components.errors import did_you_mean
from memarch.search_spaces.document import KeyPath
from memarch.search_spaces.drawn import Drawn
from memarch.search_spaces.paths import get
from memarch.search_spaces.sampling import sampled_values


def with_points(drawn: Drawn) -> dict[str, Any]:
    """The evaluations; each with `points`, `[{name, set, spec}]`, one for every combination."""
    evaluations = drawn.spec.get("eval", {})
    return {
        name: dict(settings) | {"points": list(_points(drawn, name, settings))}
        for name, settings in evaluations.items()
    }


def _points(drawn: Drawn, name: str, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    place = f"eval.{name}.sweep"
    axes: dict[str, list[Any]] = {}
    for path, values in (settings.get("sweep") or {}).items():
        where = f"{place}.{path}"
        _check_target(drawn, path, ("vars", "task", "model"), where)
        _check_memory(drawn, path, where)
        if not path.startswith("vars.") or path[5:] in drawn.resolver.used_vars:
            axes[path] = values
    for combination in itertools.product(*axes.values()) if axes else ():
        changes = dict(zip(axes, combination, strict=True))
        at = drawn.changed(changes, place).spec
        changed = {key: at[key] for key in ("task", "model") if at[key] != drawn.spec[key]}
        own = at["eval"][name]["task"]
        if settings["task"] != "same":  # its own task counts, not the training task
            changed.pop("task", None)
        if own != settings["task"]:
            changed["task"] = own
        yield {"name": _point_name(changes), "set": changes, "spec": changed}


def concrete_stages(
    drawn: Drawn, sample: Sequence[Any], stage_keys: Sequence[str]
) -> list[dict[str, Any]]:
    """The stages of training with what each sets, by key path, as values.

    `sample`: what training draws for every batch without them. `stage_keys`: what a stage may
    change under `train`.
    """
    stages = drawn.spec.get("train", {}).get("stages") or []
    return [
        _concrete(drawn, index, stage, sample, stage_keys) for index, stage in enumerate(stages)
    ]


def _concrete(
    drawn: Drawn,
    index: int,
    stage: Mapping[str, Any],
    sample: Sequence[Any],
    stage_keys: Sequence[str],
) -> dict[str, Any]:
    place = f"train.stages.{index}.set"
    for path in stage["set"]:
        _check_target(drawn, path, ("vars", "task", "model", "train"), f"{place}.{path}")
    there = drawn.changed(stage["set"], place)
    changes = dict(_difference(drawn.spec, there.spec, ()))
    for path in changes:
        section, key = path.split(".")[:2]
        if section == "train" and key not in stage_keys:
            known = ", ".join(f"train.{name}" for name in stage_keys)
            raise drawn.error(
                f"train.{key} holds for the whole run; a stage may change {known}", place
            )
    own = sampled_values(there)
    if own != sample:
        changes |= {
            join(*path): get(there.spec, path)
            for path in drawn.resolver.sampled
            if path not in there.resolver.sampled
        }
        changes["train.sample"] = own
    return dict(stage) | {"set": changes}


def _check_target(drawn: Drawn, path: str, sections: Sequence[str], where: str) -> None:
    section, _, rest = path.partition(".")
    root = drawn.resolver.root
    if section not in sections or not rest:
        raise drawn.error(f"must be a key path under {', '.join(sections)}, got {path!r}", where)
    if section == "vars" and root.get("vars", rest) is None:
        variables = root.get("vars")
        known = list(variables.value) if variables is not None else []
        raise drawn.error(f"there is no var {rest!r}; {did_you_mean(rest, known)}", where)


def _check_memory(drawn: Drawn, path: str, where: str) -> None:
    """A sweep inside a memory needs the memory; only the whole of one can be added."""
    keys = path.split(".")
    memories = drawn.resolver.values["model"].get("memory") or {}
    if keys[:2] != ["model", "memory"] or len(keys) < 4 or keys[2] in memories:
        return
    who = f"variant {drawn.variant!r}" if drawn.variant else "the model"
    hint = (
        "put the sweep into the variants that have it"
        if drawn.variant
        else did_you_mean(keys[2], memories)
    )
    raise drawn.error(
        f"{who} has nothing at {join(*keys[:3])} for the sweep to change; {hint}", where
    )


def _difference(
    old: Mapping[str, Any], new: Mapping[str, Any], path: KeyPath
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
