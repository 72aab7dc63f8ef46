"""Bytes that are alive at one time: the storages of all tensors that operations make, as they go.

Every storage that comes out of an operation counts from then on until nothing holds it any more,
views once. What a kernel takes and gives back inside one operation is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """`peak`: the most bytes alive at once inside; tensors `known` before are not counted."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._sizes: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        for tensor in known:
            self._watch(tensor, counted=False)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        for given in tree_iter((args, kwargs)):  # made outside: not by what is measured
            if isinstance(given, Tensor):
                self._watch(given, counted=False)
        result = func(*args, **(kwargs or {}))
        for made in tree_iter(result):
            if isinstance(made, Tensor):
                self._watch(made, counted=True)
        self.peak = max(self.peak, self.now)
        return result

    def _watch(self, tensor: Tensor, *, counted: bool) -> None:
        if tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._watched:
            return
        size = storage.nbytes() if counted else 0
        self._sizes[key] = size
        self.now += size
        self._watched[key] = weakref.ref(storage, lambda _: self._forget(key))

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
        del self._watched[key]
