"""Folders of finished studies for tests of the report: many trials, made up, without a driver."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from memarch.studies.records.store import write_json

METRIC = "eval/kv/exact_match"
LR = {"float": [1e-4, 1e-1], "log": True}
RANGES: dict[str, dict[str, Any]] = {
    "none": {"lr": LR},
    "rmt": {
        "lr": LR,
        "num_tokens": {"choice": [1, 2, 4, 8]},
        "segment_length": {"choice": [8, 16, 32]},
        "write_steps": {"int": [1, 3]},
    },
    "gradmem": {
        "lr": LR,
        "num_tokens": {"choice": [1, 2, 4, 8]},
        "segment_length": {"choice": [8, 16, 32]},
        "write_steps": {"int": [1, 3]},
    },
    "armt": {"lr": LR, "layers": {"subset": [0, 1, 2, 3], "size": [1, 2]}},
}
FAILURES = ("out_of_memory", "not_finite", "worker_lost", "error")


def write_finished_study(
    storage: Path, trials: int, *, name: str = "made_up", seeds: int = 1, **info: Any
) -> Path:
    """A study of so many trials, drawn from `RANGES`; the folder."""
    folder, draw = storage / "studies" / name, random.Random(0)
    number = 0
    while number < trials:
        variant = list(RANGES)[number // seeds % len(RANGES)]
        params = {key: _draw(known, draw) for key, known in RANGES[variant].items()}
        for seed in range(1, seeds + 1):
            if number < trials:
                _write_trial(folder, number, variant, params, seed, draw)
                number += 1
    scores = {
        int(path.parent.name): record["metrics"].get(METRIC, 0.0)
        for path in (folder / "trials").glob("*/record.json")
        if (record := json.loads(path.read_text()))["state"] == "complete"
    }
    best = max(scores, key=lambda key: scores[key])
    settings = {"question": "Which memory recalls most?", "seeds": {"model": 1, "data": 1}}
    write_json(folder / "resolved.json", {"study": settings, "ranges": RANGES})
    known = {
        "name": name,
        "id": "0123456789abcdef",
        "state": "complete",
        "objective": {METRIC: "maximize"},
        "design": "search",
        "best": [best],
        "best_values": {METRIC: scores[best]},
        "created": 1.7e9,
        "elapsed": 3600.0,
        "file": "made_up.yaml",
        "overrides": [],
        "counts": {},
    }
    write_json(folder / "study.json", known | info)
    (folder / "study.yaml").write_text("study: {name: made_up}\n")
    return folder


def _draw(known: dict[str, Any], draw: random.Random) -> Any:
    if "choice" in known:
        return draw.choice(known["choice"])
    if "int" in known:
        return draw.randint(*known["int"])
    if "subset" in known:
        return sorted(draw.sample(known["subset"], draw.randint(*known["size"])))
    low, high = (math.log10(end) for end in known["float"])
    return 10 ** draw.uniform(low, high)


def _write_trial(
    folder: Path, number: int, variant: str, params: Any, seed: int, draw: random.Random
) -> None:
    tokens, steps = params.get("num_tokens", 0), params.get("write_steps", 1)
    good = {"none": 0.06, "rmt": 0.3, "gradmem": 0.5, "armt": 0.55}[variant]
    good += 0.05 * tokens + (0.2 if 2 in params.get("layers", []) else 0.0)
    good -= 0.1 * abs(math.log10(params["lr"]) + 2.5)
    score = min(1.0, max(0.0, good + draw.gauss(0, 0.03)))
    failure = draw.choice(FAILURES) if draw.random() < 0.05 else None
    metrics = {
        METRIC: score,
        "eval/kv/floor/blind": 0.0625,
        "eval/kv/floor/guess_seen": 0.2975,
        "cost/state_bytes": 256.0 * tokens,
        "cost/parameters": 136_000.0 + 64 * tokens,
        "cost/flops_per_token": 270_000.0 * steps + 1000 * tokens,
        "cost/wall_seconds": 20.0 * steps + draw.random(),
    }
    metrics |= {f"eval/kv/exact_match/distance/{n}": score * draw.random() for n in range(12)}
    own = folder / "trials" / f"{number:03d}"
    record = {
        "number": number,
        "variant": variant,
        "state": "failed" if failure else "complete",
        "params": params,
        "metrics": {} if failure else metrics,
        "reason": f"told to fail: {failure}" if failure else "",
        "failure": failure,
        "attempts": 1,
        "seed": seed,
        "hash": f"{number:064x}",
        "copy_of": None,
        "mechanism": variant,
        "run_name": f"{number:03d} {variant}",
    }
    write_json(own / "record.json", record)
    memory = {} if variant == "none" else {"main": {"type": variant}}
    spec = {"study": {"seeds": {"model": seed}}, "model": {"memory": memory}}
    write_json(own / "spec.json", spec)
    write_json(own / "result.json", {"versions": {"torch": "2.13.0"}, "threads": 1})
    lines = [
        {
            "attempt": 1,
            "step": 50 * n,
            "time": 1.7e9 + n,
            "metrics": {
                METRIC: score * n / 10,
                "train/tokens": 38_400.0 * n,
                "train/flops": 1e10 * n * steps,
                "train/seconds": 2.0 * n,
            },
        }
        for n in range(1, 11)
    ]
    (own / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
