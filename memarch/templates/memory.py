"""my_memory: a leaky mean of what each layer computed, read back through a linear map.

For layer l and segment s, with hidden states x_t and the layer F_l:

    y_t   = F_l(x_t + W m_{s-1})                          read, then run the layer
    m_s   = (1 - rate) m_{s-1} + rate * mean_t y_t        write; padded positions do not count
    m_0   = 0,  W = 0 at the start: the model begins as the backbone without memory

Shapes: N rows (batch, times the cells that run together), T tokens, D hidden size.

Use it in a study with

    plugins: [my_memory.py]
    variants:
      mine: {model.memory.main: {type: my_memory, rate: 0.5}}

Test it with `memarch check my_memory.py` (rules that hold for every memory) and
`pytest my_memory.py` (the equation below).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from memarch.components.memory import (
    BuildContext,
    LayeredSettings,
    Memory,
    Segment,
    State,
    keep_empty_rows,
    memories,
)


@memories.register("my_memory", paper="")
class MyMemory(Memory):
    """Leaky mean of each layer's outputs over segments, added to the layer's input."""

    site = "layer"  # segment | layer | mixer | attention: what `x` and `inner` are in `step`

    class Settings(LayeredSettings):  # the keys that the YAML may give; `layers:` is inherited
        type: Literal["my_memory"]
        rate: Annotated[float, Field(gt=0, le=1)] = 0.5
        """How much of the mean the newest segment replaces."""

    def __init__(self, settings: Settings, context: BuildContext) -> None:
        super().__init__()
        self.rate = settings.rate
        self.read = nn.Linear(context.hidden_size, context.hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.read.weight)

    def init_state(self, batch: int, like: Tensor) -> State:
        """m_0. A state is made of tensors with the batch first, and lives outside the module."""
        return {"mean": like.new_zeros(batch, self.read.in_features)}

    def step(self, state: State, x: Any, inner: Any, segment: Segment) -> tuple[Tensor, State]:
        """One segment in one layer: `(outputs [N, T, D], next state)`; `state` itself stays."""
        y = inner(x + self.read(state["mean"]).unsqueeze(1))  # [N, T, D]
        if segment.frozen:  # a query: nothing is written
            return y, state
        new = {"mean": leaky_mean(state["mean"], y, segment.valid, self.rate)}
        return y, keep_empty_rows(state, new, segment)


def leaky_mean(mean: Tensor, hidden: Tensor, valid: Tensor, rate: float) -> Tensor:
    """The write equation: mean `[N, D]`, hidden `[N, T, D]`, valid `[N, T]` -> `[N, D]`."""
    weights = valid.unsqueeze(-1).to(hidden.dtype)  # [N, T, 1]
    average = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    return (1 - rate) * mean + rate * average


def test_a_write_moves_the_mean_by_rate_and_skips_padding() -> None:
    mean = torch.tensor([[1.0]])
    hidden = torch.tensor([[[3.0], [5.0], [100.0]]])
    valid = torch.tensor([[True, True, False]])
    torch.testing.assert_close(leaky_mean(mean, hidden, valid, 0.25), torch.tensor([[1.75]]))
