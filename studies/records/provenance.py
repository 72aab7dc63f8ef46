"""Where the values of a trial come from: `origins.json` beside its spec.

By key path: `default`, `FILE:LINE`, `variant NAME`, `draw`, `--set`, or the trial that a file
extends. It can be made again from the study's snapshot, so it is written without syncing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memarch.studies.records.store import read_json

FILE = "origins.json"


def write_origins(folder: Path, origins: Mapping[str, str]) -> None:
    """Keep the origins of a trial's values."""
    (folder / FILE).write_text(json.dumps(origins, indent=0) + "\n", encoding="utf-8")


def settings_with_origins(folder: Path, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every value of a trial's spec: `{"key", "value", "origin"}`."""
    origins: dict[str, str] = read_json(folder / FILE, {})
    return [{"key": key, "value": value_at(spec, key), "origin": origins[key]} for key in origins]


def value_at(spec: Mapping[str, Any], path: str) -> Any:
    """The value at a key path; keys may have dots in them."""
    found = list(_below(spec, path))
    return found[0] if found else None


def _below(value: Any, path: str) -> Iterator[Any]:
    if not path:
        yield value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            if path == key or path.startswith(f"{key}."):
                yield from _below(child, path[len(key) + 1 :])
    elif isinstance(value, list):
        head, _, rest = path.partition(".")
        if head.isdigit() and int(head) < len(value):
            yield from _below(value[int(head)], rest)
