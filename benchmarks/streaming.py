"""An input of 10 million tokens, read in blocks: does memory stay flat, does speed?

    python benchmarks/streaming.py [--tokens 10000000] [--result benchmarks/results/streaming.json]

A small ARMT model (4 layers, width 64, segments of 128, random weights) reads a short input and the
long one, each in a process of its own, without gradients. Peak memory is the process's own peak
from before the first token on; speed is told for each tenth of the input.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memarch.arch.build import build_model
from memarch.studies.training.machine import peak_memory_bytes, reset_peak_memory, versions

SHORT = 100_000
BLOCK = 4_000
SPEC: dict[str, Any] = {
    "backbone": {
        "type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
    "memory": {"armt": {"type": "armt", "d_mem": 16, "num_tokens": 8}},
    "segment_length": 128,
}


def read(tokens: int) -> dict[str, Any]:
    """Stream so many tokens through the model in this process."""
    model = build_model(SPEC, vocab_size=256, seed=0)
    model.write(torch.zeros(1, 4 * 128, dtype=torch.long))
    chosen = model.resolved_schedule(1)
    stamps: list[float] = []
    reset_peak_memory()
    state = model.write(stream(tokens, stamps))
    stamps.append(time.perf_counter())
    tenth = len(stamps) // 10
    blocks = [stamps[i + tenth] - stamps[i] for i in range(0, 10 * tenth, tenth)] if tenth else []
    return {
        "tokens": tokens,
        "peak_bytes": peak_memory_bytes(),
        "seconds": stamps[-1] - stamps[0],
        "tokens_per_second_by_tenth": [round(tenth * BLOCK / seconds) for seconds in blocks[:10]],
        "tokens_seen": int(state["tokens_seen"]),
        "state_bytes": state.nbytes,
        "schedule": chosen.schedule,
    }


def stream(tokens: int, stamps: list[float]) -> Iterator[Tensor]:
    """Random token ids in blocks; notes when each was asked for."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, tokens, BLOCK):
        stamps.append(time.perf_counter())
        yield torch.randint(256, (1, min(BLOCK, tokens - start)), generator=generator)


def main() -> None:
    """Read both inputs and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--read", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        print(json.dumps(read(given.read)))
        return
    rows = []
    for tokens in (SHORT, given.tokens):
        command = [sys.executable, __file__, "--read", str(tokens)]
        rows.append(json.loads(subprocess.check_output(command, text=True)))
    ratio = rows[1]["peak_bytes"] / rows[0]["peak_bytes"]
    document = {
        "device": f"CPU, {torch.get_num_threads()} threads",
        "versions": versions(),
        "spec": SPEC,
        "rows": rows,
        "peak_ratio": ratio,
    }
    text = json.dumps(document, indent=2) + "\n"
    if given.result:
        given.result.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
