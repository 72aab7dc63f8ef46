"""Which order of cells runs, and why; what `auto` measures and remembers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from memarch.arch import measured, plan
from memarch.arch.build import build_model
from memarch.arch.measured import Times
from memarch.arch.model import MemarchModel
from memarch.arch.schedules import SCHEDULES
from memarch.arch.work import How
from memarch.components.errors import SpecError

ARMT: dict[str, Any] = {"a": {"type": "armt", "d_mem": 4, "num_tokens": 2}}
DELTANET: dict[str, Any] = {"d": {"type": "deltanet", "heads": 2}}
RMT: dict[str, Any] = {"t": {"type": "rmt", "num_tokens": 2}}


def build(memory: dict[str, Any], **spec: Any) -> MemarchModel:
    backbone = {
        "type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    return build_model(
        {"backbone": backbone, "memory": memory, "segment_length": 4, **spec}, vocab_size=23, seed=0
    )


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the machine is said to need, in seconds; the batch sizes that were asked for."""
    known: dict[str, Any] = {
        "times": Times(4, sequential=(6.0, 12.0), diagonal=(6.0, 10.0), layerwise=(2.0, 4.0)),
        "asked": [],
    }

    def measured_times(model: Any, batch: int, segments: int, how: Any, layerwise: bool) -> Times:
        known["asked"].append((batch, segments, layerwise))
        times: Times = known["times"]
        return times if layerwise else replace(times, layerwise=None)

    monkeypatch.setattr(plan, "measured_times", measured_times)
    return known


def test_auto_takes_what_is_fastest_at_this_length(times: dict[str, Any]) -> None:
    model = build(DELTANET)
    # sequential 3 S; diagonal 2 + 2 S; layerwise S
    assert model.resolved_schedule(2, 4 * 8).schedule == "layerwise"
    times["times"] = Times(4, sequential=(6.0, 12.0), diagonal=(6.0, 10.0), layerwise=(19.0, 39.0))
    chosen = model.resolved_schedule(2, 4 * 8)
    assert chosen.schedule == "diagonal"
    assert chosen.grouped_steps == 8 + 3 - 1
    assert chosen.reason == "measured: sequential 1.3 times as long, layerwise 4.3 times as long"
    times["times"] = Times(4, sequential=(6.0, 12.0), diagonal=(44.0, 48.0))
    chosen = model.resolved_schedule(2, 4 * 8)
    assert (chosen.schedule, chosen.grouped_steps) == ("sequential", 24)


@pytest.mark.parametrize(("sweep", "order"), [(2.4, "sequential"), (2.6, "diagonal")])
def test_sequential_stays_unless_another_order_is_a_tenth_faster(
    times: dict[str, Any], sweep: float, order: str
) -> None:
    # sequential 8 sweeps; diagonal 2 + 2 S = 18
    times["times"] = Times(4, sequential=(2 * sweep, 4 * sweep), diagonal=(6.0, 10.0))
    assert build(DELTANET).resolved_schedule(2, 4 * 8).schedule == order


@pytest.mark.parametrize(
    ("layers", "segments", "graphs", "n"),
    [
        (4, 2, False, 2),
        (4, 7, False, 4),
        (4, 8, False, 8),
        (4, 1000, False, 8),
        (12, 16, False, 16),
        (12, 128, False, 32),
        (16, 128, True, 64),
    ],
)
def test_half_of_what_is_measured_has_all_layers_at_work_where_the_input_is_so_long(
    layers: int, segments: int, graphs: bool, n: int
) -> None:
    how = How(graphs=graphs)
    with torch.no_grad():
        assert measured._measured_length(layers, segments, how, layerwise=False) == n


def test_what_holds_more_the_longer_the_input_is_measured_at_its_length() -> None:
    with torch.no_grad():
        assert measured._measured_length(4, 100, How(), layerwise=True) == 64
    assert measured._measured_length(4, 100, How(), layerwise=False) == 64


def test_what_is_measured_follows_from_what_is_possible(times: dict[str, Any]) -> None:
    assert build(DELTANET).resolved_schedule(5, 32).schedule == "layerwise"
    assert build(DELTANET).resolved_schedule(5, 32, truncate=2).schedule == "diagonal"
    assert build(DELTANET).resolved_schedule(5).schedule == "diagonal"  # of unknown length
    assert build(ARMT).resolved_schedule(64, 32).schedule == "diagonal"
    assert times["asked"] == [(8, 8, True), (8, 8, False), (8, 48, False), (64, 8, False)]


@pytest.mark.parametrize(
    ("diagonal", "expected"),
    [((6.0, 10.0), 18.0), ((10.0, 10.0), 15.0), ((2.0, 10.0), 20.0)],
)
def test_noise_does_not_make_long_inputs_free(
    diagonal: tuple[float, float], expected: float
) -> None:
    times = Times(4, sequential=(9.0, 12.0), diagonal=diagonal, layerwise=(4.0, 4.0))
    assert times.seconds(8) == {"sequential": 18.0, "diagonal": expected, "layerwise": 4.0}


