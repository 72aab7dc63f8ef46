"""The conformance suite: what must hold for every memory, run over tiny models on the CPU.

    check_memory(memories["rmt"])      one registered name
    check_file("my_memory.py")         everything that a user's file registers

A check is a function that raises `Violation` with what was expected, what was found and what to
do. It asks the public model wherever it can, in float64, so that a difference is an error of the
mechanism and not of rounding; `_spy` looks at the calls of `step` where the model cannot tell.
Parameters are moved away from their initial values first: a value map that starts at zero would
hide nearly everything.
"""

from __future__ import annotations

import json
import struct
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from memarch.arch.build import build_model
from memarch.arch.cost import measure
from memarch.arch.exactness import assert_agree
from memarch.arch.model import MemarchModel
from memarch.arch.spec import ModelSpec
from memarch.arch.state import SEGMENTS, TOKENS, MemoryState
from memarch.components.errors import SpecError
from memarch.components.memory import Memory, memories
from memarch.components.plugins import load_plugins, registered_by
from memarch.components.registry import Entry

SEGMENT = 6
VOCAB = 29
BACKBONE = {
    "type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
}
FIRST = "embeddings of the first segment"
EXACT = 1e-9
"""Largest relative difference between two float64 results that must be the same number."""
SLOPE = 1e-4
"""The same between a gradient and a central difference."""


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check. `message` says why it failed; `memory` names what was checked."""

    name: str
    passed: bool
    message: str = ""
    memory: str = ""


class Violation(AssertionError):  # noqa: N818 - it is a finding, not a fault of ours
    """A rule that the memory breaks, in words for its author."""


def check_file(path: str | Path) -> list[CheckResult]:
    """Every check, for every memory that a user's file registers."""
    load_plugins([path])
    names = sorted(registered_by(path).get("memory", ()))
    if not names:
        raise SpecError(
            f"{str(path)!r} registers no memory; put @memories.register('name') above its class"
        )
    results = [result for name in names for result in check_memory(memories[name])]
    if len(names) == 1:
        return results
    return [replace(result, name=f"{result.memory}: {result.name}") for result in results]


def check_memory(
    entry: Entry[Memory],
    settings: Mapping[str, Any] | None = None,
    *,
    only: Collection[str] | None = None,
) -> list[CheckResult]:
    """Every check, or `only` those named, with the default settings and `settings` over them."""
    bench = Bench(entry, dict(settings or {}))
    results = []
    for name, check in (BEFORE | CHECKS).items():
        if name in BEFORE or only is None or name in only:
            results.append(_run(name, check, bench))
        if name in BEFORE and not results[-1].passed:
            break
    return results


def _run(name: str, check: Callable[[Bench], None], bench: Bench) -> CheckResult:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            check(bench)
    except Violation as violation:
        return CheckResult(name, False, str(violation), bench.entry.name)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        message = (
            f"raised {type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
        )
        return CheckResult(name, False, message, bench.entry.name)
    return CheckResult(name, True, "", bench.entry.name)


