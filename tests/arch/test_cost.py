"""The cost model against counted values: another counter, the allocator, the trainer itself."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from memarch.arch import cost
from memarch.arch.build import build_model
from memarch.arch.cost import Lengths, break_even, full_attention, measure
from memarch.arch.model import MemarchModel

MEMORIES: dict[str, dict[str, Any]] = {
    "none": {},
    "rmt": {"type": "rmt", "num_tokens": 2},
    "gradmem": {"type": "gradmem", "num_tokens": 2, "write": {"steps": 2}},
    "armt": {"type": "armt", "d_mem": 4, "num_tokens": 2},
    "deltanet": {"type": "deltanet", "heads": 2},
    "full_attention": {"type": "full_attention"},
    "sliding_window": {"type": "sliding_window", "window": 4},
}
CONTEXT, QUERY, QUERIES, SCORED, ROWS = 18, 5, 3, 2, 4


def build(memory: str, *, layers: int = 2, **settings: Any) -> MemarchModel:
    given = MEMORIES[memory]
    backbone = {
        "type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
    }
    spec = {
        "backbone": backbone,
        "memory": {"main": given} if given else {},
        "segment_length": 8,
        "schedule": "sequential",
        **settings,
    }
    return build_model(spec, vocab_size=11, seed=1)


def batch(rows: int = ROWS) -> dict[str, torch.Tensor]:
    labels = torch.zeros(rows * QUERIES, QUERY, dtype=torch.long)
    labels[:, : QUERY - SCORED] = -100
    return {
        "context_ids": torch.zeros(rows, CONTEXT, dtype=torch.long),
        "input_ids": torch.zeros(rows * QUERIES, QUERY, dtype=torch.long),
        "labels": labels,
    }


def costs(model: MemarchModel, **more: Any) -> dict[str, float]:
    given = {"queries": QUERIES, "scored": SCORED, "batch_size": ROWS} | more
    return measure(model, context_length=CONTEXT, query_length=QUERY, **given)


def step(model: MemarchModel, rows: int, **more: Any) -> None:
    loss = model(**batch(rows), **more).loss
    torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


def products(work: Any) -> int:
    """Operations of matrix products by the profiler, from the shapes that kernels were given."""
    with profile(activities=[ProfilerActivity.CPU], with_flops=True, record_shapes=True) as seen:
        work()
    return sum(event.flops for event in seen.events() if event.name in ("aten::mm", "aten::addmm",
               "aten::bmm", "aten::baddbmm"))  # fmt: skip


def allocated(work: Any) -> int:
    """The highest sum of what the allocator had given and not got back."""
    gc.collect()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            work()
    finally:
        gc.enable()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("memory", ["none", "rmt", "gradmem", "armt"])
@pytest.mark.parametrize("truncate", [None, 1])
def test_training_flops_are_those_of_a_training_step(memory: str, truncate: int | None) -> None:
    model = build(memory)
    counted = products(lambda: step(model, 2, truncate=truncate)) / 2
    # The rotary table: one product of positions a segment, of 2 * head / 2 * T, in no formula here.
    found = costs(model, truncate=truncate)["cost/flops_train_per_token"]
    assert found * (CONTEXT + QUERIES * QUERY) == pytest.approx(counted, rel=0.02)


def test_truncation_and_checkpointing_change_the_flops_of_training() -> None:
    model = build("armt")
    whole = costs(model)["cost/flops_train_per_token"]
    assert costs(model, truncate=1)["cost/flops_train_per_token"] < 0.8 * whole
    model.gradient_checkpointing = True
    again = costs(model)["cost/flops_train_per_token"]
    assert 1.2 * whole < again < 1.5 * whole


def test_what_is_frozen_needs_no_gradient() -> None:
    model = build("armt")
    whole = costs(model)["cost/flops_train_per_token"]
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith("memories"))
    assert costs(model)["cost/flops_train_per_token"] < whole


@pytest.mark.parametrize("memory", MEMORIES)
def test_peak_activations_are_what_the_allocator_gives(memory: str) -> None:
    """Gradients that add up count beside their sum, which the allocator sees done in place."""
    model = build(memory)
    step(model, ROWS)
    real = allocated(lambda: step(model, ROWS))
    found = costs(model)["cost/peak_activation_bytes"]
    assert real <= 1.01 * found
    assert found <= 1.1 * real
    assert found > costs(model, batch_size=1)["cost/peak_activation_bytes"]


@pytest.mark.gpu
def test_peak_activations_on_a_gpu() -> None:
    model = build("none", layers=4, impl="reference").to("cuda")
    inputs = {name: value.cuda() for name, value in batch(256).items()}

    def run() -> None:
        loss = model(**inputs).loss
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    run()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    real = torch.cuda.max_memory_allocated() - before
    assert costs(model, batch_size=256)["cost/peak_activation_bytes"] == pytest.approx(
        real, rel=0.1
    )


@pytest.mark.parametrize("memory", ["rmt", "armt", "deltanet"])
def test_a_large_model_is_measured_without_numbers(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(memory, layers=1)
    real = costs(model)
    monkeypatch.setattr(cost, "SMALL", 0)
    shapes = costs(model)
    peak = "cost/peak_activation_bytes"
    assert shapes.pop(peak) == pytest.approx(real.pop(peak), rel=0.05)
    assert shapes == real
    monkeypatch.undo()
    step(model, 1)  # nothing unreal has stayed behind


def test_reading_by_full_attention_is_what_a_cache_counts() -> None:
    """In one segment, the cache's own operations are the baseline's."""
    model = build("full_attention", segment_length=32)
    found = costs(model)
    assert full_attention(model, CONTEXT, QUERY) == (
        found["cost/flops_write"],
        found["cost/flops_read"],
    )
    assert found["cost/break_even_queries"] == 0


def test_break_even_is_where_the_two_cost_the_same() -> None:
    number = break_even(1000, 10, 400, 30)
    assert number == 30
    assert 1000 + number * 10 == 400 + number * 30
    assert break_even(400, 30, 400, 30) == 0
    assert break_even(300, 40, 400, 30) == float("inf")  # cheaper at first, dearer for ever after
    assert break_even(500, 30, 400, 30) == float("inf")


def test_a_long_context_is_worth_writing() -> None:
    """Few queries against a short context, none against a long one: attention is the dearer."""
    model = build("gradmem")

    def number(context: int) -> float:
        found = measure(model, context_length=context, query_length=QUERY)
        return found["cost/break_even_queries"]

    assert number(QUERY) == float("inf")
    assert 0 < number(512) < float("inf")


def test_a_growing_state_is_measured_after_the_longest_context() -> None:
    bare = costs(build("full_attention"))["cost/state_floats"]
    longer = costs(build("full_attention"), state_length=2 * CONTEXT)["cost/state_floats"]
    assert longer == 2 * bare
    for memory in ("rmt", "sliding_window"):
        model = build(memory)
        assert costs(model) == costs(model, state_length=2 * CONTEXT)


def test_lengths_count_all_tokens() -> None:
    assert Lengths(CONTEXT, QUERY, QUERIES).tokens == CONTEXT + QUERIES * QUERY
