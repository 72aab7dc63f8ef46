"""Signs of life of a trial, from inside its process: it goes forward, stands still, or must end.

Whoever trains or evaluates calls `beat()` after each step and each batch of an evaluation. A thread
beside the trial tells the driver every few seconds whether there was a beat, takes its order to
save and stop, and ends the process when it holds more memory than its `resources.memory`. So a
process that trains for hours without an evaluation is alive, and one that waits for ever is not.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

from memarch.studies.records.store import Json, write_json

INTERVAL = 5.0
"""Seconds between two messages to the driver."""
WATCH = 0.5
"""Seconds between two looks at the process's memory."""

MEMORY_EXIT = 77


class HaltedError(BaseException):
    """The run was told to save and to stop. No `Exception`: nothing went wrong."""


class _Signs:
    """Of the one trial that this process runs."""

    def __init__(self) -> None:
        self.beats = 0
        self.halted = False
        self.notes: list[str] = []
        self.heard = False


_signs = _Signs()


def beat() -> None:
    """A step was finished, or a batch evaluated."""
    _signs.beats += 1


def halted() -> bool:
    """Whether the run is to save a checkpoint and to raise `HaltedError`."""
    return _signs.halted


def note(text: str) -> bool:
    """Something that people should read while the trial goes on; whether it reaches them."""
    _signs.notes.append(text)
    return _signs.heard


class Heartbeat:
    """The thread, for as long as the block runs."""

    def __init__(self, key: tuple[int, int], folder: Path, mailbox: Any, most_memory: int) -> None:
        self._key, self._folder, self._mailbox = key, folder, mailbox
        self._most_memory = most_memory
        self._ended = threading.Event()

    def __enter__(self) -> None:
        global _signs
        _signs = _Signs()
        _signs.heard = True
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        _signs.heard = False

    def _run(self) -> None:
        import ray

        seen = -1
        while not (self._ended.is_set() or _signs.halted):
            notes, _signs.notes = _signs.notes, []
            moved, seen = _signs.beats != seen, _signs.beats
            # Where the driver is going down, there is nobody to tell.
            with contextlib.suppress(ray.exceptions.RayError):
                waiting = self._mailbox.watch.remote(self._key, moved, notes, INTERVAL)
                while not self._ended.is_set():
                    self._check_memory()
                    if ray.wait([waiting], timeout=WATCH)[0]:
                        if not self._ended.is_set():
                            _signs.halted |= ray.get(waiting)
                        break
            self._ended.wait(WATCH)

    def _check_memory(self) -> None:
        held = resident_bytes()
        if self._most_memory and held > self._most_memory:
            reason = (
                f"out of memory: its process held {held / 2**20:.0f} MiB, and resources.memory is "
                f"{self._most_memory / 2**20:.0f} MiB"
            )
            death: Json = {"attempt": self._key[1], "failure": "out_of_memory", "reason": reason}
            with contextlib.suppress(OSError):
                write_json(self._folder / "death.json", death)
            os._exit(MEMORY_EXIT)


def resident_bytes() -> int:
    """Main memory that this process holds; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def oom_kills() -> int | None:
    """How many processes the kernel of this machine has killed for want of memory."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
