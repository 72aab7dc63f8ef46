"""`memarch schema`: the JSON Schema of study files, for completion and checks in an editor.

It is made from the settings' own types. Where ranges may stand, every value may also be a range, a
`$name` or an `=expression`. An editor that accepts a file has not replaced `memarch validate`,
which knows how settings must fit together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from memarch.arch.spec import Impl, ModelSpec, Schedule, own_name
from memarch.components.memory import memories
from memarch.components.registry import Entry
from memarch.search_spaces.ablation import AblationSettings
from memarch.studies.settings.sizes import MatchSettings, ScaleSettings
from memarch.studies.settings.spec import (
    EvalSettings,
    ResourceSettings,
    StudySettings,
    TrainSettings,
)
from memarch.studies.tasks.base import tasks

Json = dict[str, Any]

_LIST = {"type": "array", "minItems": 1}
_ENDS = {"type": "array", "minItems": 2, "maxItems": 2}
RANGES: Json = {
    "choice": {"choice": {**_LIST, "description": "One of these values."}},
    "int": {
        "int": {**_ENDS, "description": "An integer between these, ends included."},
        "log": {"type": "boolean"},
        "step": {"type": "integer", "minimum": 1},
    },
    "float": {
        "float": {**_ENDS, "description": "A number between these."},
        "log": {"type": "boolean"},
        "step": {"type": "number", "exclusiveMinimum": 0},
    },
    "subset": {
        "subset": {**_LIST, "description": "Some of these values, in their order."},
        "size": {"description": "How many: a number, or [low, high]."},
    },
    "sample": {"sample": {"type": "object", "description": "Drawn anew in every batch."}},
    "solve": {
        "solve": {
            "anyOf": [_ENDS, {"type": "object"}],
            "description": "A size that `match` solves for: [low, high], or any finite range.",
        },
        "step": {"type": "integer", "minimum": 1},
    },
}


def study_schema() -> Json:
    """The whole schema."""
    definitions, references = _sections()
    definitions |= {
        "Range": {
            "anyOf": [
                {
                    "type": "object",
                    "properties": properties,
                    "required": [name],
                    "additionalProperties": False,
                }
                for name, properties in RANGES.items()
            ]
        },
        "Reference": {
            "type": "string",
            "pattern": r"^(\$|=)",
            "description": "`$name` of a var, `$env.NAME`, or an `=expression`.",
        },
        "Quantity": {
            "type": "string",
            "pattern": r"^[0-9.]+ ?[A-Za-z%]+$",
            "description": "A number with a unit: 64KiB, 12h, 3.2B, 5%.",
        },
    }
    sections = {
        "study": references[StudySettings],
        "task": _one_of("task", list(tasks), definitions, references),
        "model": _model(definitions, references),
        "train": references[TrainSettings],
        "eval": {"type": "object", "additionalProperties": references[EvalSettings]},
        "resources": references[ResourceSettings],
        "match": _by_cost(definitions, references[MatchSettings], ("cost", "levels")),
        "scale": _by_cost(definitions, references[ScaleSettings], ("cost", "level")),
    }
    definitions |= {f"section_{name}": section for name, section in sections.items()}
    places = {name: {"$ref": f"#/$defs/section_{name}"} for name in sections}
    memory = sections["model"]["properties"]["memory"]
    dotted = {
        f"^({'|'.join(sections)}|vars)\\.": {},
        "^model\\.memory$": memory,
        "^model\\.memory\\.[^.]+$": {"$ref": "#/$defs/memory"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "memarch study",
        "type": "object",
        "properties": {
            **places,
            "vars": {
                "type": "object",
                "description": "Named values and ranges: one parameter, one column each.",
            },
            "variants": {
                "type": "object",
                "description": "Named patches over the whole file.",
                "additionalProperties": {
                    "type": "object",
                    "properties": {
                        **places,
                        "vars": {"type": "object"},
                        "extends": {
                            "type": "object",
                            "description": "{study: NAME, trial: best}: its model and training.",
                        },
                    },
                    "patternProperties": dotted,
                    "additionalProperties": False,
                },
            },
            "ablation": references[AblationSettings],
            "extends": {
                "description": "A file, or {study: NAME, trial: best}, that this one changes."
            },
            "plugins": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Python files that register your own memories and tasks.",
            },
        },
        "patternProperties": dotted,
        "additionalProperties": False,
        "$defs": definitions,
    }


def _by_cost(definitions: Json, reference: Json, replaced: tuple[str, str]) -> Json:
    """A section whose cost is written as the key of its value: `{cost/parameters: 160M}`."""
    made = definitions[reference["$ref"].rpartition("/")[2]]
    properties = {name: part for name, part in made["properties"].items() if name not in replaced}
    return {
        **{key: made[key] for key in ("type", "description")},
        "properties": properties,
        "patternProperties": {"^cost/": {"type": ["array", "number", "string"]}},
        "additionalProperties": False,
    }


def _sections() -> tuple[Json, dict[type[BaseModel], Json]]:
    """The definitions of all settings, and a reference to each class that a section needs."""
    classes: list[type[BaseModel]] = [
        AblationSettings,
        StudySettings,
        TrainSettings,
        EvalSettings,
        ResourceSettings,
    ]
    classes += [MatchSettings, ScaleSettings]
    classes += [entry.cls.Settings for registry in (memories, tasks) for entry in registry]
    found, schema = models_json_schema(
        [(cls, "validation") for cls in dict.fromkeys(classes)], ref_template="#/$defs/{model}"
    )
    definitions = {name: _relaxed(part) for name, part in schema["$defs"].items()}
    return definitions, {cls: found[cls, "validation"] for cls in classes}


def _relaxed(schema: Json) -> Json:
    """The same with references, ranges and units wherever a value stands, and nothing required.

    A file may leave what is required to another one that it extends, or to its variants; and it may
    write `section.key: value` in place of nested maps.
    """
    if schema.get("type") != "object" or "properties" not in schema:
        return schema
    properties = {name: _value(name, part) for name, part in schema["properties"].items()}
    nested = "|".join(properties)
    return {
        **{key: value for key, value in schema.items() if key != "required"},
        "properties": properties,
        "patternProperties": {f"^({nested})\\.": {}, "^replace$": {}},
    }


def _value(name: str, schema: Json) -> Json:
    if name == "type":
        return schema
    schema = _open_union(schema)
    kept: Json = {key: schema[key] for key in ("description", "title", "default") if key in schema}
    others = [{"$ref": "#/$defs/Range"}, {"$ref": "#/$defs/Reference"}]
    if any(kind in ("integer", "number") for kind in _types(schema)):
        others.append({"$ref": "#/$defs/Quantity"})
    inner = {key: value for key, value in schema.items() if key not in kept}
    return {**kept, "anyOf": [inner, *others]}


def _open_union(schema: Json) -> Json:
    """A union that `type` decides: where the type is left to a preset, any member's keys go."""
    if "oneOf" not in schema:
        return schema
    rest = {key: value for key, value in schema.items() if key not in ("oneOf", "discriminator")}
    return {**rest, "anyOf": schema["oneOf"]}


