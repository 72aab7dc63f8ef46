"""The declarative description of one model: a backbone, its memories, the length of a segment.

A memory is written in either of two ways, which mean the same:

    {type: gradmem, num_tokens: 8, write: {steps: 2}}                           # a preset's name
    {store: {type: tokens, num_tokens: 8}, write: {type: gradient, steps: 2}}   # its axes

`normalize_memory` turns both into the settings of the component that does the work. Nothing here
imports transformers, so that a file is checked quickly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SerializeAsAny,
    StringConstraints,
    model_serializer,
    model_validator,
)
from pydantic_core.core_schema import ValidationInfo

from memarch.arch.backbone_keys import ConfigKeys, config_keys, model_types
from memarch.arch.families import family_of
from memarch.arch.settings import join, parse, show
from memarch.components.errors import SpecError, did_you_mean
from memarch.components.memory import Every, MemorySettings, memories
from memarch.components.registry import Entry, Registry
from memarch.components.strict import Strict

Schedule = Literal["auto", "sequential", "diagonal", "layerwise"]
Impl = Literal["auto", "reference", "triton"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")]

_POSITIVE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "head_dim",
)

_FOLLOW = ("num_key_value_heads", "head_dim")
"""Sizes that follow from the others where the spec does not give them (`arch.backbone`)."""


class BackboneSpec(BaseModel):
    """`{type: llama, <keys of its config.json>}`, random, or `{pretrained: PATH_OR_NAME}`."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    type: str | None = None
    """The model type of transformers whose configuration the other keys are."""
    pretrained: str | None = None
    """A folder, or the name of a model on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a pretrained model."""
    keep_layers: list[Annotated[int, Field(ge=0)]] | None = None
    """Indices of the layers of a pretrained model that stay, in this order."""

    @property
    def config(self) -> dict[str, Any]:
        """The keys of the model's config.json that the spec gives, under their real names."""
        return dict(self.model_extra or {})

    def value(self, name: str) -> Any:
        """A configuration value by any of its names: given, default, or None if unknown here."""
        if self.type is not None:
            keys = config_keys(self.type)
            real = keys.real_name(name)
            default = keys.keys[real].default if real in keys.keys else None
            return self.config.get(real, default)
        folder = Path(str(self.pretrained)) / "config.json"
        if not folder.is_file():
            return None
        values = json.loads(folder.read_text(encoding="utf-8"))
        kind = values.get("model_type")
        real = config_keys(kind).real_name(name) if _known(kind) else name
        return values.get(real, values.get(name))

    @property
    def num_layers(self) -> int | None:
        """How many decoder layers there are, where that can be known without loading the model."""
        if self.keep_layers is not None:
            return len(self.keep_layers)
        layers = self.value("num_hidden_layers")
        return layers if isinstance(layers, int) else None

    @model_serializer
    def _canonical(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in BackboneSpec.model_fields}
        return {name: value for name, value in (own | self.config).items() if value is not None}

    @model_validator(mode="before")
    @classmethod
    def _check(cls, raw: object, info: ValidationInfo) -> object:
        if not isinstance(raw, Mapping):
            raise SpecError(f"must be a map with `type` or `pretrained`, got {show(raw)}")
        if ("type" in raw) == ("pretrained" in raw):
            got = "both" if "type" in raw else "neither"
            raise SpecError(
                "needs either `type`, for random weights, or `pretrained`, a folder or a name on "
                f"the hub; got {got}"
            )
        if "type" in raw:
            return _random(raw)
        return _pretrained(raw, (info.context or {}).get("folders") or (Path(),))


