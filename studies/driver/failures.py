"""What can go wrong with a trial: each kind of failure is recorded by its name.

    out_of_memory   the GPU, the process or the machine had no more memory
    not_finite      the loss, or a score, is NaN or infinite
    time_limit      it ran longer than `study.trial_time_limit`
    worker_lost     its process or its machine died
    stalled         no training step and no evaluation for longer than `study.stall_limit`
    error           the code raised an exception

`disk_full` is not the trial's fault and no record has it: the trial waits, and the study stops.
"""

from __future__ import annotations

import errno
import traceback
from pathlib import Path
from typing import Any

from memarch.components.errors import SpecError

Json = dict[str, Any]

FAILURES = ("out_of_memory", "not_finite", "time_limit", "worker_lost", "stalled", "error")
DISK_FULL = "disk_full"

_NO_MEMORY = ("can't allocate", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SPACE_TEXTS = ("database or disk is full", "No space left on device")


class NotFiniteError(RuntimeError):
    """A loss is NaN or infinite; the message is the one-line reason."""


class StudyStoppedError(RuntimeError):
    """A study cannot go on for now; the message says why, and how it will."""


def failed(reason: str, failure: str = "error", **more: Any) -> Json:
    """A result in a worker's stead."""
    return {"state": "failed", "failure": failure, "reason": reason, "metrics": {}} | more


def result_of(error: BaseException) -> Json:
    """What a trial that raised this error gave."""
    return failed(reason_of(error), kind_of(error), place=place_of(error))


def kind_of(error: BaseException) -> str:
    """The kind of failure that an exception stands for."""
    if is_disk_full(error):
        return DISK_FULL
    if isinstance(error, NotFiniteError):
        return "not_finite"
    return "out_of_memory" if is_out_of_memory(error) else "error"


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU or of the process; torch has a class of its own only for the former."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return named or isinstance(error, MemoryError) or any(t in str(error) for t in _NO_MEMORY)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether there was no space for a file, also where a database says so."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        if any(text in str(error) for text in _NO_SPACE_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def reason_of(error: BaseException) -> str:
    """One line that says what went wrong."""
    message = " ".join(str(error).split())
    if is_out_of_memory(error):
        return f"out of memory: {message[:200]}" if message else "out of memory"
    if isinstance(error, NotFiniteError | SpecError):
        return message
    return f"{type(error).__name__}: {message}"[:300] if message else type(error).__name__


def place_of(error: BaseException) -> str:
    """Type and place of an error: equal for failures that have one cause."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"
    return f"{type(error).__name__} at {where}"
