"""The one error for wrong input: what was found, what was expected, what to do, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpecError(ValueError):
    """Wrong input by the user: the command line prints it without a traceback and exits with 2.

    `path` is the key path inside the document (`model.memory.main.num_tokens`); `file` and `line`
    are filled in by whoever knows the document, so that code far from any file can raise it too.
    """

    def __init__(
        self, message: str, *, path: str = "", file: str | None = None, line: int | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.path, self.file, self.line = message, path, file, line

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        return ": ".join(part for part in (place, self.path, self.message) if part)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.message, self.path, self.file, self.line))


def _rebuild(message: str, path: str, file: str | None, line: int | None) -> SpecError:
    return SpecError(message, path=path, file=file, line=line)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest valid name, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = f"known: {', '.join(names)}" if names else "nothing is known here"
    return f"did you mean {near[0]!r}? ({listed})" if near else listed
