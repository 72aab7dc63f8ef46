"""Whole models on Triton kernels: outputs, states and gradients are those of plain PyTorch."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from memarch.arch.build import build_model
from memarch.arch.exactness import assert_agree, results
from memarch.arch.model import MemarchModel

MEMORIES: dict[str, dict[str, Any]] = {
    "armt": {"type": "armt", "d_mem": 4, "num_tokens": 2},
    "hebbian": {"type": "armt", "d_mem": 4, "feature_map": "elu1", "write": {"type": "hebbian"}},
    "deltanet": {"type": "deltanet", "heads": 1},
    "gated_deltanet": {"type": "gated_deltanet", "heads": 1},
}
BACKBONES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}

GROUPED = {"llama": {"grouped_linear"}, "gpt2": {"grouped_linear", "layer_norm"}}
"""What the layers of a group have as kernels, and a layer alone has not."""


def build(memory: str, backbone: str, schedule: str, impl: str) -> MemarchModel:
    """2 layers of width 16, segments of 8, float32."""
    spec = {
        "backbone": {
            "type": backbone,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            **BACKBONES[backbone],
        },
        "memory": {"m": MEMORIES[memory]},
        "segment_length": 8,
        "schedule": schedule,
        "impl": impl,
    }
    model = build_model(spec, vocab_size=23, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # zero-initialised values must not hide an error
            noise = torch.randn(parameter.shape, generator=generator, device="cpu")
            parameter.add_(0.1 * noise.to(parameter.device))
    return model


def tokens(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 23, (2, length), generator=generator, device="cpu")


@pytest.fixture
def launched(_triton: None, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The operations whose kernels the interpreter ran."""
    from triton.runtime.interpreter import GridExecutor

    operations: set[str] = set()
    launch = GridExecutor.__call__

    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        operations.add(self.fn.__module__.split(".")[2])
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", record)
    return operations


@pytest.mark.parametrize(("schedule", "length"), [("sequential", 21), ("diagonal", 24)])
@pytest.mark.parametrize(
    ("memory", "backbone", "operations"),
    [
        ("armt", "llama", {"rms_norm", "associative_read", "associative_write"}),
        ("armt", "gpt2", {"associative_read", "associative_write"}),
        ("hebbian", "llama", {"rms_norm", "associative_read", "associative_write"}),
        ("deltanet", "llama", {"rms_norm", "delta_rule"}),
        ("gated_deltanet", "llama", {"rms_norm", "delta_rule"}),
    ],
)
@pytest.mark.skipif(os.environ["TRITON_INTERPRET"] != "1", reason="records the interpreter")
@pytest.mark.usefixtures("nan_poisoned")
def test_triton_equals_plain_pytorch(
    memory: str,
    backbone: str,
    operations: set[str],
    schedule: str,
    length: int,
    launched: set[str],
) -> None:
    """Three segments; where the last one is short, the second text has less than two."""
    ids, mask = tokens(length), None
    if length % 8:
        mask = (torch.arange(length) < torch.tensor([[length], [11]])).long()
    plain, fast = (build(memory, backbone, schedule, impl) for impl in ("reference", "triton"))
    assert_agree(plain, lambda: results(plain, ids, mask), lambda: results(fast, ids, mask))
    if schedule == "diagonal":
        operations = operations | GROUPED[backbone]
    assert launched == operations
