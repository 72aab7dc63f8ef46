"""What a model costs: parameters, state, operations, memory. Everything is counted.

The model runs on made-up input, segment by segment, a large one on tensors that have shapes and no
numbers (unless a memory's state depends on the numbers, as that of a growing cache does): state
sizes are those of the tensors that come out of `write`, operations those of matrix products,
attention and triangular solves (a multiply-add is two) in the reference implementation, bytes those
of the storages that are alive. For one sample with a context of C tokens and R queries of Q tokens:

    cost/parameters             numbers in the model, shared ones once
    cost/state_bytes            bytes of the state after the context, cost/state_floats its numbers
    cost/flops_write            W, to write the context
    cost/flops_read             r, to read one query from the state
    cost/flops_per_token        (W + r) / (C + Q)
    cost/flops_train_per_token  a training step, forward and backward, over the C + R Q tokens of
                                a sample: logits at the scored positions, gradients where weights
                                train and as far back as `truncate` lets them, cells again where
                                the model checkpoints
    cost/break_even_queries     (W - P) / (f - r), where the same backbone without memories reads
                                the context once by full attention (P) and a query beside the
                                context's keys and values (f): from so many queries on, writing is
                                cheaper than attending. 0 where it is from the first on, infinite
                                where it never stays so
    cost/peak_activation_bytes  the most bytes alive at one time in a training step of `batch_size`
                                samples, beyond weights and the optimizer's moments: activations,
                                states, and gradients as they come. `schedule: auto` counts as
                                sequential; what a kernel uses inside is not seen
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from memarch.arch.live import LiveBytes
from memarch.arch.model import MemarchConfig, MemarchModel
from memarch.arch.run import Run
from memarch.arch.state import MemoryState
from memarch.kernels import feature_maps

T = TypeVar("T")

SMALL = 10**9
"""Parameters times tokens up to which a model runs on real tensors: about a second on one core."""


def _solve_flops(_: Tensor, b: Tensor, *, left: bool = True, **__: Any) -> int:
    """Substitution: a multiply-add for each number of the triangle and each right-hand side."""
    return b.numel() * b.shape[-2 if left else -1]


_aten = torch.ops.aten
_FORMULAS = flop_registry | {
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_flash_attention
    ],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
    _aten.linalg_solve_triangular: _solve_flops,
}


@dataclass(frozen=True)
class Lengths:
    """What one sample of a training batch holds, and how a step goes over it."""

    context: int
    query: int
    queries: int = 1
    """Queries over one context."""
    scored: int | None = None
    """Positions of a query at which the training loss is taken; None: all that predict a token."""
    truncate: int | None = None
    """Segments through which the gradient flows back."""

    @property
    def tokens(self) -> int:
        return max(1, self.context + self.queries * self.query)


class NoNumbersError(RuntimeError):
    """The model was built without numbers, and its costs cannot be known without."""


def measure(
    model: MemarchModel,
    *,
    context_length: int,
    query_length: int,
    state_length: int | None = None,
    queries: int = 1,
    scored: int | None = None,
    truncate: int | None = None,
    batch_size: int = 1,
    precision: str = "fp32",
) -> dict[str, float]:
    """The figures above for a context of `context_length` tokens (0: none) and queries.

    `state_length`: the context after which the state is measured, where it is another one.
    """
    lengths = Lengths(context_length, query_length, queries, scored, truncate)
    model = _counted_form(model)
    parameters = sum(p.numel() for p in model.parameters())
    try:
        with _fakes(model) if _large(model, lengths.tokens) else nullcontext():
            write, read, train, state = _run(model, lengths, state_length)
    except DataDependentOutputException:
        _refuse_fakes(model)
        write, read, train, state = _run(model, lengths, state_length)
    prefill, attend = full_attention(model, context_length, query_length)
    return {
        "cost/parameters": float(parameters),
        "cost/state_bytes": float(state.nbytes),
        "cost/state_floats": float(state.numel),
        "cost/flops_write": float(write),
        "cost/flops_read": float(read),
        "cost/flops_per_token": (write + read) / max(1, context_length + query_length),
        "cost/flops_train_per_token": train / lengths.tokens,
        "cost/break_even_queries": break_even(write, read, prefill, attend),
        "cost/peak_activation_bytes": float(
            peak_activation_bytes(model, lengths, batch_size, precision)
        ),
    }


def break_even(write: float, read: float, prefill: float, attend: float) -> float:
    """The N from which on write + N read is at most prefill + N attend; infinite where none is."""
    if write <= prefill:
        return 0.0 if read <= attend else math.inf
    return (write - prefill) / (attend - read) if read < attend else math.inf


def full_attention(model: MemarchModel, context: int, query: int) -> tuple[int, int]:
    """Operations of the backbone without memories, with everything in sight: to read the context
    in one pass, and to read one query beside the context's keys and values."""
    config = model.backbone.config.to_dict()
    longest = config.get("max_position_embeddings")
    if isinstance(longest, int):  # the size of a table, at most: no operation depends on it
        config["max_position_embeddings"] = max(longest, context + query)
    backbone = model.spec.backbone.model_dump()
    return _full_attention(json.dumps([backbone, config], default=str), context, query)


@cache
def _full_attention(described: str, context: int, query: int) -> tuple[int, int]:
    backbone, config = json.loads(described)
    spec = {
        "backbone": backbone,
        "memory": {"main": {"type": "full_attention"}},
        "segment_length": max(1, context, query),
        "schedule": "sequential",
    }
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        baseline = MemarchModel(MemarchConfig(spec=spec, text_config=config))
        ids, question = (torch.zeros(1, n, dtype=torch.long) for n in (context, query))
        with torch.no_grad():
            prefill, state = _counted(lambda: baseline.write(ids))
            attend, _ = _counted(lambda: baseline(question, memory=state))
    return prefill, attend


