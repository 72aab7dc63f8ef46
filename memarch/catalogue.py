"""What is registered, as data: names, settings with types, defaults and docs, state sizes."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from memarch.components.errors import SpecError, did_you_mean
from memarch.components.registry import Entry

LAYERS = 2
"""Layers of the small model on which state sizes are measured."""

_REFERENCE = "module's docstring"


def describe(name: str | None = None) -> list[dict[str, Any]]:
    """All memories and tasks, or the one of that name."""
    from memarch.components.memory import memories
    from memarch.studies.tasks.base import tasks

    found: list[tuple[str, Entry[Any]]] = [("memory", entry) for entry in memories] + [
        ("task", entry) for entry in tasks
    ]
    if name is not None:
        names = [entry.name for _, entry in found]
        if name not in names:
            raise SpecError(f"no memory or task {name!r}; {did_you_mean(name, names)}")
        found = [(kind, entry) for kind, entry in found if entry.name == name]
    return [_describe(kind, entry) for kind, entry in found]


def _describe(kind: str, entry: Entry[Any]) -> dict[str, Any]:
    cls = entry.cls
    module = inspect.getdoc(sys.modules[cls.__module__]) or ""
    own = inspect.getdoc(cls) or ""
    memory = kind == "memory"
    site = getattr(cls, "site", None)
    return {
        "name": entry.name,
        "kind": kind,
        "summary": _summary(entry, module, own),
        "recurrence": ("per_segment" if site == "segment" else "per_layer") if memory else None,
        "site": site,
        "paper": entry.paper or None,
        "settings": _settings(cls.Settings, entry.defaults),
        "state_bytes": _state_bytes(entry) if memory else None,
        "forms": _forms(entry) if memory else [],
        "equations": f"{module}\n\n{_without_reference(own)}".strip(),
        "module": cls.__module__,
    }


def _forms(entry: Entry[Any]) -> list[dict[str, Any]]:
    """The two ways to write a memory in a study file: by its name, and by its parts."""
    from memarch.arch.spec import own_name

    parts = ("write", "read")
    store = {key: value for key, value in entry.defaults.items() if key not in parts}
    chosen = {key: entry.defaults[key] for key in parts if key in entry.defaults}
    return [{"type": entry.name}, {"store": {"type": own_name(entry)} | store} | chosen]


def _without_reference(own: str) -> str:
    """A class's docs without the line that sends the reader to the module's, which stand above."""
    return "\n".join(line for line in own.split("\n") if _REFERENCE not in line).strip()


def _summary(entry: Entry[Any], module: str, own: str) -> str:
    """The first line of its docs; what a preset sets beside it."""
    first = (own or module).split("\n")[0]
    if _REFERENCE in first:
        first = module.split("\n")[0]
    if not entry.defaults:
        return first
    from memarch.arch.spec import own_name

    given = [f"{key}: {_short(value)}" for key, value in entry.defaults.items()]
    return f"{first} ({own_name(entry)} with {', '.join(given)})"


def _short(value: Any) -> str:
    return str(value.get("type", value)) if isinstance(value, Mapping) else str(value)


def _state_bytes(entry: Entry[Any]) -> int | None:
    """Bytes of state per sample before anything is read; None where it grows from nothing."""
    import torch

    from memarch.arch.spec import parse_memory
    from memarch.components.memory import BuildContext

    context = BuildContext(
        hidden_size=64,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        num_layers=LAYERS,
        vocab_size=64,
        segment_length=16,
        norm_eps=1e-6,
        initializer_range=0.02,
        layer=None if entry.cls.site == "segment" else 0,
        head_weight=torch.zeros(64, 64),
    )
    try:
        memory = entry.cls(parse_memory({"type": entry.name}), context)
        state = memory.init_state(1, torch.zeros(1))
    except SpecError:  # a setting without a default
        return None
    copies = 1 if entry.cls.site == "segment" else LAYERS
    return copies * sum(t.numel() * t.element_size() for t in state.values()) or None


def _settings(cls: type[BaseModel], defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a key. A key that holds one of several maps has their rows under `options`."""
    rows = []
    for name, field in cls.model_fields.items():
        if name == "type":
            continue
        given = defaults.get(name)
        options = {label: _settings(member, _under(given, label)) for label, member in _maps(field)}
        required = field.is_required() and name not in defaults
        default = None if required else _default(field, given, bool(options))
        if (
            isinstance(default, str) and default in options
        ):  # first what it does unless told otherwise
            options = {default: options[default]} | options
        row = {
            "name": name,
            "type": " or ".join(options) if options else _type_name(field.annotation),
            "default": default,
            "required": required,
            "doc": " ".join((field.description or "").split()),
        }
        rows.append(row | ({"options": options} if options else {}))
    return rows


def _under(given: Any, label: str) -> Mapping[str, Any]:
    chosen = isinstance(given, Mapping) and given.get("type") == label
    return {k: v for k, v in given.items() if k != "type"} if chosen else {}


def _default(field: Any, given: Any, nested: bool) -> Any:
    if given is not None:
        return given.get("type", given) if nested and isinstance(given, Mapping) else given
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump()
        return value.get("type", value) if nested else value
    return value


def _maps(field: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    for member in _members(field.annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            tag = member.model_fields.get("type")
            names = get_args(tag.annotation) if tag is not None else ()
            if names:
                yield str(names[0]), member


def _members(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _type_name(annotation: Any) -> str:
    """The type as the YAML's author sees it: `int`, `all or list of int or Every`."""
    names = []
    for member in _members(annotation):
        origin = get_origin(member)
        if member is type(None):
            continue
        if origin is Literal:
            names += [str(value) for value in get_args(member)]
        elif origin in (list, tuple, dict):
            inner = [_type_name(part) for part in get_args(member) if part is not Ellipsis]
            kind = "map" if origin is dict else "list"
            names.append(f"{kind} of {inner[-1]}" if inner else kind)
        elif isinstance(member, type) and issubclass(member, BaseModel):
            names.append("{" + ", ".join(member.model_fields) + "}")
        else:
            names.append(getattr(member, "__name__", str(member)))
    return " or ".join(dict.fromkeys(names))