class Bench:
    """A memory, models built with it, and tokens to run through them."""

    def __init__(self, entry: Entry[Memory], settings: dict[str, Any]) -> None:
        self.entry = entry
        self.settings = settings
        draw = torch.Generator().manual_seed(1)

        def tokens(rows: int, length: int) -> Tensor:
            # Token 0 is kept for those checks that need one that stands nowhere else.
            return torch.randint(1, VOCAB, (rows, length), generator=draw)

        self.context = tokens(3, 3 * SEGMENT)
        self.query = tokens(3, 4)
        self.input = tokens(2, 3 * SEGMENT + 3)

    @property
    def raw(self) -> dict[str, Any]:
        """The memory as the YAML would have it."""
        return {"type": self.entry.name} | self.settings

    def build(self, schedule: str = "auto") -> MemarchModel:
        """A model with the memory, in float64, its parameters away from their initial values."""
        spec = {
            "backbone": BACKBONE,
            "memory": {"main": self.raw},
            "segment_length": SEGMENT,
            "schedule": schedule,
        }
        model = build_model(spec, seed=0).double().eval()
        noise = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                draw = torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
                parameter.add_(0.1 * draw)
        return model

    @cached_property
    def model(self) -> MemarchModel:
        """A model that the checks share, because none of them changes it."""
        return self.build()

    def memory_parameters(self, model: MemarchModel) -> dict[str, Tensor]:
        """The parameters of the memory's own modules, and the write tokens that it asked for."""
        own: dict[str, Tensor] = {}
        if model.write_tokens is not None:
            own["write_tokens"] = model.write_tokens
        return own | {
            f"{module_name}.{name}": parameter
            for module_name, module in model.named_modules()
            if isinstance(module, Memory)
            for name, parameter in module.named_parameters()
        }

    def modules(self, model: MemarchModel) -> list[Memory]:
        """The memory's modules, one for each place."""
        return [module for module in model.modules() if isinstance(module, Memory)]

    def loss(self, model: MemarchModel, context: Tensor, query: Tensor | None = None) -> Tensor:
        """The mean loss of the query's tokens after the context, auxiliary losses left out."""
        query = self.query[: len(context)] if query is None else query
        output = model(input_ids=query, labels=query, context_ids=context)
        loss: Tensor = output.loss
        return loss if output.auxiliary_loss is None else loss - output.auxiliary_loss


# --- before anything can run ------------------------------------------------------------------


def settings_are_strict(bench: Bench) -> None:
    """Defaults suffice to build it; a key that does not exist is refused by name."""
    spec = ModelSpec.model_validate(
        {"backbone": BACKBONE, "memory": {"main": bench.raw}, "segment_length": SEGMENT}
    )
    given = spec.memory["main"]
    cls = bench.entry.cls.Settings
    if not isinstance(given, cls):
        raise Violation(f"settings must be {cls.__qualname__}, got {type(given).__qualname__}")
    if not (cls.model_config.get("frozen") and cls.model_config.get("strict")):
        raise Violation("settings must be frozen and strict: derive them from MemorySettings")
    try:
        cls.model_validate(given.model_dump() | {"no_such_setting": 1})
    except ValidationError:
        return
    raise Violation("an unknown key must be refused: settings need extra='forbid'")


def builds(bench: Bench) -> None:
    """A model builds with it, and its state is tensors with the batch first."""
    model = bench.build()
    if not any(isinstance(module, bench.entry.cls) for module in model.modules()):
        raise Violation("the model that was built holds no module of this memory's class")


# --- the checks -------------------------------------------------------------------------------


def shapes_and_types(bench: Bench) -> None:
    """Outputs and states have the right shape, are finite, never narrower than the model."""
    groupable = all(memory.groupable for memory in bench.modules(bench.model))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = bench.build().to(dtype)
        with torch.no_grad():
            early = model.write(bench.context[:, :SEGMENT])
            late = model.write(bench.context[:, SEGMENT:], memory=early)
            logits = model(input_ids=bench.query, memory=late).logits
        if logits.shape != (3, 4, VOCAB) or not logits.isfinite().all():
            raise Violation(f"in {dtype} the logits are not finite, or of shape {logits.shape}")
        if set(early) != set(late):
            raise Violation(f"a write changed the state's keys: {sorted(early)}, {sorted(late)}")
        for key, value in late.items():
            if value.shape[:1] != (3,):
                raise Violation(f"state {key!r} must have the batch first, got {list(value.shape)}")
            if value.dtype != early[key].dtype:
                raise Violation(
                    f"a write made state {key!r} {value.dtype}; it was {early[key].dtype}"
                )
            if groupable and value.shape != early[key].shape:
                raise Violation(
                    f"a write changed the shape of state {key!r}: {list(early[key].shape)} -> "
                    f"{list(value.shape)}; a memory whose state grows must set groupable = False"
                )
            if not value.is_floating_point():
                continue
            if torch.finfo(value.dtype).bits < torch.finfo(dtype).bits:
                raise Violation(f"state {key!r} is {value.dtype} in a model of {dtype}")
            if not value.isfinite().all():
                raise Violation(f"state {key!r} is not finite in {dtype}")


