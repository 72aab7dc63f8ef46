"""Values that training draws for every batch: `{sample: …}`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from memarch.arch.settings import join, show
from memarch.components.errors import SpecError
from memarch.search_spaces.document import KeyPath
from memarch.search_spaces.drawn import Drawn
from memarch.search_spaces.paths import get
from memarch.search_spaces.ranges import Choice, Sample, as_written
from memarch.search_spaces.resolution import DRAWN, SAMPLED


def sampled_values(drawn: Drawn) -> list[dict[str, Any]]:
    """`[{keys, range}]`: what is drawn, and for which keys; every extreme is checked."""
    used: dict[KeyPath, tuple[Sample, list[KeyPath]]] = {}
    for path, (written, known) in sorted(drawn.resolver.sampled.items()):
        used.setdefault(written, (known, []))[1].append(path)
    entries = []
    for known, paths in used.values():
        values = [
            _value_at(drawn, dict.fromkeys(paths, value), paths[0]) for value in known.extremes()
        ]
        # In the form of the schema: units are numbers, files are found from anywhere.
        inner = Choice(tuple(values)) if isinstance(known.inner, Choice) else known.inner
        entries.append({"keys": [join(*path) for path in paths], "range": as_written(inner)})
    if len(used) > 1:
        first = {path: known.extremes()[0] for known, paths in used.values() for path in paths}
        _value_at(drawn, first, next(iter(first)))
    return entries


def _value_at(drawn: Drawn, values: Mapping[KeyPath, Any], key: KeyPath) -> Any:
    """The value of a key when these are drawn, in the form that the schema gives it."""
    raw = copy.deepcopy(drawn.resolver.values)
    for path, value in values.items():
        get(raw, path[:-1])[path[-1]] = value
    try:
        return get(drawn.file.schema.parse(raw, drawn.file.folders), key)
    except SpecError as error:
        placed = drawn.placed(error)
        at = ", ".join(f"{join(*path)}={show(value)}" for path, value in values.items())
        message = placed.message.removesuffix(SAMPLED).removesuffix(DRAWN)
        message += f" (when a batch has {at})"
        raise SpecError(message, path=placed.path, file=placed.file, line=placed.line) from None
