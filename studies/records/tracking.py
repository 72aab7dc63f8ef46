"""What the driver tells MLflow: one experiment and one parent run a study, one child run a trial.

MLflow mirrors the study's folder. A process of its own does it (`records.mirror`), which is told
the numbers of the trials that changed and reads the rest from their folders: so neither a slow
start nor a slow or absent server holds up a trial, and what waits for a server takes no memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from memarch.components.errors import SpecError
from memarch.studies.records.store import StudyFolder

OFF = "off"
CLOSE = "close"
MOST_STARTS = 3
"""Of the process: one that was killed is started anew, and finds out what is missing."""


def own_database(storage: Path) -> str:
    """MLflow's SQLite file in the storage folder."""
    return f"sqlite:///{storage / 'mlflow.db'}"


def tracking_uri(storage: Path) -> str | None:
    """`$MLFLOW_TRACKING_URI`, else the storage folder's own; None when it is `off`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or own_database(storage)
    return None if uri == OFF else uri


def check_tracking_uri(storage: Path) -> None:
    """Refuse what MLflow would refuse, before anything starts."""
    uri = tracking_uri(storage)
    if uri is None:
        return
    local = "://" not in uri or uri.startswith("file:")
    allowed = os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() == "true"
    if local and not allowed and uri not in ("databricks", "uc"):
        raise SpecError(
            f"MLFLOW_TRACKING_URI={uri} is a folder, which MLflow no longer writes to; give a "
            "database such as sqlite:///mlflow.db or a server, or `off`, or unset it"
        )


def metric_name(name: str) -> str:
    """As MLflow takes it, of metrics and parameters: letters, digits, `_ - . : /` and spaces."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "-" for c in name)


def run_name(
    number: int, variant: str, drawn: Mapping[str, Any], copy_of: int | None = None
) -> str:
    """A name for people: `007 gradmem nt8 ws2`, what was drawn by the initials of its words;
    `009 gradmem nt8 ws2 = 007` where that trial was the same."""
    shown = [f"{_initials(name)}{_short(value)}" for name, value in drawn.items()]
    same = [] if copy_of is None else [f"= {copy_of:03d}"]
    return " ".join([f"{number:03d}", *([variant] if variant else []), *shown, *same])


def _initials(name: str) -> str:
    last = name.rpartition(".")[2]
    return "".join(word[0] for word in last.replace("-", "_").split("_") if word)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2g}"
    if isinstance(value, (list, tuple)):
        return "+".join(_short(item) for item in value)
    return str(value)


class Tracking:
    """The driver's end: calls return at once, and are safe to repeat."""

    def __init__(self, folder: StudyFolder) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: threading.Thread | None = None
        self._starts = 0
        self._problems: SimpleQueue[str] = SimpleQueue()

    def open(self) -> None:
        """Begin: the process makes or finds the parent run, and mends what an earlier one left."""
        if tracking_uri(self._folder.storage) is not None:
            self._start()

    def changed(self, number: int) -> None:
        """A trial's record or reports have changed, and are written."""
        self._send(str(number))

    def close(self) -> None:
        """Attach the report, end the parent run, and wait until all is written.

        A server that does not answer is waited for a while, `studies.patience`.
        """
        self._send(CLOSE)
        self.abandon()

    def abandon(self) -> None:
        """Let go: without `close` before, what is not written waits for `resume`."""
        if self._process is None or self._listener is None:
            return
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._listener.join()
        self._process.wait()
        self._process = None

    def problems(self) -> Iterator[str]:
        """What went wrong since the last call."""
        while not self._problems.empty():
            yield self._problems.get()

    def _start(self) -> None:
        self._starts += 1
        # -P: the folder in which the user stands holds no modules of ours.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "memarch.studies.records.mirror", str(self._folder.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is the driver's to handle
        )
        self._listener = threading.Thread(
            target=self._listen, args=(self._process.stdout,), name="mlflow", daemon=True
        )
        self._listener.start()

    def _listen(self, lines: Any) -> None:
        for line in lines:
            self._problems.put(line.decode().strip())

    def _send(self, message: str) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{message}\n".encode())
        except BrokenPipeError:
            self._process.wait()
            self._process = None
            if self._starts == MOST_STARTS:
                self._problems.put("MLflow: logging ended early; resuming the study mends it")
                return
            self._start()
            self._send(message)