def step_is_pure(bench: Bench) -> None:
    """`step` modifies neither its state nor x, and the module remembers nothing between calls."""
    # In the sequential order, because grouped cells run on copies of the modules.
    model = bench.build("sequential")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad(), _spy(bench.entry.cls):
        first = _everything(model, bench)
        model.write(bench.context.flip(1))
        second = _everything(model, bench)
    for key, value in first.items():
        if not torch.equal(value, second[key]):
            raise Violation(f"two equal calls gave different results ({key}): keep nothing on self")
    for key, value in model.state_dict().items():
        if not torch.equal(value, before[key]):
            raise Violation(f"a call changed the parameter or buffer {key!r}")


def works_without_gradients(bench: Bench) -> None:
    """Results are the same under `no_grad` and `inference_mode`."""
    expected = _everything(bench.model, bench)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            _equal(_everything(bench.model, bench), expected, f"under {mode.__name__}")


def rows_do_not_mix(bench: Bench) -> None:
    """A row alone gives what it gives in a batch."""
    with torch.no_grad():
        together = _everything(bench.model, bench)
        for row in range(3):
            alone = _everything(bench.model, bench, slice(row, row + 1))
            expected = {key: value[row : row + 1] for key, value in together.items()}
            _equal(alone, expected, "for a row alone, compared with the same row in a batch")


def nothing_leaks_from_the_future(bench: Bench) -> None:
    """Changing a token changes no earlier output, within a segment and across segments."""
    with torch.no_grad():
        before = bench.model(input_ids=bench.input).logits
        for position in (2, SEGMENT, 2 * SEGMENT - 1, 2 * SEGMENT + 2, bench.input.shape[1] - 1):
            changed = bench.input.clone()
            changed[:, position] = (changed[:, position] + 7) % VOCAB
            after = bench.model(input_ids=changed).logits
            difference = _difference(after[:, :position], before[:, :position])
            if difference > EXACT:
                raise Violation(
                    f"changing token {position} changed outputs before it, by {difference:.1e} "
                    f"(segments have {SEGMENT} tokens)"
                )
        for length in (4, SEGMENT, SEGMENT + 3, 2 * SEGMENT):
            alone = bench.model(input_ids=bench.input[:, :length]).logits
            _equal(
                {"logits": alone},
                {"logits": before[:, :length]},
                f"where the input ends after {length} tokens, compared with one that goes on",
            )


def streaming_equals_whole(bench: Bench) -> None:
    """A context in pieces, and an input after its beginning's state, give what the whole gives."""
    model, query, context = bench.model, bench.query, bench.context
    with torch.no_grad():
        whole = _everything(model, bench)
        logits = model(input_ids=bench.input).logits
        for cut in (SEGMENT, 2 * SEGMENT):
            state = model.write(context[:, cut:], memory=model.write(context[:, :cut]))
            pieces = {f"state {key}": value for key, value in state.items()}
            pieces["logits"] = model(input_ids=query, memory=state).logits
            _equal(pieces, whole, f"when the context comes in two pieces, cut at {cut}")
            state = model.write(bench.input[:, :cut])
            rest = model(input_ids=bench.input[:, cut:], memory=state).logits
            _equal(
                {"logits": rest},
                {"logits": logits[:, cut:]},
                f"when an input goes on from the state after {cut} tokens",
            )
        direct = model(input_ids=query, context_ids=context).logits
        _equal({"logits": direct}, whole, "when context and query come in one call")
        state = model.write(context).repeat(2)
        twice = model(input_ids=query.repeat_interleave(2, dim=0), memory=state).logits
        _equal({"logits": twice[::2]}, whole, "with two queries a context (the first)")
        _equal({"logits": twice[1::2]}, whole, "with two queries a context (the second)")


