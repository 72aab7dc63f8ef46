"""The public face: what `import memarch` gives, and the command line.

    model = memarch.build("model.yaml")              # a transformers PreTrainedModel
    state = model.write(context_ids)                 # read a context once ...
    answer = model.generate(query_ids, memory=state) # ... answer many queries from it
    results = memarch.run_study("study.yaml"); results.best_trial["metrics"]; results.frame()

Names are looked up on first use, so `import memarch` itself imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memarch.api import StudyResult, build, load, load_study, run_study, study_results
    from memarch.arch.model import MemarchConfig, MemarchModel
    from memarch.arch.state import MemoryState
    from memarch.components.errors import SpecError

_HOME = {
    "build": "memarch.api",
    "load": "memarch.api",
    "load_study": "memarch.api",
    "run_study": "memarch.api",
    "study_results": "memarch.api",
    "StudyResult": "memarch.api",
    "MemarchConfig": "memarch.arch.model",
    "MemarchModel": "memarch.arch.model",
    "MemoryState": "memarch.arch.state",
    "SpecError": "memarch.components.errors",
}

__all__ = [
    "MemarchConfig",
    "MemarchModel",
    "MemoryState",
    "SpecError",
    "StudyResult",
    "build",
    "load",
    "load_study",
    "run_study",
    "study_results",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'memarch' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
