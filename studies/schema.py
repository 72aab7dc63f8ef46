"""The JSON Schema of a study file, for editors: completion, descriptions, mistakes underlined.

Built from the typed settings and the registries. Wherever a value may stand, so may a reference
(`$name`, `=expression`), and where a search may vary it a range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from memarch.arch.backbone_keys import model_types
from memarch.arch.spec import ModelSpec, own_name
from memarch.components.memory import memories
from memarch.components.registry import Registry
from memarch.search_spaces.resolution import RANGED
from memarch.studies.spec import (
    EvalSettings,
    ResourceSettings,
    StudySettings,
    TrainSettings,
    TrialSpec,
)
from memarch.studies.tasks.base import tasks

Json = dict[str, Any]

REFERENCE: Json = {
    "type": "string",
    "pattern": r"^[$=]",
    "description": "$name is a var, =hidden_size // 8 computes, $env.NAME is the environment's",
}
UNIT: Json = {
    "type": "string",
    "pattern": r"^[-+]?[0-9._eE+-]+\s*[A-Za-z%]+$",
    "description": "a number with a unit: 64KiB, 3.2B, 5%, 12h",
}
ENDS: Json = {"type": "array", "minItems": 2, "maxItems": 2}
VALUES: Json = {"type": "array", "minItems": 1}


def json_schema() -> Json:
    """The schema of a study file, with everything that is registered now."""
    builder = _Builder()
    properties = {
        "study": builder.section(StudySettings, "study"),
        "task": builder.choice(tasks, "task"),
        "model": builder.model(),
        "train": builder.section(TrainSettings, "train"),
        "eval": {"type": "object", "additionalProperties": builder.evaluation()},
        "resources": builder.section(ResourceSettings, "resources"),
        "vars": {"type": "object", "description": "named values and ranges, used as $name"},
        "variants": {
            "type": "object",
            "description": "named patches over the whole file",
            "additionalProperties": {"type": "object"},
        },
        "extends": {
            "description": "a file that this one lies over, or {study: NAME, trial: best}",
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {"study": {"type": "string"}, "trial": {}},
                    "required": ["study"],
                    "additionalProperties": False,
                },
            ],
        },
        "plugins": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Python files of your own that register memories or tasks",
        },
    }
    for name in TrialSpec.sections:
        described = TrialSpec.model_fields[name].description
        if described:
            properties[name].setdefault("description", described)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "memarch study",
        "type": "object",
        "properties": properties,
        "patternProperties": {r"\.": {}},
        "additionalProperties": False,
        "$defs": {"range": _range(), "reference": REFERENCE, "unit": UNIT} | builder.definitions,
    }


class _Builder:
    """Collects the definitions that the sections refer to."""

    def __init__(self) -> None:
        self.definitions: Json = {}

    def section(self, settings: type[BaseModel], name: str, kind: str | None = None) -> Json:
        """A class of settings; `kind` is the name that `type` takes when it is a preset's."""
        schema = settings.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        ranged = name.split(".")[0] in RANGED
        for key, inner in schema.pop("$defs", {}).items():
            self.definitions[f"{name}.{key}"] = _loosened(inner, ranged)
        schema = _loosened(schema, ranged)
        schema.pop("title", None)
        if kind is not None:
            schema["properties"]["type"] = {"const": kind}
            schema["required"] = sorted({*schema.get("required", ()), "type"})
        return schema

    def choice(self, registry: Registry[Any], name: str) -> Json:
        """Whatever a registry holds, chosen by `type`."""
        options = []
        for entry in registry:
            settings = entry.cls.Settings
            schema = self.section(settings, f"{name}.{entry.name}", entry.name)
            given = [key for key in schema.get("required", ()) if key not in entry.defaults]
            schema["required"] = given
            if entry.name != own_name(entry):
                schema["description"] = f"preset of {own_name(entry)}"
            self.definitions[f"{name}.{entry.name}"] = schema
            options.append({"$ref": f"#/$defs/{name}.{entry.name}"})
        return {"anyOf": options}

    def model(self) -> Json:
        """The section `model`, its memories in both forms."""
        memory = self.choice(memories, "model.memory")
        axes = {
            "type": "object",
            "required": ["store"],
            "properties": {"store": {"type": "object"}, "write": {}, "read": {}, "layers": {}},
        }
        memory["anyOf"] += [axes, {"$ref": "#/$defs/range"}, {"$ref": "#/$defs/reference"}]
        schema = self.section(ModelSpec, "model")
        schema["properties"]["memory"] = {"type": "object", "additionalProperties": memory}
        schema["properties"]["backbone"] = {
            "type": "object",
            "properties": {
                "type": {"anyOf": [{"enum": list(model_types())}, *_stand_ins(ranged=True)]},
                "pretrained": {},
                "revision": {},
                "keep_layers": {},
            },
            "anyOf": [{"required": ["type"]}, {"required": ["pretrained"]}],
        }
        return schema

    def evaluation(self) -> Json:
        """One evaluation, as a user writes it."""
        schema = self.section(EvalSettings, "eval")
        del schema["properties"]["points"]
        return schema


def _range() -> Json:
    flag, one = {"type": "boolean"}, {"additionalProperties": False, "type": "object"}
    forms: list[Json] = [
        {"properties": {"choice": VALUES}, "required": ["choice"]},
        {"properties": {"int": ENDS, "log": flag, "step": {}}, "required": ["int"]},
        {"properties": {"float": ENDS, "log": flag, "step": {}}, "required": ["float"]},
        {"properties": {"subset": VALUES, "size": {}}, "required": ["subset"]},
    ]
    return {"description": "values that a search draws from", "anyOf": [one | f for f in forms]}


def _stand_ins(*, ranged: bool) -> list[Json]:
    return [{"$ref": "#/$defs/reference"}] + [{"$ref": "#/$defs/range"}] * ranged


def _loosened(schema: Json, ranged: bool) -> Json:
    """The schema with stand-ins at every value, and no demand that one form alone fits."""
    result = dict(_plain(schema))
    if "properties" in result:
        result["properties"] = {
            key: _value(_loosened(inner, ranged), ranged)
            for key, inner in result["properties"].items()
        }
    for key in ("items", "additionalProperties"):
        if isinstance(result.get(key), Mapping):
            result[key] = _value(_loosened(result[key], ranged), ranged)
    if "anyOf" in result:
        result["anyOf"] = [_loosened(inner, ranged) for inner in result["anyOf"]]
    if "prefixItems" in result:
        result["prefixItems"] = [
            _value(_loosened(i, ranged), ranged) for i in result["prefixItems"]
        ]
    return result


def _value(schema: Json, ranged: bool) -> Json:
    """A schema of a value, or what may stand in for it."""
    described: Json = {key: schema.pop(key) for key in ("description", "default") if key in schema}
    options = schema["anyOf"] if set(schema) == {"anyOf"} else [schema]
    if any(_is_number(option) for option in options):
        options = [*options, {"$ref": "#/$defs/unit"}]
    stand_ins = _stand_ins(ranged=ranged)
    return described | {"anyOf": [*options, *stand_ins]}


def _is_number(schema: Json) -> bool:
    return schema.get("type") in ("integer", "number")


def _plain(schema: Json) -> Iterator[tuple[str, Any]]:
    """Without titles, and `anyOf` for `oneOf`: alternatives need not exclude each other here."""
    for key, value in schema.items():
        if key == "oneOf":
            yield "anyOf", value
        elif key not in ("title", "discriminator"):
            yield key, value
