"""Values inside plain maps and lists, by key path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memarch.search_spaces.document import KeyPath


def get(place: Any, path: KeyPath) -> Any:
    for key in path:
        place = place[key]
    return place


def put(place: Any, keys: Sequence[str], text: str) -> None:
    for key in keys[:-1]:
        inside = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, list) and key.isdigit() and int(key) < len(place):
            inside = place[int(key)]
        if inside is None:
            return
        place = inside
    if isinstance(place, dict) and keys[-1] in place:
        place[keys[-1]] = text
    elif isinstance(place, list) and keys[-1].isdigit() and int(keys[-1]) < len(place):
        place[int(keys[-1])] = text