def padding_does_nothing(bench: Bench) -> None:
    """A row without valid tokens keeps its state bit for bit; padding's content has no effect."""
    model, context = bench.model, bench.context
    with torch.no_grad():
        early = model.write(context[:, :SEGMENT])
        mask = torch.ones_like(context[:, SEGMENT:])
        mask[1] = 0
        late = model.write(context[:, SEGMENT:], attention_mask=mask, memory=early)
        for key, value in late.items():
            if not _same_or_zero(early[key][1], value[1]):
                raise Violation(
                    f"a row without a valid token changed its state {key!r}: see keep_empty_rows"
                )
        lengths = (3 * SEGMENT, SEGMENT + 2, 3)
        mask = torch.stack([torch.arange(3 * SEGMENT) < length for length in lengths]).long()
        padded = model.write(context * mask, attention_mask=mask)
        other = model.write(torch.where(mask.bool(), context, 5), attention_mask=mask)
        _equal(dict(other), dict(padded), "when padded positions hold other tokens")
        together = model(input_ids=bench.query, memory=padded).logits
        for row, length in enumerate(lengths):
            state = model.write(context[row : row + 1, :length])
            alone = model(input_ids=bench.query[row : row + 1], memory=state).logits
            _equal(
                {"logits": together[row : row + 1]},
                {"logits": alone},
                f"after a context of {length} tokens padded to {3 * SEGMENT}",
            )


def gradient_through_time(bench: Bench) -> None:
    """The gradient reaches the first segment: that of the loop written by hand, and of the loss."""
    model = bench.build()
    context = bench.context[:2].clone()
    context[:, 1] = 0  # a token that stands in the first segment only
    embedding = model.backbone.get_input_embeddings().weight
    watched = {FIRST: embedding} | bench.memory_parameters(model)

    whole = _gradients(bench.loss(model, context), watched)
    state: MemoryState | None = None
    for start in range(0, context.shape[1], SEGMENT):
        state = model.write(context[:, start : start + SEGMENT], memory=state)
    output = model(input_ids=bench.query[:2], labels=bench.query[:2], memory=state)
    _equal(whole, _gradients(output.loss, watched), "compared with the loop over segments by hand")

    if not all(memory.exact_gradient for memory in bench.modules(model)):
        return
    row = torch.zeros_like(embedding)
    row[0] = torch.randn_like(embedding[0])
    directions = {FIRST: {FIRST: row}}
    if len(watched) > 1:
        directions["the memory's parameters"] = {
            key: torch.randn_like(value) for key, value in watched.items() if key != FIRST
        }
    for what, direction in directions.items():
        slope = sum(float((whole[key] * move).sum()) for key, move in direction.items())
        steps = {watched[key]: move for key, move in direction.items()}
        measured = _measured_slope(lambda: bench.loss(model, context), steps)
        if abs(slope - measured) > SLOPE * max(abs(slope), abs(measured)) + 1e-8:
            raise Violation(
                f"the gradient of a later loss by {what} is {slope:.6g} along a line, where the "
                f"loss itself changes by {measured:.6g}: is the state detached somewhere? (Where "
                "the equations treat a part as constant, set exact_gradient = False.)"
            )


def every_parameter_learns(bench: Bench) -> None:
    """No parameter of the memory is without a gradient after some segments and a query."""
    model = bench.build().train()
    output = model(input_ids=bench.query, labels=bench.query, context_ids=bench.context)
    parameters = bench.memory_parameters(model)
    gradients = _gradients(output.loss, parameters)
    idle = [name for name, value in gradients.items() if not bool(value.any())]
    if idle:
        raise Violation(f"parameters without any gradient, so never trained: {', '.join(idle)}")
    broken = [name for name, value in gradients.items() if not value.isfinite().all()]
    if broken:
        raise Violation(f"parameters whose gradient is not finite: {', '.join(broken)}")


def state_bytes_are_true(bench: Bench) -> None:
    """The stated bytes a sample are those of the tensors, in memory and on disk, at any batch."""
    model, context = bench.model, bench.context[:, : SEGMENT + 2]
    stated = measure(model, context_length=context.shape[1], query_length=2)
    with torch.no_grad():
        one, three = model.write(context[:1]), model.write(context)
    content = {key: value for key, value in three.items() if key not in (SEGMENTS, TOKENS)}
    real = sum(value.numel() * value.element_size() for value in content.values())
    found = {
        "stated by the cost model": stated["cost/state_bytes"],
        "of one sample": one.nbytes,
        "of three samples, a third": three.nbytes / 3,
        "in the file of three samples, a third": _bytes_on_disk(three, set(content)) / 3,
        "of the tensors of three samples, a third": real / 3,
    }
    if len(set(map(float, found.values()))) != 1:
        listed = ", ".join(f"{value:g} {name}" for name, value in found.items())
        raise Violation(f"the state's bytes disagree: {listed}")
    floats = sum(value.numel() for value in content.values()) / 3
    if stated["cost/state_floats"] != floats:
        raise Violation(
            f"state_floats is {stated['cost/state_floats']:g}, the tensors have {floats:g}"
        )


