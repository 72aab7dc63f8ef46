"""A model's state: what its memories carry, explicit, batch first, on disk as safetensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from memarch.components.memory import State

SEGMENTS, TOKENS = "segments_seen", "tokens_seen"


class MemoryState(Mapping[str, Tensor]):
    """Tensors `memory.key`: `[batch, layers, ...]` for memories inside layers, else `[batch, ...]`.

    `segments_seen` and `tokens_seen` `[batch]` count what was written: bookkeeping, no content.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        """Equal bit for bit, and in the types and devices of the tensors."""
        if not isinstance(other, MemoryState):
            return NotImplemented
        return self.keys() == other.keys() and all(
            value.dtype == other[key].dtype
            and value.device == other[key].device
            and torch.equal(value, other[key])
            for key, value in self.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{key}={list(value.shape)}" for key, value in self.items())
        return f"MemoryState({shapes})"

    @property
    def batch_size(self) -> int:
        """How many samples' memories this holds."""
        return self._tensors[SEGMENTS].shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of memory content, all samples together."""
        return sum(value.numel() * value.element_size() for value in self._content())

    @property
    def numel(self) -> int:
        """Numbers of memory content, all samples together."""
        return sum(value.numel() for value in self._content())

    def select(self, rows: Tensor) -> MemoryState:
        """The samples at `rows` (an index tensor), in that order."""
        return self._map(lambda value: value.index_select(0, rows.to(value.device)))

    def repeat(self, times: int) -> MemoryState:
        """Each sample `times` times in a row, for several queries over one context."""
        return self._map(lambda value: value.repeat_interleave(times, dim=0))

    def detach(self) -> MemoryState:
        """The same content without its history."""
        return self._map(Tensor.detach)

    def to(self, device: torch.device | str) -> MemoryState:
        """The same content on another device."""
        return self._map(lambda value: value.to(device))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        save_file({key: value.detach().contiguous() for key, value in self.items()}, str(path))

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> MemoryState:
        """Read what `save` wrote."""
        return cls(load_file(str(path), device=device))

    def _content(self) -> list[Tensor]:
        return [value for key, value in self.items() if key not in (SEGMENTS, TOKENS)]

    def _map(self, function: Callable[[Tensor], Tensor]) -> MemoryState:
        return MemoryState({key: function(value) for key, value in self.items()})


class RunState:
    """The same content as executors hold it: by memory at the segment site, by layer and memory."""

    def __init__(
        self,
        outer: dict[str, State],
        layers: list[dict[str, State]],
        segments: Tensor,
        tokens: Tensor,
    ) -> None:
        self.outer, self.layers = outer, layers
        self.segments, self.tokens = segments, tokens

    def detach(self) -> None:
        """Cut the history, in place of the tensors held here."""
        self.outer = detach_states(self.outer)
        self.layers = [detach_states(layer) for layer in self.layers]

    def pack(self) -> MemoryState:
        """To the public form."""
        flat = {
            f"{name}.{key}": value
            for name, state in self.outer.items()
            for key, value in state.items()
        }
        stacked: dict[str, list[Tensor]] = {}
        for layer in self.layers:
            for name, state in layer.items():
                for key, value in state.items():
                    stacked.setdefault(f"{name}.{key}", []).append(value)
        flat |= {key: torch.stack(values, dim=1) for key, values in stacked.items()}
        return MemoryState(flat | {SEGMENTS: self.segments, TOKENS: self.tokens})

    @classmethod
    def unpack(cls, packed: MemoryState, outer: list[str], layers: list[list[str]]) -> RunState:
        """From the public form; `outer` and `layers` name the memories at each place, in order."""
        grouped: dict[str, State] = {}
        for full, value in packed.items():
            name, _, key = full.rpartition(".")
            grouped.setdefault(name, {})[key] = value
        seen = {name: 0 for names in layers for name in names}
        unpacked: list[dict[str, State]] = []
        for names in layers:
            unpacked.append({})
            for name in names:
                state = grouped.get(name, {})
                unpacked[-1][name] = {key: value[:, seen[name]] for key, value in state.items()}
                seen[name] += 1
        return cls(
            {name: grouped.get(name, {}) for name in outer},
            unpacked,
            packed[SEGMENTS],
            packed[TOKENS],
        )


def detach_states(states: Mapping[str, State]) -> dict[str, State]:
    """The same content without its history (truncated backpropagation through time)."""
    return {
        name: {key: value.detach() for key, value in state.items()}
        for name, state in states.items()
    }
