"""Workers that outlive their driver for a moment: nobody else may write in a trial's folder."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from memarch.studies.records.store import lives_here, read_json


def end_orphan(folder: Path, attempt: int | None = None) -> None:
    """End the process that was last at the trial in this folder, where it runs on this machine.

    With an attempt only if it was at that one: it may be at another trial by now.
    """
    process = read_json(folder / "worker.json")
    if process is not None and attempt not in (None, process.get("attempt")):
        return
    while process is not None and lives_here(process):
        with suppress(ProcessLookupError):
            os.kill(process["pid"], signal.SIGKILL)
        time.sleep(0.02)