def every_schedule_agrees(bench: Bench) -> None:
    """Each possible order gives the sequential order's results and gradients."""
    plain = bench.build("sequential")
    plain.resolved_schedule()
    for schedule in ("diagonal", "layerwise"):
        try:
            model = bench.build(schedule)
            name = model.resolved_schedule(length=1 << 10).schedule
        except SpecError:
            continue
        if name != schedule:
            raise Violation(f"schedule {schedule} was asked for, {name} would run")
        try:
            assert_agree(plain, lambda: _with_gradients(plain, bench), _runner(model, bench))
        except AssertionError as error:
            raise Violation(
                f"in the {schedule} order, compared with the sequential one, {error}"
            ) from None


def saves_and_loads(bench: Bench) -> None:
    """State and model come back from disk bit for bit."""
    # In float32, because .double() also widens the rotary frequencies that loading computes anew.
    model = bench.build().float()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        expected = _everything(model, bench)
        state = model.write(bench.context)
        state.save(Path(folder) / "state.safetensors")
        loaded = MemoryState.load(Path(folder) / "state.safetensors")
        if set(loaded) != set(state):
            raise Violation(f"a loaded state has keys {sorted(loaded)}, saved were {sorted(state)}")
        for key, value in state.items():
            if not torch.equal(value, loaded[key]) or value.dtype != loaded[key].dtype:
                raise Violation(f"state {key!r} changed by saving and loading")
        model.save_pretrained(Path(folder) / "model")
        again = MemarchModel.from_pretrained(Path(folder) / "model", dtype=torch.float32).eval()
        found = _everything(again, bench)
        for key, value in expected.items():
            if not torch.equal(value, found[key]):
                raise Violation(f"the loaded model gives other results ({key})")


def generation_equals_teacher_forcing(bench: Bench) -> None:
    """Greedy generation over segment borders chooses what one pass over its own text would."""
    model, query = bench.model, bench.query[:2]
    new = 2 * SEGMENT + 1
    with torch.no_grad():
        state = model.write(bench.context[:2])
        text = model.generate(
            query, memory=state, max_new_tokens=new, min_new_tokens=new, do_sample=False
        )
        logits = model(input_ids=text, memory=state).logits
    start = query.shape[1]
    chosen = text[:, start:]
    forced = logits[:, start - 1 : -1]
    gap = forced.max(dim=-1).values - forced.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    worst = int(gap.max(dim=0).values.argmax())
    if chosen.shape[1] != new or gap.max() > 1e-6:
        raise Violation(
            f"generated token {worst} is not the one that the model finds best given the same text"
        )


BEFORE: dict[str, Callable[[Bench], None]] = {
    "settings": settings_are_strict,
    "build": builds,
}
CHECKS: dict[str, Callable[[Bench], None]] = {
    "shapes": shapes_and_types,
    "purity": step_is_pure,
    "no_grad": works_without_gradients,
    "batch": rows_do_not_mix,
    "causality": nothing_leaks_from_the_future,
    "streaming": streaming_equals_whole,
    "padding": padding_does_nothing,
    "gradient": gradient_through_time,
    "parameters": every_parameter_learns,
    "state_bytes": state_bytes_are_true,
    "schedules": every_schedule_agrees,
    "save_load": saves_and_loads,
    "generation": generation_equals_teacher_forcing,
}
"""What runs, in this order; a function's docstring says what it asks."""


# --- how they look ----------------------------------------------------------------------------


