"""Scores of a model on a data set: exact match of answers, or the loss of a language model.

Answers are scored in two ways that have names of their own. `exact_match` is teacher-forced: every
token of the answer is the model's first choice given the right tokens before it.
`exact_match_generated` lets the model go on from its own tokens: each context is written once, the
state is copied for its queries, and the answers are generated from it. Slices by tag come in bins
of powers of two: `exact_match/distance/16-31`.

Shapes: B samples, R queries a sample, Q longest query, K scored tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memarch.studies.cluster.heartbeat import beat
from memarch.studies.tasks.base import Task
from memarch.studies.tasks.collate import NOT_SCORED, Collator, pad

if TYPE_CHECKING:
    import datasets

Row = Mapping[str, Any]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    dataset: datasets.Dataset,
    *,
    batch_size: int,
    generate: bool = False,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """The task's metrics, slices by tag, and the floors. The caller chooses eval mode.

    `generate` adds `exact_match_generated`; language modelling ignores it.
    """
    place = torch.device(device) if device is not None else next(model.parameters()).device
    if "exact_match" in task.metrics:
        metrics = _answers(model, task, dataset, batch_size, generate, place)
    else:
        metrics = _language(model, task, dataset, batch_size, place)
    return metrics | task.floors(dataset)


def _language(
    model: nn.Module, task: Task, dataset: datasets.Dataset, batch_size: int, device: torch.device
) -> dict[str, float]:
    """Mean loss per token in nats, perplexity, and bits per byte of text."""
    collate = Collator(task.pad_id)
    nats, tokens, num_bytes = 0.0, 0, 0
    for rows in _batches(dataset, batch_size):
        losses, _, _, _ = _scored(model, collate(rows), device)
        nats += float(losses.double().sum())
        tokens += len(losses)
        num_bytes += sum(row["num_bytes"] for row in rows)
    loss = nats / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nats / math.log(2) / num_bytes,
    }


def _answers(
    model: nn.Module,
    task: Task,
    dataset: datasets.Dataset,
    batch_size: int,
    generate: bool,
    device: torch.device,
) -> dict[str, float]:
    collate = Collator(task.pad_id)
    ignored = torch.tensor(sorted(task.ignored_ids), dtype=torch.long, device=device)
    nats, tokens, counted_tokens, right_tokens = 0.0, 0, 0, 0
    exact: dict[str, list[np.ndarray]] = {"exact_match": []}
    tags: list[Mapping[str, Sequence[int]]] = []
    for rows in _batches(dataset, batch_size):
        batch = collate(rows)
        losses, predicted, targets, query = _scored(model, batch, device)
        counted = ~torch.isin(targets, ignored)
        wrong = counted & (predicted != targets)
        wrong_by_query = torch.bincount(query[wrong], minlength=len(batch["input_ids"]))
        exact["exact_match"].append((wrong_by_query == 0).cpu().numpy())
        nats += float(losses.double().sum())
        tokens += len(losses)
        counted_tokens += int(counted.sum())
        right_tokens += int((counted & ~wrong).sum())
        tags.extend(row.get("tags", {}) for row in rows)
        if generate:
            match = _generated(model, task, rows, batch, device)
            exact.setdefault("exact_match_generated", []).append(match)
    scores = {name: np.concatenate(parts) for name, parts in exact.items()}
    metrics = {name: float(score.mean()) for name, score in scores.items()}
    metrics["token_accuracy"] = right_tokens / max(counted_tokens, 1)
    metrics["loss"] = nats / max(tokens, 1)
    for tag in tags[0]:
        values = np.array([value for row in tags for value in row[tag]])
        metrics |= _slices(f"exact_match/{tag}", scores["exact_match"], values)
    return metrics


def _scored(
    model: nn.Module, batch: Mapping[str, Tensor], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every scored token: loss, the choice of the model, the token, its row in the batch. [K]"""
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    logits = model(**batch).logits  # [K, V]
    targets = batch["labels"][:, 1:]  # the model shifts its labels: the first is never scored
    scored = targets != NOT_SCORED
    losses = F.cross_entropy(logits.float(), targets[scored], reduction="none")
    return losses, logits.argmax(dim=-1), targets[scored], scored.nonzero()[:, 0]


def _generated(
    model: Any,
    task: Task,
    rows: Sequence[Row],
    batch: Mapping[str, Tensor],
    device: torch.device,
) -> np.ndarray:
    """Whether the generated answer is the right one, query by query: `[B * R]`."""
    queries = [
        (list(ids[:start]), list(ids[start:]))
        for row in rows
        for ids, start in zip(row["query_ids"], row["answer_start"], strict=True)
    ]
    state = model.write(
        batch["context_ids"].to(device), attention_mask=batch["context_mask"].to(device)
    )
    state = state.repeat(len(queries) // len(rows))
    # Padded on the left, so that every prompt ends where its answer begins.
    reversed_prompts, reversed_mask = pad([prompt[::-1] for prompt, _ in queries], task.pad_id)
    prompts = torch.from_numpy(reversed_prompts[:, ::-1].copy()).to(device)
    mask = torch.from_numpy(reversed_mask[:, ::-1].astype(np.int64)).to(device)
    longest = max(len(answer) for _, answer in queries)
    output = model.generate(
        prompts,
        attention_mask=mask,
        memory=state,
        max_new_tokens=longest,
        do_sample=False,
        pad_token_id=task.pad_id,
        eos_token_id=task.vocab_size,  # an id that never occurs: answers end by their length
    )
    new = output[:, prompts.shape[1] :].tolist()
    return np.array(
        [
            len(found) >= len(answer)
            and all(
                token == right
                for token, right in zip(found, answer, strict=False)
                if right not in task.ignored_ids
            )
            for found, (_, answer) in zip(new, queries, strict=True)
        ]
    )


def _slices(name: str, score: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Mean score in bins 0, 1, 2-3, 4-7, 8-15, ... of the values."""
    bins = np.ceil(np.log2(np.maximum(values, 0) + 1)).astype(int)  # 0, 1, 2 2, 3 3 3 3, ...
    found = {}
    for number in np.unique(bins).tolist():
        low, high = (2**number) // 2, max(2**number - 1, 0)
        label = str(low) if low == high else f"{low}-{high}"
        found[f"{name}/{label}"] = float(score[bins == number].mean())
    return found


def _batches(dataset: datasets.Dataset, batch_size: int) -> Iterator[list[Row]]:
    for start in range(0, len(dataset), batch_size):
        beat()
        columns = dataset[start : start + batch_size]
        values = zip(*columns.values(), strict=True)
        yield [dict(zip(columns, row, strict=True)) for row in values]