def test_a_gain_that_grouping_cannot_give_is_not_believed() -> None:
    times = Times(4, sequential=(6.0, 12.0), diagonal=(1.0, 2.0), layerwise=(1.0, 2.0))
    assert times.plausible(layers=3)
    assert not times.plausible(layers=2)
    assert not replace(times, layerwise=(1.0, 1.0)).plausible(layers=3)


def test_what_takes_long_is_measured_at_fewer_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "ROUNDS", 2)
    asked: list[tuple[str, int]] = []

    def seconds(name: str, segments: int) -> float:
        asked.append((name, segments))
        return segments * (1.0 if name == "sequential" else 0.5) + 1 / len(asked)

    names = ["sequential", "diagonal"]
    monkeypatch.setattr(measured, "BUDGET", 1000.0)
    times = measured._times(names, 64, seconds)
    assert (times.n, times.layerwise) == (64, None)
    assert asked == [*((name, 2) for name in names), *[(n, k) for n in names for k in (32, 64)] * 2]
    assert times.sequential == (32 + 1 / 7, 64 + 1 / 8)  # the least of both rounds
    monkeypatch.setattr(measured, "BUDGET", 60.0)  # 64 segments take 3 * 1.5 * 64 = 288 seconds
    assert measured._times(names, 64, seconds).n == 8


def test_nothing_is_measured_where_there_is_no_choice(times: dict[str, Any]) -> None:
    chosen = build(RMT).resolved_schedule(2, 32)
    assert chosen.schedule == "sequential"
    assert "'t' goes from the top of a segment" in chosen.reason
    assert build(ARMT).resolved_schedule(2, 4).reason == "one segment: nothing to group"
    assert build(ARMT, schedule="diagonal").resolved_schedule(2, 32).reason == (
        "asked for in the spec"
    )
    assert times["asked"] == []


@pytest.mark.parametrize(
    ("memory", "schedule", "message"),
    [
        (RMT, "diagonal", "memory 't' carries its state from the top"),
        (ARMT, "layerwise", "memory 'a' takes one segment at a time"),
    ],
)
def test_an_impossible_request_names_the_memory(
    memory: dict[str, Any], schedule: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        build(memory, schedule=schedule).resolved_schedule(1, 32)


def test_an_order_is_for_at_least_one_row() -> None:
    with pytest.raises(ValueError, match="batch must be at least 1"):
        build(ARMT).resolved_schedule(0, 32)


def test_a_measurement_is_kept_and_leaves_the_model_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMARCH_CACHE", str(tmp_path))
    model = build(DELTANET)
    random = torch.get_rng_state()
    first = model.resolved_schedule(2, 32)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(weight.grad is None for weight in model.parameters())
    [kept] = json.loads((tmp_path / "schedules.json").read_text()).values()
    assert set(kept) == {"n", *SCHEDULES}
    assert all(0 < seconds < 10 for name in SCHEDULES for seconds in kept[name])

    def fails(*_: Any, **__: Any) -> Times:
        raise AssertionError("measured again")

    monkeypatch.setattr(measured, "_measure", fails)
    assert model.resolved_schedule(2, 32) == first
    assert build(DELTANET).resolved_schedule(2, 32) == first  # the same model, another object
    model.save_pretrained(tmp_path / "saved")
    loaded = MemarchModel.from_pretrained(tmp_path / "saved")
    assert loaded.resolved_schedule(2, 32) == first
    with pytest.raises(AssertionError, match="measured again"), torch.no_grad():
        model.resolved_schedule(2, 32)


def test_a_spoilt_or_forbidden_cache_costs_only_a_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMARCH_CACHE", str(tmp_path))
    (tmp_path / "schedules.json").write_text("{ no")
    assert build(ARMT).resolved_schedule(1, 32).grouped_steps
    monkeypatch.setenv("MEMARCH_CACHE", str(tmp_path / "schedules.json" / "below_a_file"))
    assert build(ARMT).resolved_schedule(1, 32).grouped_steps


def test_triton_is_refused_under_a_memory_that_differentiates_twice() -> None:
    gradmem = {"g": {"type": "gradmem", "num_tokens": 2, "write": {"mode": "second"}}}
    with pytest.raises(SpecError, match="memory 'g' differentiates through gradients"):
        build(gradmem, impl="triton")
    model = build(gradmem | DELTANET)
    assert {m.impl for m in model.modules() if hasattr(m, "impl")} == {"reference"}
    assert {m.impl for m in build(DELTANET).modules() if hasattr(m, "impl")} == {"auto"}
