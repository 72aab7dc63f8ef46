"""How a running study is stopped: in order, at once, or by a problem of its own.

Ctrl-C        what runs is finished, nothing new begins
Ctrl-C again  what runs saves a checkpoint and stops; so does SIGTERM, a cluster's end of time
a third time  the driver ends where it stands
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

GO_ON, FINISH, HALT = range(3)


class Stopping:
    """How far a study is to stop, and why, where that was not asked from outside."""

    def __init__(self) -> None:
        self.level = GO_ON
        self.asked = False
        """By a signal."""
        self.reason = ""
        """Of a study that stops by itself."""
        self._pipe = -1

    def because(self, reason: str, level: int = FINISH) -> None:
        """Stop for a problem; the first one counts."""
        self.reason = self.reason or reason
        self.level = max(self.level, level)

    @contextmanager
    def on(self, number: signal.Signals) -> Iterator[None]:
        """Take a signal as the wish to stop, for as long as the block runs."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(number, self._take)
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        outer, self._pipe = self._pipe, reading
        woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            self._pipe = outer
            signal.signal(number, before)
            os.close(reading)
            os.close(writing)

    def _take(self, signum: int, frame: object) -> None:
        """Signals that come while Ray waits are handled once, after it: the pipe has them all."""
        with suppress(BlockingIOError):
            for one in os.read(self._pipe, 64):
                self._ask(one)

    def _ask(self, signum: int) -> None:
        if signum not in (signal.SIGINT, signal.SIGTERM):
            return
        if self.asked and self.level == HALT:
            raise KeyboardInterrupt
        harder = signum == signal.SIGTERM or self.asked
        self.level = HALT if harder else max(self.level, FINISH)
        self.asked = True
