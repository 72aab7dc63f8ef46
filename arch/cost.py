"""What a model costs: parameters, state, floating-point operations. Everything is counted, nothing declared.

The model runs once on the meta device, which has shapes and no numbers: state sizes are those of
the tensors that come out of `write`, operations those that torch's counter sees (matrix products
and attention; a multiply-add is two). For one sample with a context of C and a query of Q tokens:

    cost/parameters             numbers in the model, shared ones once
    cost/state_bytes            bytes of the state after the context, cost/state_floats its numbers
    cost/flops_write            to write the context
    cost/flops_read             to read the query from the state
    cost/flops_per_token        (write + read) / (C + Q)
    cost/flops_train_per_token  the same with the backward pass
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from memarch.arch.model import MemarchModel
from memarch.arch.state import MemoryState


def measure(model: MemarchModel, *, context_length: int, query_length: int) -> dict[str, float]:
    """The figures above for a context of `context_length` tokens (0: none) and a query."""
    meta = copy.deepcopy(model).to("meta")
    tokens = max(1, context_length + query_length)
    context, query = (_ids(length) for length in (context_length, query_length))
    with torch.no_grad():
        write, state = _counted(lambda: meta.write(context))
        read, _ = _counted(lambda: meta(query, memory=state))
    meta.train()
    train, _ = _counted(lambda: _train_step(meta, context, query))
    return {
        "cost/parameters": float(sum(p.numel() for p in model.parameters())),
        "cost/state_bytes": float(state.nbytes),
        "cost/state_floats": float(state.numel),
        "cost/flops_write": float(write),
        "cost/flops_read": float(read),
        "cost/flops_per_token": (write + read) / tokens,
        "cost/flops_train_per_token": train / tokens,
    }


def _ids(length: int) -> Tensor:
    return torch.zeros(1, length, dtype=torch.long, device="meta")


def _counted(work: Callable[[], MemoryState]) -> tuple[int, MemoryState]:
    counter = FlopCounterMode(display=False)
    with counter:
        result = work()
    return counter.get_total_flops(), result


def _train_step(model: MemarchModel, context: Tensor, query: Tensor) -> MemoryState:
    memory = model.write(context)
    output = model(query, memory=memory)
    assert output.logits is not None
    output.logits.sum().backward()
    return memory
