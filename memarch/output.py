"""What the command line writes where: results to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class WorkFailedError(Exception):
    """The input was right and the work failed: exit code 1."""


class StoppedError(WorkFailedError):
    """The work was stopped from outside, and can go on."""


def log(message: str) -> None:
    """A line for people, on stderr."""
    print(message, file=sys.stderr, flush=True)


def emit(document: Any, path: Path | None = None) -> None:
    """One JSON document on stdout, or in a file."""
    from memarch.studies.records.store import plain

    text = json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False)
    if path is None:
        print(text, flush=True)
    else:
        path.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def document_only(active: bool) -> Iterator[None]:
    """Send what libraries and child processes print to stderr, so that stdout is the document's."""
    if not active:
        yield
        return
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 1)
        os.close(saved)