def _everything(model: MemarchModel, bench: Bench, rows: slice = slice(None)) -> dict[str, Tensor]:
    """The state after the context, and the query's logits given that state."""
    state = model.write(bench.context[rows])
    logits = model(input_ids=bench.query[rows], memory=state).logits
    return {f"state {key}": value for key, value in state.items()} | {"logits": logits}


def _with_gradients(model: MemarchModel, bench: Bench) -> dict[str, Tensor]:
    """Results, and the gradient of the loss by every parameter."""
    found = _everything(model, bench)
    found["logits of a long input"] = model(input_ids=bench.input).logits
    found |= _gradients(bench.loss(model, bench.context), dict(model.named_parameters()))
    return {key: value.detach() for key, value in found.items() if value.is_floating_point()}


def _runner(model: MemarchModel, bench: Bench) -> Callable[[], dict[str, Tensor]]:
    return lambda: _with_gradients(model, bench)


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative where the values are above 1."""
    if found.shape != expected.shape:
        return float("inf")
    if not found.is_floating_point():
        return 0.0 if torch.equal(found, expected) else float("inf")
    if found.numel() == 0:
        return 0.0
    size = max(1.0, float(expected.detach().abs().max()))
    difference = float((found.detach() - expected.detach()).abs().max()) / size
    return difference if difference == difference else float("inf")


def _equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], when: str) -> None:
    for key, value in found.items():
        difference = _difference(value, expected[key])
        if difference > EXACT:
            raise Violation(f"{key} differs {when}: by {difference:.1e}")


def _same_or_zero(old: Tensor, new: Tensor) -> bool:
    """Bit for bit the same; where the state grew for other rows, what was added is zero."""
    if old.ndim != new.ndim or any(a > b for a, b in zip(old.shape, new.shape, strict=True)):
        return False
    kept = tuple(slice(0, size) for size in old.shape)
    rest = new.clone()
    rest[kept] = 0
    return torch.equal(new[kept], old) and not bool(rest.any())


def _gradients(loss: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of the loss by each parameter, zero where there is none."""
    if not parameters:
        return {}
    values = list(parameters.values())
    if not loss.requires_grad:
        return {name: torch.zeros_like(value) for name, value in parameters.items()}
    found = torch.autograd.grad(loss, values, allow_unused=True)
    return {
        name: torch.zeros_like(value) if gradient is None else gradient
        for (name, value), gradient in zip(parameters.items(), found, strict=True)
    }


def _measured_slope(loss: Callable[[], Tensor], direction: Mapping[Tensor, Tensor]) -> float:
    """The change of the loss along a line, by a central difference too short to meet many kinks."""
    size = 1e-6

    def at(steps: float) -> float:
        with torch.no_grad():
            old = [parameter.clone() for parameter in direction]
            for parameter, move in direction.items():
                parameter.add_(steps * size * move)
            value = float(loss())
            for parameter, before in zip(direction, old, strict=True):
                parameter.copy_(before)
        return value

    return (at(1) - at(-1)) / (2 * size)


def _bytes_on_disk(state: MemoryState, keys: set[str]) -> int:
    """The bytes that these tensors take in a file, read from its header."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        state.save(path)
        raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    return sum(header[key]["data_offsets"][1] - header[key]["data_offsets"][0] for key in keys)


@contextmanager
def _spy(cls: type[Memory]) -> Iterator[None]:
    """While this lasts, every call of the class's `step` is held to leave its arguments alone."""
    real = cls.step

    def watched(
        self: Memory, state: dict[str, Tensor], x: Any, inner: Any, segment: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        given = x if isinstance(x, tuple) else (x,)
        copies = [value.clone() for value in given]
        old = {key: value.clone() for key, value in state.items()}
        result = real(self, state, x, inner, segment)
        if set(state) != set(old):
            raise Violation("step added keys to, or removed them from, the state it was given")
        for key, value in old.items():
            if not torch.equal(value, state[key]):
                raise Violation(f"step modified the state it was given ({key!r}): return a new one")
        if not all(map(torch.equal, copies, given)):
            raise Violation("step modified x in place")
        return result

    own = "step" in vars(cls)
    cls.step = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own:
            cls.step = real  # type: ignore[method-assign]
        else:
            del cls.step
