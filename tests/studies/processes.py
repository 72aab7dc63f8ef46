"""Drivers in processes of their own, to be interrupted, killed, and looked at."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("driver_study.py")


class Driver(subprocess.Popen[str]):
    """A driver in a session of its own, as in a terminal: Ctrl-C reaches all its processes."""

    def __init__(self, *arguments: object, log: Path) -> None:
        self.log = log
        with log.open("a") as file:
            super().__init__(
                [sys.executable, str(SCRIPT), *map(str, arguments)],
                stdout=file,
                stderr=file,
                text=True,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 180) -> Any:
    """What the condition gives, as soon as that is true."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(f"{what} did not happen within {timeout} s")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
