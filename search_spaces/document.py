"""YAML 1.2 as a tree in which every key and value knows the file and line where it was written.

Only maps, lists and plain scalars: `3e-4` is a number, `off` is text. Duplicate keys, tags and
merge keys (`<<`) are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from memarch.components.errors import SpecError

Key = str | int
KeyPath = tuple[Key, ...]


@dataclass(frozen=True)
class Origin:
    """Where something was written. `source` is what `plan` shows when it is not simply the file."""

    file: str
    line: int | None = None
    source: str = ""

    def __str__(self) -> str:
        return self.source or (self.file if self.line is None else f"{self.file}:{self.line}")

    def error(self, message: str, path: str = "") -> SpecError:
        return SpecError(message, path=path, file=self.file, line=self.line)


@dataclass(frozen=True)
class Node:
    """A map (of nodes), a list (of nodes) or a scalar."""

    value: Any
    origin: Origin
    """Where the value starts; the line of the key where the value has one."""
    last: Origin | None = None
    """Where a merged map was last added to."""

    @property
    def is_map(self) -> bool:
        return isinstance(self.value, dict)

    @property
    def is_list(self) -> bool:
        return isinstance(self.value, list)

    def children(self) -> Iterator[tuple[Key, Node]]:
        if self.is_map:
            yield from self.value.items()
        elif self.is_list:
            yield from enumerate(self.value)

    def get(self, *path: Key) -> Node | None:
        """The node at a path below this one, or None."""
        node: Node | None = self
        for key in path:
            if node is None:
                return None
            if node.is_map:
                node = node.value.get(str(key))
            elif node.is_list and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
            else:
                return None
        return node

    def plain(self) -> Any:
        """The same without origins."""
        if self.is_map:
            return {key: child.plain() for key, child in self.value.items()}
        return [child.plain() for child in self.value] if self.is_list else self.value

    def sourced(self, source: str) -> Node:
        """The same tree with another source at every node."""
        value = self.value
        if self.is_map:
            value = {key: child.sourced(source) for key, child in value.items()}
        elif self.is_list:
            value = [child.sourced(source) for child in value]
        last = None if self.last is None else replace(self.last, source=source)
        return Node(value, replace(self.origin, source=source), last)


def node_of(value: Any, origin: Origin) -> Node:
    """Plain data as a tree that all comes from one place."""
    if isinstance(value, dict):
        return Node({str(key): node_of(child, origin) for key, child in value.items()}, origin)
    if isinstance(value, list | tuple):
        return Node([node_of(child, origin) for child in value], origin)
    return Node(value, origin)


def read_file(path: Path) -> Node:
    """The document in a file: a map, or an error with the line."""
    name = str(path)
    if path.is_dir():
        raise SpecError("is a folder, not a YAML file", file=name)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError("there is no such file", file=name) from None
    except UnicodeDecodeError:
        raise SpecError("is not a text file in UTF-8, so it is no YAML", file=name) from None
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", file=name) from None
    node = read_text(text, name)
    if node is None:
        raise SpecError("is empty; a study needs at least `task`, `model` and `train`", file=name)
    if not node.is_map:
        kind = "a list" if node.is_list else "a single value"
        raise node.origin.error(
            f"must be a map of sections such as `task:` and `model:`, got {kind}"
        )
    return node


def read_text(text: str, file: str) -> Node | None:
    """The document in a text; None where there is nothing but comments."""
    reader = YAML(typ="safe", pure=True)
    try:
        root = reader.compose(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        context = getattr(error, "context", None)
        if "another document" in problem:
            problem, context = "a study is one document, and here starts a second (`---`)", None
        message = f"is not valid YAML: {problem}" + (f" ({context})" if context else "")
        line = None if mark is None else mark.line + 1
        raise SpecError(message, file=file, line=line) from None
    return None if root is None else _Builder(file).build(root, ())


@dataclass
class _Builder:
    """Nodes of the YAML library to ours."""

    file: str
    open: list[Any] = field(default_factory=list)

    def build(self, node: Any, path: KeyPath) -> Node:
        origin = Origin(self.file, node.start_mark.line + 1)
        where = ".".join(str(key) for key in path)
        if node in self.open:
            raise origin.error("an alias refers to what it stands in", where)
        self.open.append(node)
        if _has_tag(node):
            raise origin.error("tags (`!name`) are not used here; write the plain value", where)
        if isinstance(node, MappingNode):
            built = self._map(node, path, origin)
        elif isinstance(node, SequenceNode):
            built = Node([self.build(one, (*path, i)) for i, one in enumerate(node.value)], origin)
        else:
            built = Node(_scalar(node), origin)
        self.open.pop()
        return built

    def _map(self, node: MappingNode, path: KeyPath, origin: Origin) -> Node:
        entries: dict[str, Node] = {}
        for key_node, value_node in node.value:
            at = Origin(self.file, key_node.start_mark.line + 1)
            where = ".".join(str(key) for key in path)
            if not isinstance(key_node, ScalarNode) or key_node.value == "":
                raise at.error("a key must be a name", where)
            key = str(key_node.value)
            where = f"{where}.{key}" if where else key
            if key == "<<":
                raise at.error(
                    "merge keys (`<<`) are not used here; see `extends` and `variants`", where
                )
            if key in entries:
                first = entries[key].origin.line
                raise at.error(
                    f"{key!r} is given twice: on line {first} and on line {at.line}", where
                )
            child = self.build(value_node, (*path, key))
            entries[key] = Node(child.value, replace(child.origin, line=at.line))
        return Node(entries, origin)


def _has_tag(node: Any) -> bool:
    """Whether the document names a type itself instead of leaving it to the value's form."""
    tag = str(node.tag).removeprefix("tag:yaml.org,2002:")
    if isinstance(node, ScalarNode) and node.style is None and tag == "str":
        return not isinstance(_scalar(node), str)
    return tag not in _IMPLICIT_TAGS


_IMPLICIT_TAGS = (
    "map", "seq", "str", "int", "float", "bool", "null", "merge", "value", "timestamp"
)  # fmt: skip
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True)
_WORDS |= dict.fromkeys(("false", "False", "FALSE"), False)
_WORDS |= {
    f"{sign}.{word}": float(f"{sign}inf") for sign in ("", "+", "-") for word in ("inf", "Inf")
}


def _scalar(node: ScalarNode) -> Any:
    """The core schema of YAML 1.2; quoted text stays text."""
    text = node.value
    if node.style is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
