"""`$env.NAME` in a spec: read where the spec is used, never stored."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from typing import Any

from memarch.arch.settings import join
from memarch.search_spaces.document import KeyPath, Node, Origin
from memarch.search_spaces.paths import put
from memarch.search_spaces.resolution import Resolver


def restored(spec: dict[str, Any], unresolved: Mapping[str, str]) -> dict[str, Any]:
    """The spec with what was written in place of what the environment gave."""
    record = json.loads(json.dumps(spec))
    places = [record]
    places += [p["spec"] for e in record["eval"].values() for p in e.get("points", ())]
    for path, text in unresolved.items():
        keys = path.split(".")
        candidates = [keys]
        if keys[:2] == ["model", "memory"] and keys[3:4] == ["store"]:
            candidates.append([*keys[:3], *keys[4:]])
        for place, way in itertools.product(places, candidates):
            put(place, way, text)
    return record


def resolve_env(record: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Any:
    """A stored record -> a spec, with `$env.NAME` read on the machine that uses it."""
    resolver = Resolver(Node({}, Origin("record")), environment=environment)

    def walk(value: Any, path: KeyPath) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(child, (*path, key)) for key, child in value.items()}
        if isinstance(value, list):
            return [walk(child, (*path, index)) for index, child in enumerate(value)]
        if isinstance(value, str):
            return resolver.expand_environment(value, Origin("record"), join(*path))
        return value

    return walk(record, ())
