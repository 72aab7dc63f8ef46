"""The processes that train one model together, and what they must agree on.

All hold the same weights and draw the same batches; each takes its rows of a batch, gradients are
averaged before a step, so that the weights stay equal. The first one leads: it alone evaluates,
reports, is told to stop and writes files, and the others hear of it. Where a process trains alone
there is a team too, of one.

Every batch is scored as one, over all its labels, so that the number of processes does not change
what is computed, up to the order of sums.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from memarch.components.errors import SpecError

T = TypeVar("T")

BUCKET = 2**24
"""Numbers that are sent at a time."""

LOST_PEER = re.compile(r"connection (closed|reset|refused)|broken pipe|nccl|socket", re.IGNORECASE)


@dataclass(frozen=True)
class Team:
    """This process among those that train with it."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Team:
        """As torch.distributed was set up in this process, if it was."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this process evaluates, reports and writes."""
        return self.rank == 0

    def rows(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """This process's part of a batch; a sample's queries stay with it."""
        return {name: tensor[self._part(len(tensor))] for name, tensor in batch.items()}

    def _part(self, rows: int) -> slice:
        share, left = divmod(rows, self.size)
        if left:
            raise SpecError(
                f"{self.size} processes cannot share {rows} rows evenly", path="train.batch_size"
            )
        return slice(self.rank * share, (self.rank + 1) * share)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The same gradients everywhere: the mean over the processes."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                continue
            if bucket and (
                sum(map(Tensor.numel, bucket)) > BUCKET or bucket[0].dtype != parameter.grad.dtype
            ):
                self._average(bucket)
                bucket = []
            bucket.append(parameter.grad)
        if bucket:
            self._average(bucket)

    def _average(self, tensors: list[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def average(self, tensor: Tensor) -> None:
        """The mean over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor /= self.size

    def ask(self, make: Callable[[], T]) -> T:
        """What the leader makes, for everyone; nobody else makes it."""
        if self.size == 1:
            return make()
        answer: list[T | None] = [make() if self.leads else None]
        dist.broadcast_object_list(answer, src=0)
        return answer[0]  # type: ignore[return-value]

    def lost_another(self, error: BaseException) -> bool:
        """Whether this error only says that another process of the team is gone."""
        return self.size > 1 and bool(LOST_PEER.search(str(error)))
