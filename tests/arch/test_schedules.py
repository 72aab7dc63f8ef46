"""Every schedule that is possible gives the same outputs, states and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memarch.arch.build import build_model
from memarch.arch.exactness import assert_agree, results
from memarch.arch.model import MemarchModel
from memarch.components.errors import SpecError

MEMORIES: dict[str, dict[str, Any]] = {
    "none": {},
    "armt": {"a": {"type": "armt", "d_mem": 4, "num_tokens": 2}},
    "armt all tokens": {"a": {"type": "armt", "d_mem": 4, "write": {"source": "all_tokens"}}},
    "hebbian": {
        "a": {"type": "armt", "d_mem": 4, "feature_map": "elu1", "write": {"type": "hebbian"}}
    },
    "deltanet": {"d": {"type": "deltanet", "heads": 2}},
    "gated_deltanet beside": {"d": {"type": "gated_deltanet", "heads": 2, "beside": True}},
    "full_attention": {"k": {"type": "full_attention"}},
    "sliding_window": {"k": {"type": "sliding_window", "window": 5}},
    "mixed layers": {
        "a": {"type": "armt", "d_mem": 4, "num_tokens": 2, "layers": [0, 2]},
        "d": {"type": "deltanet", "heads": 2, "layers": [1, 2]},
    },
    "several": {
        "a": {"type": "armt", "d_mem": 4, "num_tokens": 2},
        "b": {"type": "armt", "d_mem": 3, "num_tokens": 1, "layers": [1]},
        "k": {"type": "sliding_window", "window": 4, "layers": [0, 1]},
    },
}
FAMILIES = ["llama", "gpt2", "gpt_neox", "qwen3"]


def build(
    memory: dict[str, Any], family: str = "llama", layers: int = 3, **model: Any
) -> MemarchModel:
    backbone: dict[str, Any] = {
        "type": family,
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    if family in ("llama", "qwen3"):
        backbone["num_key_value_heads"] = 2
    if family == "gpt2":
        backbone |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    spec = {"backbone": backbone, "memory": memory, "segment_length": 4, **model}
    built = build_model(spec, vocab_size=23, seed=3).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():  # zero-initialised values must not hide an error
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.1 * noise)
    return built


def in_order(model: MemarchModel, schedule: str) -> MemarchModel:
    return model.respec(model.spec.model_copy(update={"schedule": schedule}))


def possible(model: MemarchModel) -> list[str]:
    found = []
    for schedule in ("diagonal", "layerwise"):
        try:
            in_order(model, schedule).resolved_schedule()
        except SpecError:
            continue
        found.append(schedule)
    return found


def check(model: MemarchModel, ids: Tensor, mask: Tensor | None = None) -> None:
    plain = in_order(model, "sequential")
    for schedule in possible(model):
        fast = in_order(model, schedule)
        assert_agree(
            model, lambda: results(plain, ids, mask), lambda fast=fast: results(fast, ids, mask)
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("memory", ["none", "armt", "deltanet", "mixed layers"])
def test_schedules_agree_on_every_family(family: str, memory: str) -> None:
    model = build(MEMORIES[memory], family)
    assert possible(model)
    check(model, torch.randint(0, 23, (2, 14), generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("memory", MEMORIES)
def test_schedules_agree_on_every_memory_ragged_and_padded(memory: str) -> None:
    model = build(MEMORIES[memory])
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 23, (3, 15), generator=generator)
    mask = (torch.arange(15) < torch.tensor([[15], [6], [1]])).long()
    check(model, ids)
    check(model, ids, mask)


@settings(max_examples=20, deadline=None)
@given(
    memory=st.sampled_from(sorted(MEMORIES)),
    family=st.sampled_from(FAMILIES),
    layers=st.integers(3, 6),
    batch=st.integers(1, 3),
    segments=st.integers(1, 10),
    rest=st.integers(0, 3),
    seed=st.integers(0, 100),
)
def test_schedules_agree_on_random_specs(
    memory: str, family: str, layers: int, batch: int, segments: int, rest: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 23, (batch, 4 * segments + rest), generator=generator)
    check(build(MEMORIES[memory], family, layers), ids)


@pytest.mark.parametrize("memory", ["armt", "gated_deltanet beside", "mixed layers"])
def test_schedules_agree_on_a_deep_stack(memory: str) -> None:
    ids = torch.randint(0, 23, (1, 4 * 16 + 1), generator=torch.Generator().manual_seed(1))
    check(build(MEMORIES[memory], layers=12), ids)


def test_truncated_backpropagation_agrees() -> None:
    model = build(MEMORIES["armt"])
    ids = torch.randint(0, 23, (2, 16), generator=torch.Generator().manual_seed(1))

    def gradients(schedule: str, truncate: int | None) -> dict[str, Tensor]:
        chosen = in_order(model, schedule)
        chosen.zero_grad()
        chosen(ids, labels=ids, truncate=truncate).loss.backward()
        return {name: p.grad.clone() for name, p in chosen.named_parameters() if p.grad is not None}

    plain = gradients("sequential", 2)
    assert_agree(model, lambda: gradients("sequential", 2), lambda: gradients("diagonal", 2))
    whole = gradients("sequential", None)
    assert any(not torch.allclose(plain[name], whole[name]) for name in plain)


@pytest.mark.parametrize("schedule", ["diagonal", "layerwise"])
def test_a_memory_of_whole_segments_refuses_other_orders(schedule: str) -> None:
    model = in_order(build({"tokens": {"type": "rmt", "num_tokens": 2}}), schedule)
    with pytest.raises(SpecError, match="memory 'tokens' carries its state"):
        model(torch.zeros(1, 8, dtype=torch.long))


def test_an_associative_memory_refuses_the_layerwise_order() -> None:
    model = in_order(build(MEMORIES["armt"]), "layerwise")
    with pytest.raises(SpecError, match="memory 'a' takes one segment at a time"):
        model(torch.zeros(1, 8, dtype=torch.long))
