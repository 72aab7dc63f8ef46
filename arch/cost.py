"""What a model costs: parameters, state, operations. Everything is counted, nothing declared.

The model runs once, segment by segment, a large one on tensors that have shapes and no numbers
(unless a memory's state depends on the numbers, as that of a growing cache does): state sizes are
those of the tensors that come out of `write`, operations those that torch's counter sees (matrix
products and attention; a multiply-add is two). For one sample with a context of C and a query of Q
tokens:

    cost/parameters             numbers in the model, shared ones once
    cost/state_bytes            bytes of the state after the context, cost/state_floats its numbers
    cost/flops_write            to write the context
    cost/flops_read             to read the query from the state
    cost/flops_per_token        (write + read) / (C + Q)
    cost/flops_train_per_token  the same with the backward pass
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from memarch.arch.model import MemarchModel
from memarch.arch.state import MemoryState

T = TypeVar("T")

SMALL = 10**9
"""Parameters times tokens up to which a model runs on real tensors: about a second on one core."""

_aten = torch.ops.aten
_FORMULAS = flop_registry | {
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_flash_attention
    ],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}


def measure(model: MemarchModel, *, context_length: int, query_length: int) -> dict[str, float]:
    """The figures above for a context of `context_length` tokens (0: none) and a query."""
    model = model.respec(model.spec.model_copy(update={"schedule": "sequential"}))
    tokens = max(1, context_length + query_length)
    parameters = sum(p.numel() for p in model.parameters())
    try:
        # Shapes alone cost a millisecond an operation, more than a small model's numbers do.
        large = parameters * tokens > SMALL
        with FakeTensorMode(allow_non_fake_inputs=True) if large else nullcontext():
            write, read, train, state = _run(model, context_length, query_length)
    except DataDependentOutputException:
        write, read, train, state = _run(model, context_length, query_length)
    return {
        "cost/parameters": float(parameters),
        "cost/state_bytes": float(state.nbytes),
        "cost/state_floats": float(state.numel),
        "cost/flops_write": float(write),
        "cost/flops_read": float(read),
        "cost/flops_per_token": (write + read) / tokens,
        "cost/flops_train_per_token": train / tokens,
    }


def _run(
    model: MemarchModel, context_length: int, query_length: int
) -> tuple[int, int, int, MemoryState]:
    """Operations to write, to read and to train, and the state after the context."""
    context, query = (
        torch.zeros(1, length, dtype=torch.long, device=model.device)
        for length in (context_length, query_length)
    )
    with torch.no_grad():
        write, state = _counted(lambda: model.write(context))
        read, _ = _counted(lambda: model(query, memory=state))
    train, _ = _counted(lambda: _train_step(model, context, query))
    return write, read, train, state


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


def _train_step(model: MemarchModel, context: Tensor, query: Tensor) -> None:
    logits = model(query, memory=model.write(context)).logits
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    torch.autograd.grad(logits.sum(), weights, allow_unused=True)
