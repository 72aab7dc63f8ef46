"""From plain data to typed settings: what pydantic finds wrong becomes one SpecError, with its key.

Besides pydantic's own rules: text like `64KiB` counts as a number where a number is expected, and
nowhere else; a `LocalPath` is looked up in the folders that the caller names.
"""

from __future__ import annotations

import copy
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ValidationInfo

from memarch.arch.units import parse_duration, parse_number
from memarch.components.errors import SpecError, did_you_mean

M = TypeVar("M", bound=BaseModel)
Where = tuple[str | int, ...]


def parse(cls: type[M], raw: object, path: str = "", *, folders: Sequence[Path] = ()) -> M:
    """Validate plain data (maps, lists, scalars). `path` is where it stands in its document."""
    if not isinstance(raw, Mapping):
        raise SpecError(f"must be a map of settings, got {show(raw)}", path=path)
    data = copy.deepcopy(dict(raw))
    while True:
        try:
            # By way of JSON, because strict mode then takes a list where a tuple is declared.
            return cls.model_validate_json(json.dumps(data), context={"folders": tuple(folders)})
        except ValidationError as error:
            details = error.errors(include_url=False)
            if not _convert_units(cls, data, details):
                raise _spec_error(cls, data, details, path) from None


def join(*parts: str | int) -> str:
    """`("model", "", "layers", 0)` -> `model.layers.0`."""
    return ".".join(str(part) for part in parts if part != "")


def show(value: object) -> str:
    """A value as the user wrote it, shortened."""
    if isinstance(value, Mapping):
        return "a map" if value else "an empty map"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _existing(text: str, info: ValidationInfo) -> str:
    tried = [(folder / text).expanduser() for folder in (info.context or {}).get("folders", ())]
    tried = tried or [Path(text).expanduser()]
    for candidate in tried:
        if candidate.exists():
            return str(candidate.resolve())
    places = " or ".join(dict.fromkeys(str(path.parent) for path in tried))
    raise SpecError(f"there is no file or folder {text!r} (looked in {places})")


def _seconds(value: object) -> object:
    seconds = parse_duration(value) if isinstance(value, str) else None
    return value if seconds is None else seconds


def _hours(value: object) -> object:
    seconds = parse_duration(value) if isinstance(value, str) else None
    return value if seconds is None else seconds / 3600


LocalPath = Annotated[str, AfterValidator(_existing)]
"""An existing file or folder, relative to the file that names it or to the current folder."""
Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
"""A duration: a number of seconds, or text such as `12h`."""
Hours = Annotated[float, BeforeValidator(_hours), Field(gt=0)]
"""A duration: a number of hours, or text such as `90min`."""


def _convert_units(cls: type[BaseModel], data: dict[str, Any], details: list[ErrorDetails]) -> bool:
    """Replace texts that failed as numbers by the numbers they mean; whether there were any."""
    changed = False
    for detail in details:
        if detail["type"] in ("int_type", "float_type") and isinstance(detail["input"], str):
            number = parse_number(detail["input"])
            if number is None or (detail["type"] == "int_type" and not isinstance(number, int)):
                continue
            where = _locate(cls, detail["loc"])[0]
            changed = _replace(data, where, detail["input"], number) or changed
    return changed


def _replace(data: Any, where: Where, old: object, new: object) -> bool:
    for part in where[:-1]:
        data = data[part]
    if data[where[-1]] != old:
        return False
    data[where[-1]] = new
    return True


def _spec_error(
    cls: type[BaseModel], data: dict[str, Any], details: list[ErrorDetails], path: str
) -> SpecError:
    """The one error that helps most: a wrong name first, then what went wrong deepest."""
    found = [(*_locate(cls, detail["loc"]), detail) for detail in details]
    found.sort(key=lambda item: (item[2]["type"] != "extra_forbidden", -len(item[0])))
    where, owner, detail = found[0]
    kind, context = detail["type"], detail.get("ctx", {})
    cause = context.get("error")
    if kind == "extra_forbidden" and owner is not None:
        name = str(where[-1])
        return SpecError(
            f"unknown key {name!r}{_of(owner)}; {did_you_mean(name, _given(owner))}",
            path=join(path, *where),
        )
    if isinstance(cause, SpecError):
        return SpecError(cause.message, path=join(path, *where, cause.path))
    if kind == "missing":
        return SpecError("is required, and is not given", path=join(path, *where))
    if kind == "union_tag_not_found":
        known = [name for member in _members(cls, detail["loc"]) for name in _names(member)]
        key = str(context["discriminator"]).strip("'")
        message = f"is required; known: {', '.join(sorted(known))}" if known else "is required"
        return SpecError(message, path=join(path, *where, key))
    if kind == "union_tag_invalid":
        key = str(context["discriminator"]).strip("'")
        known = [name.strip().strip("'") for name in str(context["expected_tags"]).split(",")]
        tag = str(context["tag"])
        return SpecError(
            f"unknown {key} {tag!r}; {did_you_mean(tag, known)}", path=join(path, *where, key)
        )
    if kind in ("value_error", "assertion_error"):
        return SpecError(str(cause), path=join(path, *where))
    same = [item[2] for item in found if item[0] == where]
    expected = list(dict.fromkeys(_expected(item) for item in same))
    message = f"must be {' or '.join(expected)}, got {show(detail['input'])}"
    if len(same) == 1 and kind == "literal_error" and isinstance(detail["input"], str):
        literals = [name.strip("'") for name in _literals(context)]
        near = did_you_mean(detail["input"], literals)
        message += f"; {near.split(' (')[0]}" if near.startswith("did") else ""
    return SpecError(message, path=join(path, *where))


