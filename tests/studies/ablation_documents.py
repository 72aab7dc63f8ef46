"""Documents of ablations, as `memarch study show --json` has them, from scores alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MATCH, LOSS = "eval/kv/exact_match", "eval/text/loss"

Scores = Mapping[str, Sequence[float | None]]


def document(
    scores: Scores, *, metric: str = MATCH, equivalence: float | None = None, **fields: Any
) -> dict[str, Any]:
    """Settings by name, the baseline first, with a score a seed; None for a seed that failed."""
    direction = "minimize" if metric == LOSS else "maximize"
    trials = [
        trial(setting, seed, score, metric) | {"number": 100 * index + seed}
        for index, (setting, values) in enumerate(scores.items())
        for seed, score in enumerate(values, start=1)
    ]
    baseline, *others = scores
    about = {
        "baseline": baseline,
        "settings": dict.fromkeys(others, ""),
        "equivalence": equivalence,
    }
    return {
        "name": "study",
        "state": "complete",
        "design": "ablation",
        "objective": {metric: direction},
        "ablation": about,
        "trials": trials,
        "best": [],
    } | fields


def trial(setting: str, seed: int, score: float | None, metric: str = MATCH) -> dict[str, Any]:
    return {
        "number": seed,
        "variant": setting,
        "state": "failed" if score is None else "complete",
        "params": {},
        "metrics": {} if score is None else {metric: score},
        "spec": {"study": {"seeds": {"model": seed}}, "train": {"early_stop": None}},
        "reason": "",
        "attempts": 1,
        "seed": seed,
        "converged": score is not None,
    }
