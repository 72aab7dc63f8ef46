"""Attempts at trials as they are dealt to workers, and what a worker makes of one."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memarch.components.errors import SpecError
from memarch.studies.records.store import Json, write_text


@dataclass
class Job:
    """All that a worker needs to know about one attempt at a trial."""

    number: int
    attempt: int
    spec: Json
    folder: str
    plugins: dict[str, str] = field(default_factory=dict)
    """Text of the user's own files by file name."""
    artifacts: str | None = None
    """Where copies of what the trial leaves are kept."""
    memory: int = 0
    """Bytes that its process may hold; 0 for any number."""


def load_function(name: str) -> Callable[..., Any]:
    """The function of `package.module:name` or `path/to/file.py:name`, imported once."""
    module_name, _, attribute = name.rpartition(":")
    if not module_name.endswith(".py"):
        return getattr(importlib.import_module(module_name), attribute)
    path = Path(module_name).absolute()
    known = f"memarch_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, path)
        if spec is None or spec.loader is None:
            raise SpecError(f"{module_name} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[known] = module
        spec.loader.exec_module(module)
    return getattr(sys.modules[known], attribute)


def local_spec(job: Job, folder: Path) -> Json:
    """The spec as this machine sees it: its environment, and the plugins written beside the trial.

    Whoever runs the spec loads them.
    """
    spec = job.spec
    if "$env." in json.dumps(spec):
        from memarch.search_spaces.environment import resolve_env

        spec = resolve_env(spec)
    paths = [folder / "plugins" / name for name in job.plugins]
    for path, text in zip(paths, job.plugins.values(), strict=True):
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    return {**spec, "plugins": [str(path) for path in paths]}
