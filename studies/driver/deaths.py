"""Why a worker died, as far as its folder, its machine and Ray know."""

from __future__ import annotations

import socket
from pathlib import Path

from memarch.studies.cluster.heartbeat import oom_kills
from memarch.studies.driver.failures import failed
from memarch.studies.records.store import Json, read_json

_MEMORY = ("running low on memory", "OutOfMemory", "memory pressure")
_NODE = ("node has died", "node died", "raylet", "node failure")


def result_of_death(folder: Path, attempt: int, error: BaseException) -> Json:
    """The attempt's failure; `begun` says whether its worker had begun with it."""
    process = read_json(folder / "worker.json") or {}
    begun = process.get("attempt") == attempt
    own = read_json(folder / "death.json") or {}
    if own.get("attempt") == attempt:
        return failed(own["reason"], own["failure"], begun=True)
    text = f"{type(error).__name__} {error}"
    if any(sign in text for sign in _MEMORY):
        reason = "out of memory: Ray ended its worker because the machine had no memory left"
        return failed(reason, "out_of_memory", begun=begun)
    if begun and _killed_by_kernel(process):
        reason = "out of memory: the kernel ended its worker because the machine had none left"
        return failed(reason, "out_of_memory", begun=True)
    lost = "its machine was lost" if any(sign in text for sign in _NODE) else "its worker died"
    return failed(lost, "worker_lost", begun=begun)


def _killed_by_kernel(process: Json) -> bool:
    """Whether this machine's kernel has ended processes since the worker began."""
    before, now = process.get("oom_kills"), oom_kills()
    here = process.get("host") == socket.gethostname()
    return here and before is not None and now is not None and now > before
