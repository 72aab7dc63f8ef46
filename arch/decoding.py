"""Generation over segment borders: the open segment is read, a full one written when a token comes.

Rows are kept left-aligned, so that each is cut from its own first token whatever pads its prompt
had. Before every new token the open segment is read from the state at its start; when it is full
and another token comes, it is written and a new one opens. So greedy output equals the argmax of
the teacher-forced logits, over any number of borders.
Shapes: B rows, T segment length, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Cache

from memarch.arch.run import Cut, Run
from memarch.arch.state import MemoryState

if TYPE_CHECKING:
    from memarch.arch.model import MemarchModel


class DecodingCache(Cache):
    """What generation carries from token to token: the state and the open segment of each row."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.state: MemoryState | None = None
        self.open_ids: Tensor | None = None
        """[B, T]: the open segment's tokens, from the left."""
        self.counts: Tensor | None = None
        """[B]: how many of them there are."""
        self.length = 0
        """Columns of the sequence that were taken in."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the sequence that were taken in."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: row i goes on from what was row beam_idx[i]."""
        assert self.state is not None
        assert self.open_ids is not None
        assert self.counts is not None
        self.state = self.state.select(beam_idx)
        self.open_ids, self.counts = self.open_ids[beam_idx], self.counts[beam_idx]


def decode(
    model: MemarchModel,
    ids: Tensor,
    mask: Tensor | None,
    memory: MemoryState | None,
    cache: DecodingCache,
) -> Tensor:
    """Take in the columns of ids `[B, W]` that are new; logits `[B, 1, V]` of the next token."""
    with torch.inference_mode(False), torch.no_grad():
        if cache.state is None:
            _open(model, len(ids), memory, cache, ids)
        valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        new_ids, new_valid = ids[:, cache.length :], valid[:, cache.length :]
        cache.length = ids.shape[1]
        _take_in(model, cache, new_ids.clone(), new_valid.clone())
        return _read(model, cache)


def _open(
    model: MemarchModel, rows: int, memory: MemoryState | None, cache: DecodingCache, ids: Tensor
) -> None:
    state = None if memory is None else model._unpack(memory)
    cache.state = model._for_rows(state, rows).pack()
    cache.open_ids = ids.new_zeros(rows, model.spec.segment_length)
    cache.counts = ids.new_zeros(rows)


def _take_in(model: MemarchModel, cache: DecodingCache, ids: Tensor, valid: Tensor) -> None:
    """Append each row's valid tokens to its open segment; write the segments that overflow."""
    assert cache.open_ids is not None
    assert cache.counts is not None
    order = valid.long().argsort(dim=1, descending=True, stable=True)
    ids, remaining = ids.gather(1, order), valid.sum(dim=1)
    length = cache.open_ids.shape[1]
    column = torch.arange(length, device=ids.device)
    while bool((remaining > 0).any()):
        full = (cache.counts == length) & (remaining > 0)
        if bool(full.any()):
            _write(model, cache, full)
        taken = torch.minimum(length - cache.counts, remaining)
        source = (column - cache.counts.unsqueeze(1)).clamp(0, ids.shape[1] - 1)
        incoming = (column >= cache.counts.unsqueeze(1)) & (
            column < (cache.counts + taken).unsqueeze(1)
        )
        cache.open_ids = torch.where(incoming, ids.gather(1, source), cache.open_ids)
        cache.counts, remaining = cache.counts + taken, remaining - taken
        shift = torch.arange(ids.shape[1], device=ids.device) + taken.unsqueeze(1)
        ids = ids.gather(1, shift.clamp(max=ids.shape[1] - 1))


def _write(model: MemarchModel, cache: DecodingCache, rows: Tensor) -> None:
    """Write the full open segments of some rows; the other rows' states stay as they are."""
    assert cache.open_ids is not None
    assert cache.counts is not None
    mask = rows.unsqueeze(1).expand_as(cache.open_ids)
    cache.state = model.write(cache.open_ids, attention_mask=mask, memory=cache.state)
    cache.counts = cache.counts.masked_fill(rows, 0)


def _read(model: MemarchModel, cache: DecodingCache) -> Tensor:
    """Logits `[B, 1, V]` after the last token of each row's open segment."""
    assert cache.open_ids is not None
    assert cache.counts is not None
    assert cache.state is not None
    longest = int(cache.counts.max())
    ids = cache.open_ids[:, :longest]
    valid = torch.arange(longest, device=ids.device) < cache.counts.unsqueeze(1)
    hidden, _ = Run(model).over(
        [Cut(ids, None if bool(valid.all()) else valid)],
        model._unpack(cache.state),
        schedule="sequential",
        answers=True,
        write_last=False,
    )
    assert hidden is not None
    last = (cache.counts - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, hidden.shape[2])
    logits: Tensor = model.view.head(hidden.gather(1, last))
    return logits
