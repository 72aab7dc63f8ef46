"""The registry of memories and tasks: a name, the class behind it, presets, duplicates refused."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from memarch.components.errors import SpecError, did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A name that `type:` may take. A preset is a component with some settings already given."""

    name: str
    cls: type[T]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""


registries: list[Registry[Any]] = []
"""Every registry, for plugins: one file may register memories, tasks, or both."""


class Registry(Generic[T]):
    """Names to classes. Modules that register the built-in entries are imported on first use."""

    def __init__(self, kind: str, packages: tuple[str, ...]) -> None:
        registries.append(self)
        self.kind = kind
        self._packages = packages
        self._entries: dict[str, Entry[T]] = {}
        self._loaded = False

    def register(self, name: str, *, paper: str = "") -> Callable[[type[T]], type[T]]:
        """Class decorator: make the class available as `type: name`."""

        def add(cls: type[T]) -> type[T]:
            self._add(Entry(name, cls, {}, paper))
            return cls

        return add

    def preset(self, name: str, cls: type[T], defaults: Mapping[str, Any], paper: str = "") -> None:
        """Make `type: name` mean `cls` with `defaults` under whatever the user gives."""
        self._add(Entry(name, cls, dict(defaults), paper))

    def __getitem__(self, name: str) -> Entry[T]:
        self._load()
        if name not in self._entries:
            raise SpecError(f"unknown {self.kind} {name!r}; {did_you_mean(name, self._entries)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[Entry[T]]:
        self._load()
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def names(self) -> set[str]:
        """Every registered name."""
        self._load()
        return set(self._entries)

    def remove(self, name: str) -> None:
        """Forget a name: its plugin is imported anew."""
        self._entries.pop(name, None)

    def _add(self, entry: Entry[T]) -> None:
        other = self._entries.get(entry.name)
        if other is not None and (_owner(other.cls), other.defaults) != (
            _owner(entry.cls),
            entry.defaults,
        ):
            raise SpecError(
                f"{self.kind} {entry.name!r} is registered twice: by {_owner(other.cls)} and by "
                f"{_owner(entry.cls)}; rename one"
            )
        self._entries[entry.name] = entry

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for package in self._packages:
            root = importlib.import_module(package)
            for module in pkgutil.iter_modules(root.__path__):
                importlib.import_module(f"{package}.{module.name}")


def _owner(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
