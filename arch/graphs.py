"""Equal steps that follow one another, run from still buffers: on a GPU as one CUDA graph.

A step takes what is new (`fed`) and what the last step left (`carried`), and gives a result and
what the next one carries. Launching its hundreds of kernels costs more than running them where
they are small; a captured graph launches them at once. Captured steps read and write the same
memory each time, so the step must be a pure function of its two arguments, without a look at the
values of tensors from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Step = Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, list[Tensor]]]
WARM_UP = 3
"""Equal steps before one is captured: they compile kernels and make libraries allocate."""


class Repeating:
    """Runs a step again and again, captured as soon as it has repeated itself often enough."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self._key: object = None
        self._repeats = 0
        self._captured: CapturedStep | None = None

    def __call__(
        self, key: object, fed: Tensor, carried: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """`step(fed, carried)`; `key` is one object for as long as the step does the same."""
        if key is not self._key:
            self._key, self._repeats, self._captured = key, 0, None
        self._repeats += 1
        if self._repeats <= WARM_UP:
            return self.step(fed, carried)
        if self._captured is None:
            self._captured = CapturedStep(self.step, fed, carried)
        return self._captured(fed, carried)


class CapturedStep:
    """A step over buffers of its own. What it returns as carried are these buffers."""

    def __init__(self, step: Step, fed: Tensor, carried: Sequence[Tensor]) -> None:
        self.fed, self.carried = fed.clone(), [tensor.clone() for tensor in carried]
        self._step, self._graph = step, None
        if fed.is_cuda:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._run()

    def __call__(self, fed: Tensor, carried: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The step on these values, copied in where they do not lie in the buffers already."""
        for buffer, value in zip((self.fed, *self.carried), (fed, *carried), strict=True):
            if buffer is not value:
                buffer.copy_(value)
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()
        return self.result.clone(), self.carried

    def _run(self) -> None:
        self.result, after = self._step(self.fed, self.carried)
        for buffer, value in zip(self.carried, after, strict=True):
            if buffer is not value:
                buffer.copy_(value)