def _pretrained(raw: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """A folder becomes an absolute path; what is no folder is a name on the hub."""
    known = ("pretrained", "revision", "keep_layers")
    for name in raw:
        if name not in known:
            raise SpecError(
                f"unknown key {name!r} for a pretrained backbone, whose other settings are in its "
                f"config.json; {did_you_mean(name, known)}",
                path=name,
            )
    where = raw["pretrained"]
    if not isinstance(where, str):
        return dict(raw)
    for folder in folders:
        candidate = folder / Path(where).expanduser()
        if (candidate / "config.json").is_file():
            return {**raw, "pretrained": str(candidate.resolve())}
    if where.startswith((".", "/", "~")) or where.count("/") > 1:
        places = " or ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
        raise SpecError(
            f"there is no folder {where!r} with a config.json (looked in {places})",
            path="pretrained",
        )
    return dict(raw)


def _known(model_type: object) -> bool:
    return isinstance(model_type, str) and model_type in model_types()


def _random(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keys against the model's configuration class; give them their real names."""
    kind = raw["type"]
    if not _known(kind):
        near = did_you_mean(str(kind), model_types()).split(" (")[0]
        hint = near if near.startswith("did") else "for example llama, gpt2, gpt_neox, qwen3"
        raise SpecError(
            f"the installed transformers has no model type {show(kind)}; {hint}", path="type"
        )
    for name in ("revision", "keep_layers"):
        if name in raw:
            raise SpecError(f"`{name}` is for a pretrained backbone only", path=name)
    family_of(kind, "type")
    keys = config_keys(kind)
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if name == "type":
            continue
        real = keys.real_name(name)
        if keys.keys and real not in keys.keys:
            known = [*keys.keys, *keys.synonyms]
            raise SpecError(
                f"unknown key {name!r} for a {kind} backbone; {did_you_mean(name, known)}",
                path=name,
            )
        if real in values:
            raise SpecError(f"`{name}` is another name for `{real}`, given beside it", path=name)
        if keys.keys and not keys.keys[real].accepts(value):
            raise SpecError(f"must be {keys.keys[real].expected}, got {show(value)}", path=name)
        values[real] = value
    _check_sizes(raw, values, keys)
    return {"type": kind} | values


def _check_sizes(raw: Mapping[str, Any], values: Mapping[str, Any], keys: ConfigKeys) -> None:
    """The sizes that must divide each other, in the names that the user wrote."""

    def read(name: str) -> Any:
        real = keys.real_name(name)
        default = None if name in _FOLLOW or real not in keys.keys else keys.keys[real].default
        return values.get(real, default)

    def name_of(name: str) -> str:
        return keys.real_name(name) if keys.real_name(name) in raw else name

    def described(name: str) -> str:
        given = keys.real_name(name) in values
        return f"{name_of(name)}={read(name)}" + ("" if given else " (the default)")

    for name in _POSITIVE:
        if isinstance(read(name), int) and read(name) < 1:
            raise SpecError(f"must be at least 1, got {read(name)}", path=name_of(name))
    hidden, heads, groups = (
        read(name) for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    if not isinstance(hidden, int) or not isinstance(heads, int):
        return
    own_head_dim = read("head_dim") is not None
    if not own_head_dim and hidden % heads:
        raise SpecError(
            f"{name_of('num_attention_heads')} must divide {name_of('hidden_size')}, got "
            f"{described('num_attention_heads')}, {described('hidden_size')}",
            path=name_of("num_attention_heads") if _given(raw, keys, heads=True) else "",
        )
    if isinstance(groups, int) and heads % groups:
        raise SpecError(
            f"num_key_value_heads must divide {name_of('num_attention_heads')}, got "
            f"{described('num_key_value_heads')}, {described('num_attention_heads')}",
            path=name_of("num_key_value_heads") if "num_key_value_heads" in raw else "",
        )
    size = read("head_dim") if own_head_dim else hidden // heads
    if "rope_parameters" in keys.keys and isinstance(size, int) and size % 2:
        raise SpecError(
            f"a head's size must be even for rotary positions, got {size} from "
            f"{described('hidden_size')}, {described('num_attention_heads')}",
        )


def _given(raw: Mapping[str, Any], keys: ConfigKeys, *, heads: bool) -> bool:
    name = "num_attention_heads" if heads else "hidden_size"
    return name in raw or keys.real_name(name) in raw


def normalize_component(
    registry: Registry[Any], raw: Mapping[str, Any], path: str = ""
) -> dict[str, Any]:
    """Resolve `type`: a preset becomes its component's name, its defaults go under the rest."""
    entry = _entry(registry, raw, path)
    merged = _merge_under(entry.defaults, {k: v for k, v in raw.items() if k != "type"})
    return {"type": own_name(entry), **merged}


def normalize_memory(raw: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Both ways of writing a memory become one: its component's settings, flat."""
    if not isinstance(raw, Mapping):
        raise SpecError(f"must be a map with `type` or `store`, got {show(raw)}", path=path)
    if "store" not in raw:
        if "type" not in raw:
            raise SpecError(
                f"needs `type` or `store`; known types: {', '.join(_names())}", path=path
            )
        return normalize_component(memories, raw, path)
    if "type" in raw:
        raise SpecError("gives both `type` and `store`: they exclude each other", path=path)
    store = raw["store"]
    if not isinstance(store, Mapping) or "type" not in store:
        raise SpecError("must be a map with `type`", path=join(path, "store"))
    entry = _entry(memories, store, join(path, "store"))
    if entry.name != own_name(entry):
        raise SpecError(
            f"{entry.name!r} is a preset of store, write and read: write `type: {entry.name}` in "
            f"place of `store`, or `store: {{type: {own_name(entry)}, …}}`",
            path=join(path, "store", "type"),
        )
    rest = {name: value for name, value in raw.items() if name != "store"}
    for name in store:
        if name in rest or name in ("write", "read"):
            place = join(path, "store", name)
            raise SpecError(f"`{name}` belongs beside `store`, not into it", path=place)
    return {**store, **rest}


def parse_memory(raw: Mapping[str, Any], path: str = "") -> MemorySettings:
    """A memory in either form -> its component's settings."""
    normal = normalize_memory(raw, path)
    settings = memories[normal["type"]].cls.Settings
    try:
        return parse(settings, normal)
    except SpecError as error:
        store = raw.get("store", {})
        inside = error.path.split(".")[0] in store
        where = join(path, "store" if inside else "", error.path)
        message = error.message
        if message.startswith("unknown key") and "." not in error.path and "type" in raw:
            own, asked = f" for type {normal['type']!r}", f" for type {raw['type']!r}"
            message = message.replace(own, asked, 1)
        raise SpecError(message, path=where) from None


def own_name(entry: Entry[Any]) -> str:
    """The component's own name, whatever preset it was asked for by."""
    return str(get_args(entry.cls.Settings.model_fields["type"].annotation)[0])


def mechanism(model: Mapping[str, Any]) -> str:
    """The memories of a model by the names that users know, outermost first: `rmt+armt`."""
    return "+".join(_known_as(one) for one in (model.get("memory") or {}).values()) or "none"


def _known_as(settings: Mapping[str, Any]) -> str:
    """The preset that a component with these settings is; of several the one that says most."""
    found = str(settings["type"])
    most = -1
    for entry in memories:
        preset = entry.name != own_name(entry) and own_name(entry) == settings["type"]
        if preset and len(entry.defaults) > most and _is_of(settings, entry.defaults):
            found, most = entry.name, len(entry.defaults)
    return found


def _is_of(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Parts are of the preset's types, and what else it sets has a value, maybe another one."""
    return all(
        settings.get(name, {}).get("type") == default["type"]
        if isinstance(default, Mapping)
        else settings.get(name) is not None
        for name, default in defaults.items()
    )


def _names() -> list[str]:
    return [entry.name for entry in memories]


def _entry(registry: Registry[Any], raw: Mapping[str, Any], path: str) -> Entry[Any]:
    if not isinstance(raw.get("type"), str):
        known = ", ".join(entry.name for entry in registry)
        raise SpecError(
            f"must name a {registry.kind}, got {show(raw.get('type'))}; known: {known}",
            path=join(path, "type"),
        )
    try:
        return registry[raw["type"]]
    except SpecError as error:
        raise SpecError(error.message, path=join(path, "type")) from None


def _merge_under(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` over `defaults`, map by map. A map that chooses another `type` takes nothing over."""
    merged = dict(defaults)
    for name, value in given.items():
        under = defaults.get(name)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            changed = value.get("type", under.get("type")) != under.get("type")
            value = dict(value) if changed else _merge_under(under, value)
        merged[name] = value
    return merged


def _parse_memory_value(raw: Any) -> MemorySettings:
    return raw if isinstance(raw, MemorySettings) else parse_memory(raw)


def _parse_backbone_value(raw: Any) -> Any:
    return raw.model_dump() if isinstance(raw, BackboneSpec) else raw


class ModelSpec(Strict):
    """One model, concrete. Build it from plain data by `parse_model_spec`."""

    backbone: Annotated[BackboneSpec, BeforeValidator(_parse_backbone_value)]
    """The decoder-only transformer that memory is added to."""
    memory: dict[
        Name, Annotated[SerializeAsAny[MemorySettings], PlainValidator(_parse_memory_value)]
    ] = Field(default_factory=dict)
    """Memories by names of your choice; those of whole segments nest, the first outermost."""
    segment_length: Annotated[int, Field(ge=1)]
    """Input tokens in a segment, memory tokens not counted."""
    schedule: Schedule = "auto"
    """The order in which segments and layers run; `auto` takes the fastest that is right."""
    impl: Impl = "auto"
    """Plain PyTorch or Triton kernels; `auto` takes Triton where there is a GPU for it."""

    @model_validator(mode="after")
    def _fits(self) -> ModelSpec:
        layers = self.backbone.num_layers
        for name, settings in self.memory.items():
            choice = getattr(settings, "layers", None)
            if isinstance(choice, Every):
                choice = [choice.offset]
            if isinstance(choice, list):
                _check_layers(choice, layers, join("memory", name, "layers"))
        longest = self.backbone.value("max_position_embeddings")
        rotary = self.backbone.value("rope_parameters") is not None or (
            self.backbone.type is not None and "rope_parameters" in config_keys(self.backbone.type)
        )
        if isinstance(longest, int) and not rotary and self.segment_length > longest:
            raise SpecError(
                f"must be at most {longest}, the number of positions that the backbone has, got "
                f"{self.segment_length}",
                path="segment_length",
            )
        refuse_impossible(self.schedule, self.memory)
        return self

    def canonical(self) -> dict[str, Any]:
        """Plain data that can be written as JSON and parsed back into an equal spec."""
        return self.model_dump(mode="json")


def refuse_impossible(schedule: str, memory: Mapping[str, MemorySettings], path: str = "") -> None:
    """A SpecError that names the memory with which this order of cells would be wrong."""
    if schedule not in ("diagonal", "layerwise"):
        return
    for name, settings in memory.items():
        cls = memories[settings.type].cls
        if cls.site == "segment":
            raise SpecError(
                f"{schedule!r} is impossible: memory {name!r} carries its state from the top of a "
                "segment to the bottom of the next; use 'sequential' or 'auto'",
                path=join(path, "schedule"),
            )
        if schedule == "layerwise" and not cls.whole_input:
            raise SpecError(
                f"'layerwise' is impossible: memory {name!r} takes one segment at a time; use "
                "'diagonal', 'sequential' or 'auto'",
                path=join(path, "schedule"),
            )


def _check_layers(choice: Sequence[int], layers: int | None, path: str) -> None:
    if len(set(choice)) != len(choice):
        raise SpecError(f"names a layer twice: {list(choice)}", path=path)
    if layers is not None and choice and max(choice) >= layers:
        raise SpecError(
            f"the backbone has {layers} layers, 0 to {layers - 1}, got {max(choice)}", path=path
        )


def parse_model_spec(
    raw: Mapping[str, Any], path: str = "", *, folders: Sequence[Path] = ()
) -> ModelSpec:
    """Plain data -> ModelSpec; a SpecError names the key at fault."""
    return parse(ModelSpec, raw, path, folders=folders)
