"""A trial that takes no time, and does what the `question` of its study tells it: no training.

The question is JSON: `{"fail": [2], "nan": [3], "seconds": 0.2, "reports": 5, "die": {"4": 1}}`.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

STEPS = 100


def score(spec: dict[str, Any]) -> float:
    """Best at lr = 0.003, better with larger segments, different from seed to seed."""
    distance = abs(math.log10(spec["train"]["lr"]) - math.log10(0.003))
    seed = spec["study"]["seeds"]["model"]
    return round(
        1 - 0.3 * distance + 0.001 * spec["model"]["segment_length"] + 0.0001 * (seed % 7), 6
    )


def run(spec: dict[str, Any], folder: Path, report: Any) -> dict[str, Any]:
    plan = json.loads(spec["study"]["question"] or "{}")
    number = int(folder.name)
    with (folder / "pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    attempt = len((folder / "pids").read_text().split())
    if number in plan.get("fail", []):
        raise ValueError(f"trial {number} was told to fail")
    misbehave(plan, number, spec)
    if spec["plugins"]:
        return of_plugin(spec)
    final = score(spec)
    state_bytes = float(64 * spec["model"]["segment_length"])
    checkpoint = folder / "checkpoint"
    begun = int(checkpoint.read_text()) if checkpoint.exists() else 0
    reports = plan.get("reports", 2)
    for index in range(begun, reports):
        step = STEPS * (index + 1) // reports
        metrics = {
            "eval/kv/exact_match": round(final * step / STEPS, 6),
            "cost/state_bytes": state_bytes,
        }
        time.sleep(plan.get("seconds", 0) / reports)
        if report(step, metrics | {"train/begun": float(begun)}):
            return {"state": "pruned", "reason": "stopped by the pruner", "metrics": metrics}
        checkpoint.write_text(str(index + 1))
        if number in plan.get("pause", []) and attempt == 1:
            pause(folder.parents[1] / "go_on")
        if attempt <= plan.get("die", {}).get(str(number), 0):
            os.kill(os.getpid(), 9)
    if number in plan.get("hang", []):
        time.sleep(600)
    metrics = {
        "eval/kv/exact_match": math.nan if number in plan.get("nan", []) else final,
        "eval/kv/loss": 1 - final,
        "cost/state_bytes": state_bytes,
        "cost/train_flops": 1e6,
        "train/flops": 1e6,
        "train/begun": float(begun),
    }
    if number in plan.get("silent", []):
        del metrics["eval/kv/exact_match"]
    return {"state": "complete", "metrics": metrics, "converged": True}


HELD: list[bytes] = []
"""What trials that leak never let go."""


def misbehave(plan: dict[str, Any], number: int, spec: dict[str, Any]) -> None:
    """`{"largest_batch": {"1": 8}, "eat": [2], "leak": {"3": 300}}`, memory in MiB."""
    most = plan.get("largest_batch", {}).get(str(number))
    if most is not None and spec["train"]["batch_size"] > most:
        raise MemoryError(f"no room for {spec['train']['batch_size']} samples")
    if number in plan.get("eat", []):
        eaten = []
        while True:
            eaten.append(b"1" * 2**26)
            time.sleep(0.2)
    if str(number) in plan.get("leak", {}):
        HELD.append(b"1" * (plan["leak"][str(number)] * 2**20))


def pause(sign: Path) -> None:
    """Until there is a sign, or a minute. Like training, it ends where its driver says so."""
    from memarch.studies.cluster import heartbeat

    for _ in range(600):
        if heartbeat.halted():
            raise heartbeat.HaltedError
        if sign.exists():
            return
        time.sleep(0.1)


def cost(spec: dict[str, Any], names: list[str]) -> dict[str, float]:
    """What a model is said to cost before it runs: only where the plan has `"weighed": true`."""
    plan = json.loads(spec["study"]["question"] or "{}")
    known = {"cost/state_bytes": 64.0 * spec["model"]["segment_length"]}
    return {name: known[name] for name in names if name in known} if plan.get("weighed") else {}


def of_plugin(spec: dict[str, Any]) -> dict[str, Any]:
    """The score is a number that the user's own class holds."""
    from memarch.components.memory import memories
    from memarch.components.plugins import load_plugins

    (path,) = spec["plugins"]
    load_plugins([path])
    used = spec["model"]["memory"].get("main")
    answer = float(memories[used["type"]].cls.answer) if used else 0.0  # type: ignore[attr-defined]
    return {"state": "complete", "metrics": {"eval/kv/exact_match": answer}, "plugins": [path]}


def test(spec: dict[str, Any], folder: Path) -> dict[str, float]:
    """The test split: a little worse than validation."""
    with (folder / "tested").open("a") as file:
        file.write("once\n")
    return {"test/kv/exact_match": score(spec) - 0.05}


test.__test__ = False  # type: ignore[attr-defined]