def _expected(detail: ErrorDetails) -> str:
    context: Mapping[str, Any] = detail.get("ctx", {})
    kind = detail["type"]
    if kind == "literal_error":
        return " or ".join(_literals(context))
    if kind in _BOUNDS:
        word, key = _BOUNDS[kind]
        return f"{word} {context[key]}"
    if kind in ("too_short", "too_long"):
        least = kind == "too_short"
        count = context["min_length" if least else "max_length"]
        return (
            f"a {detail['msg'].split()[0].lower()} of {'at least' if least else 'at most'} {count}"
        )
    if kind == "string_too_short":
        return "text that is not empty"
    if kind == "string_pattern_mismatch":
        return f"text like {context['pattern']}"
    return _EXPECTED.get(kind) or detail["msg"].removeprefix("Input should be ")


def _literals(context: Mapping[str, Any]) -> list[str]:
    return str(context["expected"]).replace(" or ", ", ").split(", ")


_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}
_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "none_required": "null",
}


def _given(owner: type[BaseModel]) -> list[str]:
    """The keys that a user may give: not those that the schema leaves out."""
    return [
        name
        for name, info in owner.model_fields.items()
        if "SkipJsonSchema" not in {type(mark).__name__ for mark in info.metadata}
    ]


def _of(owner: type[BaseModel]) -> str:
    names = _names(owner)
    return f" for type {names[0]!r}" if names else ""


def _names(owner: type[BaseModel]) -> list[str]:
    """The values of `type` that choose this class among its alternatives."""
    declared = owner.model_fields.get("type")
    annotation = declared.annotation if declared is not None else None
    return [str(name) for name in get_args(annotation)] if get_origin(annotation) is Literal else []


def _locate(annotation: Any, location: Where) -> tuple[Where, type[BaseModel] | None]:
    """pydantic's location without its labels for unions, and the class that was asked last."""
    members = list(_alternatives(annotation))
    if len(members) > 1 and location:
        tagged = [member for member in members if _tagged(member, str(location[0]))]
        results = [_locate(member, location[1:]) for member in tagged or members]
        return max(results, key=lambda result: (len(result[0]), result[1] is not None))
    if not members or not location:
        return (), None
    part, rest = location[0], location[1:]
    member = members[0]
    if isinstance(member, type) and issubclass(member, BaseModel):
        known = member.model_fields.get(str(part))
        if known is None:
            return (part,), member
        inner, owner = _locate(known.annotation, rest)
        return (part, *inner), owner or member
    arguments = get_args(member)
    origin = get_origin(member)
    if rest == ("[key]",):
        return (part,), None
    if isinstance(origin, type) and issubclass(origin, Mapping | Sequence) and arguments:
        inner, owner = _locate(arguments[-1 if issubclass(origin, Mapping) else 0], rest)
        return (part, *inner), owner
    return (), None


def _members(annotation: Any, location: Where) -> Iterator[type[BaseModel]]:
    """The classes that may stand at a location."""
    members = list(_alternatives(annotation))
    if not location:
        yield from (m for m in members if isinstance(m, type) and issubclass(m, BaseModel))
        return
    for member in members:
        if isinstance(member, type) and issubclass(member, BaseModel):
            known = member.model_fields.get(str(location[0]))
            if known is not None:
                yield from _members(known.annotation, location[1:])
            elif len(members) > 1 and _tagged(member, str(location[0])):
                yield from _members(member, location[1:])
        elif get_args(member):
            yield from _members(get_args(member)[-1], location[1:])


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The members of a union, but None; the annotation itself where it is none."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            if member is not type(None):
                yield from _alternatives(member)
    elif annotation is not None:
        yield annotation


def _tagged(member: Any, tag: str) -> bool:
    """Whether pydantic labels this member of a union with `tag`."""
    if isinstance(member, type) and issubclass(member, BaseModel):
        return tag in _names(member) or member.__name__ in tag
    origin: Any = get_origin(member) or member
    name = "literal" if origin is Literal else getattr(origin, "__name__", "")
    return bool(name) and tag.split("[")[0].endswith(name)
