"""How a running study is stopped: in order, at once, or by a problem of its own.

Ctrl-C        what runs is finished, nothing new begins
Ctrl-C again  what runs saves a checkpoint and stops; so does SIGTERM, a cluster's end of time
a third time  the driver ends where it stands
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GO_ON, FINISH, HALT = range(3)


class Stopping:
    """How far a study is to stop, and why, where that was not asked from outside."""

    def __init__(self) -> None:
        self.level = GO_ON
        self.asked = False
        """By a signal."""
        self.reason = ""
        """Of a study that stops by itself."""

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

        def take(signum: int, frame: object) -> None:
            if self.asked and self.level == HALT:
                raise KeyboardInterrupt
            harder = signum == signal.SIGTERM or self.asked
            self.level = HALT if harder else max(self.level, FINISH)
            self.asked = True

        before = signal.signal(number, take)
        try:
            yield
        finally:
            signal.signal(number, before)
