"""Groups: cells that are alike run as one, their weights stacked, their rows side by side.

A group of cells (s_1, l_1) ... (s_G, l_G) is one call of transformers' own layer forward on
`[G * B, T, D]`. The layer is a copy of the first cell's whose leaves hold weights `[G, ...]` and
see their input as `[G, B * T, D]`; what is between the leaves does not mind how many rows come.
Parameters stay with their layers: they are stacked once a run, and autograd unbinds them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from memarch.arch.cells import Cell
from memarch.arch.summed_gradients import SummedGradient
from memarch.components.leaves import RMSNorm, ShortConv, Vector
from memarch.components.memory import Segment, State
from memarch.kernels.checks import Impl
from memarch.kernels.grouped_linear import grouped_linear
from memarch.kernels.grouped_linear.reference import batched_product
from memarch.kernels.layer_norm import layer_norm

LEAVES: tuple[type[nn.Module], ...] = (
    nn.Linear,
    Conv1D,
    nn.LayerNorm,
    RMSNorm,
    ShortConv,
    Vector,
)


class StackedLinear(nn.Module):
    """G maps `[G * B, ..., I] -> [G * B, ..., O]`: weight `[G, I, O]`, bias `[G, O]` or None."""

    weight: Tensor
    bias: Tensor | None
    summed: SummedGradient | None

    def __init__(self, impl: Impl) -> None:
        super().__init__()
        self.impl = impl

    def forward(self, x: Tensor) -> Tensor:
        """Each map on its share of the rows; shapes are right by construction."""
        if self.impl == "triton":
            return grouped_linear(x, self.weight, self.bias, impl=self.impl)
        if self.summed is None or torch.is_autocast_enabled(x.device.type):
            return batched_product(x, self.weight, self.bias)
        groups, size, outputs = self.weight.shape
        y = self.summed.product(x.reshape(groups, -1, size))
        if self.bias is not None:
            y = y + self.bias.unsqueeze(1)
        return y.view(*x.shape[:-1], outputs)


class StackedLayerNorm(nn.Module):
    """G layer norms: weight and bias `[G, D]`."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, eps: float, impl: Impl) -> None:
        super().__init__()
        self.eps, self.impl = eps, impl

    def forward(self, x: Tensor) -> Tensor:
        """Each norm on its share of the rows."""
        return layer_norm(x, self.weight, self.bias, self.eps, impl=self.impl)


class Group:
    """Cells of equal structure, and a copy of the first one whose leaves take stacked weights."""

    def __init__(self, layers: Sequence[int], cells: Sequence[Cell]) -> None:
        self.layers = list(layers)
        self.template = _share_parameters(cells[0])
        self._bound = (0, 0)
        self._weights: list[tuple[nn.Module, str, list[nn.Module], Tensor]] = []
        """Leaf, `weight` or `bias`, its owners, and theirs stacked."""
        self._summed: dict[nn.Module, SummedGradient] = {}
        modules = [dict(cell.named_modules()) for cell in cells]
        for name, module in modules[0].items():
            if isinstance(module, LEAVES):
                owners, leaf = [own[name] for own in modules], _stacked_leaf(self.template, name)
                for key in ("weight", "bias"):
                    if getattr(owners[0], key, None) is not None:
                        self._weights.append((leaf, key, owners, _stack(owners, key)))

    def run(
        self, start: int, stop: int, x: Tensor, states: dict[str, State], segment: Segment
    ) -> tuple[Tensor, dict[str, State]]:
        """Cells start to stop of this group on `[(stop - start) * B, T, D]`."""
        if self._bound != (start, stop):
            self._bind(start, stop)
        outputs: tuple[Tensor, dict[str, State]] = self.template(x, states, segment)
        return outputs

    def _bind(self, start: int, stop: int) -> None:
        everything = (start, stop) == (0, len(self.layers))
        for leaf, key, owners, value in self._weights:
            if not everything and value.requires_grad and torch.is_grad_enabled():
                value = _stack(owners[start:stop], key)  # a slice's gradient has zeros for the rest
            elif not everything:
                value = value[start:stop]
            object.__setattr__(leaf, key, value)  # no parameter: Module's own need not look
            if isinstance(leaf, StackedLinear) and key == "weight":
                leaf.summed = self._sum_of(leaf, value, kept=everything)
        self._bound = (start, stop)

    def _sum_of(self, leaf: nn.Module, weight: Tensor, *, kept: bool) -> SummedGradient | None:
        if not (weight.requires_grad and torch.is_grad_enabled()):
            return None
        if not kept:
            return SummedGradient(weight)
        if leaf not in self._summed:
            self._summed[leaf] = SummedGradient(weight)
        return self._summed[leaf]


def group_cells(cells: Sequence[Cell]) -> list[Group]:
    """Cells by structure, each group in the order of its layers."""
    alike: dict[object, list[int]] = {}
    for index, cell in enumerate(cells):
        alike.setdefault(_signature(cell, index), []).append(index)
    return [Group(layers, [cells[index] for index in layers]) for layers in alike.values()]


def _signature(cell: Cell, index: int) -> object:
    """Equal for cells that one template can run; unique where a parameter has no leaf to own it."""
    if not all(memory.groupable for memory in cell.memories.values()):
        return index
    parts: list[object] = []
    for name, module in cell.named_modules():
        own = tuple(
            (key, value.shape, value.dtype)
            for key, value in module._parameters.items()
            if value is not None
        )
        if own and not isinstance(module, LEAVES):
            return index
        plain = {
            key: value
            for key, value in vars(module).items()
            if key != "layer_idx" and isinstance(value, int | float | str | bool)
        }
        parts.append((name, type(module), own, tuple(sorted(plain.items()))))
    return tuple(parts)


def _share_parameters(cell: Cell) -> Cell:
    shared = {id(tensor): tensor for tensor in (*cell.parameters(), *cell.buffers())}
    return copy.deepcopy(cell, shared)


def _stacked_leaf(template: Cell, name: str) -> nn.Module:
    """Replace the template's leaf by one that takes stacked weights, and return it."""
    parent, _, attribute = name.rpartition(".")
    old = template.get_submodule(name)
    new: nn.Module
    if isinstance(old, nn.Linear | Conv1D):
        new = StackedLinear(template.impl)
    elif isinstance(old, nn.LayerNorm):
        new = StackedLayerNorm(old.eps, template.impl)
    else:
        new = copy.copy(old)
        new._parameters = {}
    new.train(old.training)
    for key in ("weight", "bias"):
        if key in old._parameters:
            setattr(new, key, None)
    setattr(template.get_submodule(parent), attribute, new)
    return new


def _stack(owners: Sequence[nn.Module], key: str) -> Tensor:
    values: list[Tensor] = [getattr(owner, key) for owner in owners]
    stacked = values[0].unsqueeze(0) if len(values) == 1 else torch.stack(values)
    return stacked.mT if key == "weight" and isinstance(owners[0], nn.Linear) else stacked
