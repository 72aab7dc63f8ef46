"""A trial of two processes that sum numbers together, step by step, with checkpoints.

The question of its study tells: `{"die": [0], "hang": [1]}`, by trials' numbers.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist

STEPS = 4


def run(spec: dict[str, Any], folder: Path, report: Any) -> dict[str, Any]:
    plan, number = json.loads(spec["study"]["question"]), int(folder.name)
    rank = dist.get_rank()
    (folder / f"pid-{os.getpid()}").write_text(f"{rank} {ray.get_runtime_context().get_node_id()}")
    checkpoint = folder / "checkpoint.json"
    begun, total = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, 0.0)
    dist.barrier()
    for step in range(begun, STEPS):
        value = torch.tensor([float(rank + 1)])
        dist.all_reduce(value)  # 3 with two processes
        total += value.item()
        stop = [report(step, {"eval/kv/exact_match": total}) if rank == 0 else None]
        dist.broadcast_object_list(stop)
        if rank == 0:
            checkpoint.write_text(json.dumps([step + 1, total]))
        dist.barrier()
        if rank == 1 and step == 1 and not begun and number in plan["die"]:
            os.kill(os.getpid(), 9)
        if number in plan["hang"]:
            time.sleep(600)
    metrics = {"eval/kv/exact_match": total, "train/begun": float(begun)}
    result = {"state": "complete", "reason": None, "metrics": metrics}
    if rank == 0:
        (folder / "result.json").write_text(json.dumps(result))
    return result
