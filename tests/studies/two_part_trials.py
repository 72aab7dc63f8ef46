"""A trial that trains in one job and is evaluated in another; the worker of each notes its size."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import ray


def run(spec: dict[str, Any], folder: Path, report: Any) -> dict[str, Any]:
    plan, number = json.loads(spec["study"]["question"]), int(folder.name)
    part = "evaluate" if (folder / "trained.json").exists() else "train"
    resources = ray.get_runtime_context().get_assigned_resources()
    (folder / part).write_text(json.dumps(resources))
    metrics = {"eval/kv/exact_match": 0.5}
    report(1, metrics)
    if part == "train":
        (folder / "trained.json").write_text("{}")
        return {"state": "trained", "metrics": {}}
    if number in plan["slow"]:
        time.sleep(600)
    return {"state": "complete", "metrics": metrics}
