"""How long a study waits for a server that does not answer, and how often it tries."""

from __future__ import annotations

import os

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between attempts; they double."""

VARIABLE = "MEMARCH_SERVER_WAIT"
USUAL_WAIT = 60.0


def server_wait() -> float:
    """Seconds that the end of a study waits for a server that is away: `$MEMARCH_SERVER_WAIT`."""
    return float(os.environ.get(VARIABLE) or USUAL_WAIT)
