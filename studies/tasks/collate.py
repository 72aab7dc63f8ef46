"""Rows or arrays of samples become the padded tensors that a memarch model takes.

Queries of a batch are flattened: rows `b * R ... b * R + R - 1` of `input_ids` ask about context b.
Everything is padded on the right; masks are 1 for real tokens; labels are -100 where nothing is
scored, and stand where their token stands (the model shifts them, as transformers do).

Shapes: B samples, R queries a sample, C longest context, Q longest query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NOT_SCORED = -100


class Collator:
    """`Collator(pad_id)(rows) -> {context_ids, context_mask, input_ids, attention_mask, labels}`.

    Language modelling has no contexts: `context_ids` and `context_mask` are then absent.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        counts = {len(row["query_ids"]) for row in rows}
        if len(counts) != 1:
            raise ValueError(f"samples of one batch must have equally many queries, got {counts}")
        queries, query_mask = pad([q for row in rows for q in row["query_ids"]], self.pad_id)
        starts = np.array([start for row in rows for start in row["answer_start"]])
        contexts: tuple[np.ndarray, np.ndarray] | None = None
        if any(len(row["context_ids"]) for row in rows):
            contexts = pad([row["context_ids"] for row in rows], self.pad_id)
        return tensors(contexts, queries, query_mask, starts)


def pad(lists: Sequence[Sequence[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists of ids to `[N, longest]` ids, padded on the right, and the mask of the real ones."""
    lengths = np.fromiter((len(ids) for ids in lists), dtype=np.int64, count=len(lists))
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(part, dtype=np.int64) for part in lists])
    return ids, mask


def tensors(
    contexts: tuple[np.ndarray, np.ndarray] | None,
    queries: np.ndarray,
    query_mask: np.ndarray,
    answer_start: np.ndarray,
) -> dict[str, Any]:
    """Padded arrays `[B, C]` with mask, `[B*R, Q]` with mask, `[B*R]` to the model's arguments."""
    import torch

    scored = query_mask & (np.arange(queries.shape[1]) >= answer_start[:, None])
    arrays = {
        "input_ids": queries,
        "attention_mask": query_mask.astype(np.int64),
        "labels": np.where(scored, queries, NOT_SCORED),
    }
    if contexts is not None:
        arrays["context_ids"] = contexts[0]
        arrays["context_mask"] = contexts[1].astype(np.int64)
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
