"""Every registered memory keeps the rules, and each rule is one that a memory can break."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from memarch.arch import conformance
from memarch.arch.conformance import BACKBONE, CHECKS, CheckResult, check_file, check_memory
from memarch.arch.spec import parse_model_spec
from memarch.components.errors import SpecError
from memarch.components.memory import (
    BuildContext,
    LayeredSettings,
    Memory,
    Segment,
    State,
    keep_empty_rows,
    memories,
)

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE = REPOSITORY / "memarch/templates/memory.py"

# Settings beyond each name's defaults that take other paths through its code.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rmt-steps": ("rmt", {"write": {"steps": 2, "projection": "shared", "residual": True}}),
    "gradmem-first": ("gradmem", {"write": {"steps": 3, "mode": "first"}}),
    "gradmem-all": (
        "gradmem",
        {
            "write": {
                "steps": 2,
                "head": "separate",
                "projection": "per_sample",
                "control_tokens": 2,
                "clip_norm": 1.0,
                "loss_weight": 0.1,
            }
        },
    ),
    "armt-plain": ("armt", {"write": {"type": "delta", "correction": False}}),
    "armt-hebbian": ("armt", {"write": {"type": "hebbian", "source": "all_tokens"}}),
    "armt-one-layer": ("armt", {"layers": [1]}),
    "delta-hebbian": ("delta", {"write": {"type": "hebbian"}}),
    "deltanet-beside": ("deltanet", {"beside": True, "conv": 0}),
    "sliding-window": ("sliding_window", {"window": 4}),
}


def different_names() -> dict[str, tuple[str, dict[str, Any]]]:
    """Registered names, where several that mean the same settings stand for one."""
    by_settings = {
        parse_model_spec(
            {"backbone": BACKBONE, "segment_length": 8, "memory": {"main": {"type": name}}}
        )
        .memory["main"]
        .model_dump_json(): name
        for name in sorted(memories.names())
    }
    return {name: (name, {}) for name in sorted(by_settings.values())}


CASES = different_names() | VARIANTS


def failures(results: list[CheckResult]) -> dict[str, str]:
    """Message by check, of those that failed."""
    return {result.name: result.message for result in results if not result.passed}


@pytest.mark.parametrize("case", CASES)
def test_every_registered_memory_conforms(case: str) -> None:
    """All checks, for every name with its defaults and for some other settings."""
    name, settings = CASES[case]
    results = check_memory(memories[name], settings)
    assert not failures(results)
    assert [result.name for result in results] == ["settings", "build", *CHECKS]


class Mean(Memory):
    """A correct memory to break: the mean of what a layer put out, added to its input."""

    site = "layer"

    class Settings(LayeredSettings):
        type: Literal["planted"] = "planted"

    def __init__(self, settings: Settings, context: BuildContext) -> None:
        super().__init__()
        self.read = nn.Linear(context.hidden_size, context.hidden_size, bias=False)

    def init_state(self, batch: int, like: Tensor) -> State:
        return {"mean": like.new_zeros(batch, self.read.in_features)}

    def step(self, state: State, x: Any, inner: Any, segment: Segment) -> tuple[Tensor, State]:
        y = self.run(x, state["mean"], inner, segment)
        new = {"mean": 0.5 * state["mean"] + 0.5 * self.pool(y, segment.valid)}
        return y, keep_empty_rows(state, new, segment)

    def run(self, x: Tensor, mean: Tensor, inner: Any, segment: Segment) -> Tensor:
        y: Tensor = inner(x + self.read(mean).unsqueeze(1))
        return y

    def pool(self, y: Tensor, valid: Tensor) -> Tensor:
        weight = valid.unsqueeze(-1).to(y.dtype)
        return (y * weight).sum(1) / weight.sum(1).clamp(min=1)


class Detached(Mean):
    def step(self, state: State, x: Any, inner: Any, segment: Segment) -> tuple[Tensor, State]:
        y, new = super().step(state, x, inner, segment)
        return y, {"mean": new["mean"].detach()}


class InPlace(Mean):
    def step(self, state: State, x: Any, inner: Any, segment: Segment) -> tuple[Tensor, State]:
        y, new = super().step(state, x, inner, segment)
        state["mean"].copy_(new["mean"])
        return y, state


class Remembers(Mean):
    last: Tensor | None = None

    def run(self, x: Tensor, mean: Tensor, inner: Any, segment: Segment) -> Tensor:
        y = super().run(x, mean, inner, segment)
        if self.last is not None:
            y = y + 0.01 * self.last
        self.last = y.detach().mean()
        return y


class LeaksWithinSegment(Mean):
    def run(self, x: Tensor, mean: Tensor, inner: Any, segment: Segment) -> Tensor:
        return super().run(x + 0.1 * self.pool(x, segment.valid).unsqueeze(1), mean, inner, segment)


class ReadsOtherwiseWhenFrozen(Mean):
    def run(self, x: Tensor, mean: Tensor, inner: Any, segment: Segment) -> Tensor:
        return super().run(x, mean if segment.frozen else 0.9 * mean, inner, segment)


class MixesTheBatch(Mean):
    def pool(self, y: Tensor, valid: Tensor) -> Tensor:
        mean = super().pool(y, valid)
        return 0.9 * mean + 0.1 * mean.mean(0, keepdim=True)


class CountsPadding(Mean):
    def pool(self, y: Tensor, valid: Tensor) -> Tensor:
        return y.mean(1)


class WritesEmptyRows(Mean):
    def step(self, state: State, x: Any, inner: Any, segment: Segment) -> tuple[Tensor, State]:
        y = self.run(x, state["mean"], inner, segment)
        return y, {"mean": 0.5 * state["mean"] + 0.5 * self.pool(y, segment.valid)}


class ForgetsBetweenCalls(Mean):
    """The count of writes lives outside the state, so a second call starts anew."""

    def step(self, state: State, x: Any, inner: Any, segment: Segment) -> tuple[Tensor, State]:
        y, new = super().step(state, x, inner, segment)
        return y, {"mean": new["mean"] * (2 if x.shape[1] % conformance.SEGMENT else 1)}


class HasAnIdleParameter(Mean):
    def __init__(self, settings: Any, context: BuildContext) -> None:
        super().__init__(settings, context)
        self.idle = nn.Linear(2, 2)


class BranchesOnTheGroup(Mean):
    def step(self, state: State, x: Any, inner: Any, segment: Segment) -> tuple[Tensor, State]:
        y, new = super().step(state, x, inner, segment)
        return y, state if bool(segment.first.any()) else new


class ClaimsAWholeInputForm(Mean):
    whole_input: ClassVar[bool] = True


class NarrowState(Mean):
    def init_state(self, batch: int, like: Tensor) -> State:
        return {"mean": torch.zeros(batch, self.read.in_features)}


class StateWithoutBatch(Mean):
    def init_state(self, batch: int, like: Tensor) -> State:
        return super().init_state(batch, like) | {"shared": like.new_zeros(batch, batch)}

    def step(self, state: State, x: Any, inner: Any, segment: Segment) -> tuple[Tensor, State]:
        y, new = super().step(state, x, inner, segment)
        return y, {"mean": new["mean"], "shared": state["shared"]}


class KeepsAWeightToItself(Mean):
    def __init__(self, settings: Any, context: BuildContext) -> None:
        super().__init__(settings, context)
        self.register_buffer("secret", torch.rand(()), persistent=False)

    def run(self, x: Tensor, mean: Tensor, inner: Any, segment: Segment) -> Tensor:
        return super().run(x + self.secret.to(x.dtype), mean, inner, segment)


class DiffersWithoutGradients(Mean):
    def run(self, x: Tensor, mean: Tensor, inner: Any, segment: Segment) -> Tensor:
        return super().run(x, mean if torch.is_grad_enabled() else 0.9 * mean, inner, segment)


class LaxSettings(Mean):
    class Settings(LayeredSettings):
        model_config = ConfigDict(frozen=True, strict=True, extra="ignore")
        type: Literal["planted"] = "planted"


class NeedsASetting(Mean):
    class Settings(LayeredSettings):
        type: Literal["planted"] = "planted"
        size: int


class DoesNotBuild(Mean):
    def __init__(self, settings: Any, context: BuildContext) -> None:
        raise RuntimeError("no")


FAULTS: dict[type[Memory], str] = {
    Detached: "gradient",
    InPlace: "purity",
    Remembers: "purity",
    LeaksWithinSegment: "causality",
    ReadsOtherwiseWhenFrozen: "causality",
    MixesTheBatch: "batch",
    CountsPadding: "padding",
    WritesEmptyRows: "padding",
    ForgetsBetweenCalls: "padding",
    HasAnIdleParameter: "parameters",
    BranchesOnTheGroup: "schedules",
    ClaimsAWholeInputForm: "schedules",
    NarrowState: "shapes",
    StateWithoutBatch: "state_bytes",
    KeepsAWeightToItself: "save_load",
    DiffersWithoutGradients: "no_grad",
    LaxSettings: "settings",
    NeedsASetting: "settings",
    DoesNotBuild: "build",
}


@pytest.fixture
def plant() -> Iterator[Callable[[type[Memory]], None]]:
    """Register a class as `planted` for one test."""
    yield lambda cls: memories.register("planted")(cls) and None
    memories.remove("planted")


def test_the_memory_that_is_broken_below_conforms(plant: Callable[[type[Memory]], None]) -> None:
    """So each failure below is the fault's and not the base's."""
    plant(Mean)
    assert not failures(check_memory(memories["planted"]))


@pytest.mark.parametrize("broken", FAULTS, ids=lambda cls: cls.__name__)
def test_a_fault_fails_its_check(
    broken: type[Memory], plant: Callable[[type[Memory]], None]
) -> None:
    """One planted fault each, and the check whose business it is."""
    plant(broken)
    found = failures(check_memory(memories["planted"], only={FAULTS[broken]}))
    assert list(found) == [FAULTS[broken]]
    assert found[FAULTS[broken]]


def test_every_check_is_failed_by_some_fault() -> None:
    """What no planted fault fails might not check anything."""
    own_tests = {"streaming", "generation"}
    assert set(CHECKS) == (set(FAULTS.values()) | own_tests) - {"settings", "build"}


def test_wrong_stated_bytes_are_found(
    plant: Callable[[type[Memory]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cost model that forgets half of the state."""
    plant(Mean)
    real = conformance.measure

    def half(*arguments: Any, **named: Any) -> dict[str, float]:
        costs = real(*arguments, **named)
        return costs | {"cost/state_bytes": costs["cost/state_bytes"] / 2}

    monkeypatch.setattr(conformance, "measure", half)
    found = failures(check_memory(memories["planted"], only={"state_bytes"}))
    assert "128 stated by the cost model, 256 of one sample" in found["state_bytes"]


def test_messages_say_what_was_found(plant: Callable[[type[Memory]], None]) -> None:
    """Enough to act upon, without a traceback."""
    plant(HasAnIdleParameter)
    found = failures(check_memory(memories["planted"], only={"parameters"}))
    assert "memories.main.0.idle.weight" in found["parameters"]
    assert "never trained" in found["parameters"]


def test_a_file_of_ones_own_is_checked(tmp_path: Path) -> None:
    """The template that `memarch new memory` hands out conforms as it stands."""
    file = tmp_path / "my_memory.py"
    shutil.copy(TEMPLATE, file)
    results = check_file(file)
    assert not failures(results)
    assert {result.memory for result in results} == {"my_memory"}
    memories.remove("my_memory")


def test_a_file_without_a_memory_is_an_error(tmp_path: Path) -> None:
    """And not a suite of no checks that passes."""
    file = tmp_path / "empty.py"
    file.write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(SpecError, match="registers nothing"):
        check_file(file)