def _types(schema: Json) -> Iterator[str]:
    if "type" in schema:
        yield schema["type"]
    for part in schema.get("anyOf", []):
        yield from _types(part)


def _model(definitions: Json, references: dict[type[BaseModel], Json]) -> Json:
    """Backbone keys are those of the model's config.json, which differ from type to type."""
    fields = ModelSpec.model_fields
    choices: dict[str, Any] = {"schedule": Schedule, "impl": Impl}
    literal = {
        name: TypeAdapter(kind).json_schema()
        | {"description": fields[name].description or name, "default": fields[name].default}
        for name, kind in choices.items()
    }
    backbone = {
        "type": "object",
        "description": "{type: llama, <keys of its config.json>} or {pretrained: PATH_OR_NAME}.",
        "properties": {
            "type": {"type": "string", "examples": ["llama", "gpt2", "gpt_neox", "qwen3"]},
            "pretrained": {"type": "string", "description": "A folder, or a name on the hub."},
            "revision": {"type": "string"},
            "keep_layers": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        },
    }
    store = {
        "type": "object",
        "properties": {"store": {"type": "object"}, "write": {}, "read": {}, "layers": {}},
        "required": ["store"],
        "description": "A memory by its axes: {store: {type: tokens}, write: {...}, read: {...}}.",
    }
    definitions["memory"] = _one_of("memory", list(memories), definitions, references)
    definitions["memory"]["anyOf"].append(store)
    schema = {
        "type": "object",
        "properties": {
            "backbone": backbone,
            "memory": {
                "type": "object",
                "description": "Memories by names of your choice.",
                "additionalProperties": {"$ref": "#/$defs/memory"},
            },
            "segment_length": {
                "type": "integer",
                "minimum": 1,
                "description": fields["segment_length"].description,
            },
            **literal,
        },
        "additionalProperties": False,
    }
    return _relaxed(schema)


def _one_of(
    kind: str,
    entries: list[Entry[Any]],
    definitions: Json,
    references: dict[type[BaseModel], Json],
) -> Json:
    """A map whose `type` is one of the registered names, each with its own keys.

    Any other name is accepted without checks: it may be a plugin's.
    """
    known = [entry.name for entry in entries]
    options = []
    for entry in entries:
        name = references[entry.cls.Settings]["$ref"].rpartition("/")[2]
        schema = dict(definitions[name])
        schema["properties"] = schema["properties"] | {"type": {"const": entry.name}}
        schema["required"] = ["type"]
        label = f"{kind}_{entry.name}"
        definitions[label] = schema | {"description": _described(entry)}
        options.append({"$ref": f"#/$defs/{label}"})
    other = {
        "type": "object",
        "properties": {"type": {"type": "string", "not": {"enum": known}}},
        "required": ["type"],
        "description": "One of a plugin's.",
    }
    partial = {
        "type": "object",
        "not": {"anyOf": [{"required": ["type"]}, {"required": ["store"]}]},
        "description": "Keys that another part of the file completes.",
    }
    return {"anyOf": [*options, other, partial]}


def _described(entry: Entry[Any]) -> str:
    name = own_name(entry)
    aside = f" Preset of {name}." if name != entry.name else ""
    summary = (entry.cls.__doc__ or "").strip().partition("\n")[0]
    return f"{summary}{aside}"
