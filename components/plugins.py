"""A user's own memories and tasks: the Python files under `plugins:` are imported and register.

A plugin's module is named after its stem and a hash of its text, so the driver's file and a
worker's copy of it are the same module, and an edited file takes the old one's place.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memarch.components.errors import SpecError
from memarch.components.registry import Registry, registries

_module_of: dict[Path, str] = {}
"""Which module each file was last imported as."""

_registered: dict[str, dict[str, set[str]]] = {}
"""What each of these modules registered: names by kind."""


def load_plugins(paths: Iterable[str | Path]) -> dict[str, str]:
    """Import every file once; the sha256 of each, by path. Registering nothing is an error."""
    return {str(path): _load(Path(path)) for path in paths}


def registered_by(path: str | Path) -> dict[str, set[str]]:
    """What a loaded plugin registered, by kind: `{"memory": {"my_memory"}}`."""
    return _registered.get(_module_of.get(Path(path).resolve(), ""), {})


def _load(path: Path) -> str:
    source = _read(path)
    name = _name(path, source)
    previous = _module_of.get(path.resolve())
    if previous is not None and previous != name:
        _forget(previous)
    if name not in sys.modules:
        _import(path, name)
    _module_of[path.resolve()] = name
    return hashlib.sha256(source).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = "no such file" if not path.exists() else str(error.strerror)
        raise SpecError(f"cannot read the plugin {str(path)!r}: {reason}", path="plugins") from None


def _name(path: Path, source: bytes) -> str:
    return f"memarch_plugin_{path.stem}_{hashlib.sha256(source).hexdigest()[:12]}"


def _import(path: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SpecError(f"the plugin {str(path)!r} is not a Python file (.py)", path="plugins")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution: dataclasses and pickle look modules up by name
    before = {registry.kind: registry.names() for registry in registries}
    try:
        spec.loader.exec_module(module)
    except SpecError as error:
        failure = f"is refused: {error.message}"
    except Exception as error:
        failure = f"fails to import: {_where(error, path)}"
    else:
        failure = ""
    _registered[name] = {r.kind: new for r in registries if (new := _new_names(r, before, name))}
    if not failure and not _registered[name]:
        failure = (
            "registers nothing; put @memories.register('name') or @tasks.register('name') "
            "above its class"
        )
    if failure:
        _forget(name)
        raise SpecError(f"the plugin {str(path)!r} {failure}", path="plugins")


def _new_names(registry: Registry[Any], before: dict[str, set[str]], module: str) -> set[str]:
    """What the module added: everything new, or its own classes where the registry is new too."""
    if registry.kind in before:
        return registry.names() - before[registry.kind]
    return {entry.name for entry in registry if entry.cls.__module__ == module}


def _forget(name: str) -> None:
    sys.modules.pop(name, None)
    names = _registered.pop(name, {})
    for registry in registries:
        for entry in names.get(registry.kind, ()):
            registry.remove(entry)


def _where(error: Exception, path: Path) -> str:
    """`NameError: name 'x' is not defined (line 3)`: the plugin's own line, not the importer's."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {message}" + (f" (line {line})" if line else "")
