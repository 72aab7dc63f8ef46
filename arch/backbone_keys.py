"""The settings of a model's config in transformers, read from its source without importing it.

Importing transformers takes many seconds; checking a file of settings must not. So the module of
the configuration is found on disk and its fields, defaults and synonyms are read from its syntax.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

_BASIC: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "list": (list,),
    "dict": (dict,),
    "None": (type(None),),
}
_NAMES = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"}
_NAMES |= {"list": "a list", "dict": "a map", "None": "null"}


@dataclass(frozen=True)
class ConfigKey:
    """One setting: the basic types that it takes (none known: anything goes) and its default."""

    kinds: tuple[str, ...] = ()
    default: Any = None

    def accepts(self, value: object) -> bool:
        if not self.kinds:
            return True
        types = tuple(kind for name in self.kinds for kind in _BASIC[name])
        return isinstance(value, types) and (not isinstance(value, bool) or "bool" in self.kinds)

    @property
    def expected(self) -> str:
        return " or ".join(_NAMES[kind] for kind in self.kinds)


@dataclass(frozen=True)
class ConfigKeys:
    """The settings of one model type."""

    keys: dict[str, ConfigKey]
    synonyms: dict[str, str] = field(default_factory=dict)
    """Other names that transformers accepts, such as `hidden_size` for GPT-2's `n_embd`."""

    def real_name(self, name: str) -> str:
        return self.synonyms.get(name, name)

    def __contains__(self, name: str) -> bool:
        return self.real_name(name) in self.keys


@lru_cache
def model_types() -> tuple[str, ...]:
    """All model types of the installed transformers."""
    return tuple(
        sorted(
            folder.name
            for folder in (_transformers() / "models").iterdir()
            if (folder / f"configuration_{folder.name}.py").is_file()
        )
    )


@lru_cache
def config_keys(model_type: str) -> ConfigKeys:
    """The settings of a model type that `model_types` lists."""
    source = _transformers() / "models" / model_type / f"configuration_{model_type}.py"
    classes = _classes(source)
    own = next(
        (node for node in classes.values() if _constant(node, "model_type") == model_type), None
    )
    if own is None:
        return ConfigKeys({})
    keys: dict[str, ConfigKey] = {}
    synonyms: dict[str, str] = {}
    for node in reversed(_lineage(own, classes)):
        keys |= _keys(node)
        synonyms |= _constant(node, "attribute_map") or {}
    if "rope_parameters" in keys:
        keys |= {"rope_theta": ConfigKey(("int", "float")), "rope_scaling": ConfigKey()}
    return ConfigKeys(keys, synonyms)


def _transformers() -> Path:
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("transformers is not installed")
    return Path(found.origin).parent


@lru_cache
def _classes(source: Path) -> dict[str, ast.ClassDef]:
    module = ast.parse(source.read_text(encoding="utf-8"))
    return {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}


def _lineage(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[ast.ClassDef]:
    """The class and those of its bases whose source is known, the class first."""
    found = [node]
    for base in node.bases:
        if isinstance(base, ast.Name) and classes.get(base.id, node) is not node:
            found += _lineage(classes[base.id], classes)
    return found


def _keys(node: ast.ClassDef) -> dict[str, ConfigKey]:
    keys: dict[str, ConfigKey] = {}
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            if "ClassVar" not in ast.dump(part.annotation):
                keys[part.target.id] = ConfigKey(_kinds(part.annotation), _default(part.value))
        elif isinstance(part, ast.FunctionDef):
            if part.name == "__init__":
                keys |= _arguments(part.args)
            keys |= _accepted_in(part)
    return {name: key for name, key in keys.items() if not name.startswith("_")}


def _arguments(args: ast.arguments) -> dict[str, ConfigKey]:
    """Older configurations: the settings are the arguments of `__init__`."""
    names = args.args[1:]
    defaults = [None] * (len(names) - len(args.defaults)) + list(args.defaults)
    pairs = list(zip(names, defaults, strict=True))
    pairs += list(zip(args.kwonlyargs, args.kw_defaults, strict=True))
    return {
        name.arg: ConfigKey(_kinds(name.annotation) if name.annotation else (), _default(value))
        for name, value in pairs
    }


def _accepted_in(function: ast.FunctionDef) -> dict[str, ConfigKey]:
    """Older names that a method still takes out of its keyword arguments."""
    return {
        call.args[0].value: ConfigKey()
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("pop", "get", "setdefault")
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "kwargs"
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    }


def _kinds(annotation: ast.expr) -> tuple[str, ...]:
    """The basic types of an annotation, or none where one of its parts is not basic."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        left, right = _kinds(annotation.left), _kinds(annotation.right)
        return left + right if left and right else ()
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        if annotation.value.id == "Optional":
            inner = _kinds(annotation.slice)
            return (*inner, "None") if inner else ()
        return _kinds(annotation.value)
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return ("None",)
    if isinstance(annotation, ast.Name) and annotation.id in _BASIC:
        return (annotation.id,)
    return ()


def _default(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):
        value = next((word.value for word in value.keywords if word.arg == "default"), None)
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


def _constant(node: ast.ClassDef, name: str) -> Any:
    for part in node.body:
        targets = part.targets if isinstance(part, ast.Assign) else []
        if isinstance(part, ast.AnnAssign):
            targets = [part.target]
        if isinstance(part, ast.Assign | ast.AnnAssign) and any(
            isinstance(target, ast.Name) and target.id == name for target in targets
        ):
            return _default(part.value)
    return None