def peak_activation_bytes(
    model: MemarchModel, lengths: Lengths, batch_size: int, precision: str = "fp32"
) -> int:
    """`cost/peak_activation_bytes` of a batch of so many samples."""

    def run(*, fake: bool) -> int:
        with _fakes(model) if fake else nullcontext() as mode:
            inputs = _inputs(model, lengths, batch_size, fake=fake)
            known = [*model.parameters(), *model.buffers(), *inputs.values()]
            if mode is not None:
                known = [_as_fake(tensor, mode) for tensor in known]
            with _no_collection(), LiveBytes(known) as live:
                _train_step(model, inputs, lengths, precision)
        return live.peak

    try:
        return run(fake=_large(model, lengths.tokens * batch_size))
    except DataDependentOutputException:
        _refuse_fakes(model)
        return run(fake=False)


@contextmanager
def _no_collection() -> Iterator[None]:
    """What hangs together in a circle lives on until it is collected: here, to the end."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _fakes(model: MemarchModel) -> Iterator[FakeTensorMode]:
    """Tensors with shapes and no numbers: what a large model's numbers take is not spent."""
    with _mode_of(model) or FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode
    feature_maps._rolls.cache_clear()  # what was kept inside is as unreal


def _mode_of(model: MemarchModel) -> FakeTensorMode | None:
    """The mode in which the model was built, if its weights have no numbers."""
    weight = next(model.parameters())
    return weight.fake_mode if isinstance(weight, FakeTensor) else None


def _large(model: MemarchModel, tokens: int) -> bool:
    weights = sum(p.numel() for p in model.parameters())
    return weights * tokens > SMALL or _mode_of(model) is not None


def _refuse_fakes(model: MemarchModel) -> None:
    if _mode_of(model) is not None:
        raise NoNumbersError("the state's size depends on numbers, which these weights have not")


def _as_fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    return tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor)


def _counted_form(model: MemarchModel) -> MemarchModel:
    """The same model, its operations where they are seen: no Triton kernels, one cell at a time
    (or the order that the spec names)."""
    given = model.spec
    order = "sequential" if given.schedule == "auto" else given.schedule
    model = model.respec(given.model_copy(update={"schedule": order}))
    model.spec = model.spec.model_copy(update={"impl": "reference"})
    for module in model.modules():
        if hasattr(module, "impl"):
            module.impl = "reference"
    return model


def _run(
    model: MemarchModel, lengths: Lengths, state_length: int | None
) -> tuple[int, int, int, MemoryState]:
    """Operations to write, to read and to train, and the state after the context."""
    context, query, longest = (
        torch.zeros(1, length, dtype=torch.long, device=model.device)
        for length in (lengths.context, lengths.query, state_length or lengths.context)
    )
    with torch.no_grad():
        write, state = _counted(lambda: model.write(context))
        read, _ = _counted(lambda: model(query, memory=state))
        if state_length is not None and _grows(model, state):
            state = model.write(longest)
    inputs = _inputs(model, lengths, 1, fake=isinstance(state["segments_seen"], FakeTensor))
    train, _ = _counted(lambda: _train_step(model, inputs, lengths))
    return write, read, train, state


def _grows(model: MemarchModel, state: MemoryState) -> bool:
    """Whether a context has changed the state's size."""
    return model.init_memory(1).numel != state.numel


def _counted(work: Callable[[], T]) -> tuple[int, T]:
    with _FlopCounter() as counter:
        result = work()
    return counter.flops, result


class _FlopCounter(TorchDispatchMode):
    """Adds up torch's formulas; its own counter tracks modules too, by hooks that fail on views."""

    flops = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _inputs(model: MemarchModel, lengths: Lengths, batch: int, *, fake: bool) -> dict[str, Tensor]:
    """A training batch of these lengths. Tensors without numbers cannot select by labels."""
    rows = batch * lengths.queries

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.long, device=model.device)

    inputs = {"input_ids": zeros(rows, lengths.query)}
    if lengths.context:
        inputs["context_ids"] = zeros(batch, lengths.context)
    if not fake:
        labels = zeros(rows, lengths.query)
        labels[:, : lengths.query - _scored(lengths)] = -100
        inputs["labels"] = labels
    return inputs


def _scored(lengths: Lengths) -> int:
    return lengths.query - 1 if lengths.scored is None else min(lengths.scored, lengths.query - 1)


def _train_step(
    model: MemarchModel, inputs: dict[str, Tensor], lengths: Lengths, precision: str = "fp32"
) -> None:
    """Forward and backward, as a training step of this batch does."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    half = precision == "bf16"
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        if "labels" in inputs:
            loss = model(**inputs, truncate=lengths.truncate).loss
        else:
            loss = _sliced_loss(model, inputs, lengths)
    torch.autograd.grad(loss, weights, allow_unused=True)


def _sliced_loss(model: MemarchModel, inputs: dict[str, Tensor], lengths: Lengths) -> Tensor:
    """The same loss with the scored positions cut out in place of selected."""
    run = Run(model, model._how(lengths.truncate))
    state, ids = None, inputs["input_ids"]
    if lengths.context:
        state = model._write(run, inputs["context_ids"], None, None)
    state = model._for_rows(state, len(ids))
    hidden, _ = model._over(run, ids, None, state, answers=True, write_last=False)
    assert hidden is not None
    last = hidden.shape[1] - 1
    hidden = hidden[:, last - _scored(lengths) : last].flatten(0, 1)
    logits = model.view.head(hidden)
    targets = ids[:, 1 : 1 + _scored(lengths)].flatten()
    loss = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)
    return torch.stack([loss, *(value.mean() for value in run.losses)]).sum()
