"""How trees lie over each other: variants over a file, `--set` over a variant, and so on.

Maps merge key by key, scalars, lists and ranges replace, `{replace: …}` replaces whatever is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memarch.components.errors import SpecError, did_you_mean
from memarch.search_spaces.document import Key, Node, Origin, node_of, read_text
from memarch.search_spaces.ranges import is_range

REPLACE = "replace"
REMOVED = object()
"""The value of a node that takes away what it lies over."""
_STRUCTURE: tuple[tuple[Key, ...], ...] = (("model", "memory"),)


def is_structure(path: Sequence[Key]) -> bool:
    """Whether keys at this path are names of parts, so that a map there is never a range."""
    return len(path) < 2 or tuple(path) in _STRUCTURE


def range_at(node: Node, path: Sequence[Key]) -> bool:
    """Whether a range stands here."""
    return node.is_map and not is_structure(path) and is_range(node.value)


def merge(base: Node | None, patch: Node, path: tuple[Key, ...] = ()) -> Node:
    """`patch` over `base`; both stay as they are."""
    forced = patch.is_map and REPLACE in patch.value
    if forced and len(patch.value) == 1:
        return patch.value[REPLACE]
    if forced:
        others = ", ".join(repr(key) for key in patch.value if key != REPLACE)
        raise patch.origin.error(
            f"`replace` stands alone in its map, got {others} beside it", _join(path)
        )
    if not patch.is_map:
        return patch
    if range_at(patch, path):
        return patch
    if base is None or not base.is_map or range_at(base, path):
        base = Node({}, patch.origin)
    merged = dict(base.value)
    for key, child in patch.value.items():
        if child.value is REMOVED:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), child, (*path, key))
    last = patch.last or patch.origin
    return Node(merged, base.origin, last if patch.value else base.last)


def expand(patch: Node) -> Node:
    """Dotted keys of a patch become nested maps: `{model.memory.main: …}`."""
    result = Node({}, patch.origin)
    for key, child in patch.value.items():
        if not all(key.split(".")):
            raise child.origin.error(f"{key!r} is no key path", key)
        result = _joined(result, nest(key, child), ())
    return result


def nest(dotted: str, node: Node) -> Node:
    """`a.b` and a value -> `{a: {b: value}}`."""
    for key in reversed(dotted.split(".")):
        node = Node({key: node}, node.origin)
    return node


def _joined(known: Node, new: Node, path: tuple[Key, ...]) -> Node:
    """Two parts of one patch as one; a value that both give is an error."""
    if not (known.is_map and new.is_map) or range_at(new, path):
        lines = f"on line {known.origin.line} and on line {new.origin.line}"
        raise new.origin.error(f"is given twice, {lines}", _join(path))
    entries = dict(known.value)
    for key, child in new.value.items():
        entries[key] = _joined(entries[key], child, (*path, key)) if key in entries else child
    return Node(entries, known.origin)


def parse_override(text: str, sections: Sequence[str]) -> Node:
    """`train.lr=1e-3` -> `{train: {lr: 0.001}}`; the value is YAML."""
    origin = Origin("--set", source="--set")
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise origin.error(f"{text!r} must look like train.lr=1e-3")
    first = key.split(".")[0]
    if first not in sections:
        raise origin.error(f"unknown key {first!r}; {did_you_mean(first, sections)}", key)
    try:
        node = read_text(value, "--set")
    except SpecError as error:
        raise origin.error(error.message, key) from None
    return nest(key, _at(origin, node))


def _at(origin: Origin, node: Node | None) -> Node:
    """The whole tree at one place."""
    if node is None:
        return Node(None, origin)
    value = node.value
    if node.is_map:
        value = {key: _at(origin, child) for key, child in value.items()}
    elif node.is_list:
        value = [_at(origin, child) for child in value]
    return Node(value, origin)


def overrides_of(values: Mapping[str, object], origin: Origin) -> list[Node]:
    """Plain values by key path as patches that come from one place."""
    return [nest(path, node_of(value, origin)) for path, value in values.items()]


def _join(path: Sequence[Key]) -> str:
    return ".".join(str(key) for key in path)
