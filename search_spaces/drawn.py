"""A variant of a file with its draws: the checked sections, and where each value was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memarch.arch.settings import join
from memarch.components.errors import SpecError
from memarch.search_spaces.document import Node, Origin, node_of
from memarch.search_spaces.patches import nest
from memarch.search_spaces.resolution import Mark, Resolver

if TYPE_CHECKING:
    from memarch.search_spaces.study_file import StudyFile


@dataclass(frozen=True)
class Drawn:
    """What `StudyFile.drawn` gives."""

    file: StudyFile
    variant: str
    draws: Mapping[str, Any]
    patches: Sequence[Node]
    """Over everything else."""
    spec: dict[str, Any]
    """The sections in the form of the schema."""
    resolver: Resolver

    def changed(self, changes: Mapping[str, Any], place: str) -> Drawn:
        """The same with other values at some key paths, as they are written at `place`."""
        more = []
        for path, value in changes.items():
            mark = self.resolver.marks.get(f"{place}.{path}")
            origin = mark.origin if mark is not None else self.file.root.origin
            more.append(nest(path, node_of(value, replace(origin, source=place))))
        return self.file.drawn(self.variant, self.draws, [*self.patches, *more])

    def error(self, message: str, path: str) -> SpecError:
        """An error about the value at a key path, with the place where it was written."""
        return self.placed(SpecError(message, path=path))

    def placed(self, error: SpecError) -> SpecError:
        """The error with the place where the value at fault was written."""
        return placed(error, self.resolver.marks, self.file.path)


def placed(error: SpecError, marks: Mapping[str, Mark], path: Path) -> SpecError:
    """The error with the place where the value at fault, or what holds it, was written."""
    if error.file is not None:
        return error
    probe = error.path
    while probe and probe not in marks:
        probe = probe.rpartition(".")[0]
    mark = marks.get(probe)
    if mark is None:
        return SpecError(error.message, path=error.path, file=str(path))
    message = error.message
    if mark.near and probe == error.path and message.endswith("got a map"):
        message = mark.near
    own_key = probe == error.path and message.startswith("unknown key")
    message += "" if own_key else mark.note
    parent = marks.get(join(probe.rpartition(".")[0], "type"))
    unknown = message.startswith("unknown key") and "did you mean" not in message
    if unknown and parent and parent.origin != mark.origin:
        aside = parent.origin.file != mark.origin.file or parent.source != mark.source
        if aside and (parent.origin.source or mark.origin.source):
            message += (
                f" (`type` was set at {_place(parent.origin)}: maps merge, and "
                "`{replace: …}` drops what was there before)"
            )
    at = mark.last if mark.last is not None and probe == error.path else mark.origin
    if own_key and mark.key is not None:
        at = mark.key
    return SpecError(message, path=error.path, file=at.file, line=at.line)


def _place(origin: Origin) -> str:
    return origin.file if origin.line is None else f"{origin.file}:{origin.line}"
