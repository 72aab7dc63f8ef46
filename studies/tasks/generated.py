"""Tasks whose samples are drawn at random: blocks of numpy arrays, one random stream per block."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from memarch.studies.tasks.base import Split, Task, stream
from memarch.studies.tasks.collate import tensors
from memarch.studies.tasks.vocabulary import Vocabulary

if TYPE_CHECKING:
    import datasets

BLOCK = 1024
"""Samples per random stream of a data set: the first n do not depend on how many are asked for."""

DEFAULT_SIZE = 1000
"""Samples of a data set whose size is not given."""


@dataclass(frozen=True)
class Samples:
    """A block of samples of equal shape: N samples, R queries each."""

    contexts: np.ndarray
    """[N, C] token ids."""
    queries: np.ndarray
    """[N, R, Q] token ids: question, then answer."""
    answer_start: int
    """Where the answer starts in every query."""
    guess_seen: np.ndarray
    """[N, R], the chance that a guess among the sample's values is right."""
    tags: dict[str, np.ndarray]
    """[N, R] each."""

    def batch(self) -> dict[str, Any]:
        """The model's arguments."""
        queries = self.queries.reshape(-1, self.queries.shape[-1])
        return tensors(
            (self.contexts, np.ones(self.contexts.shape, dtype=bool)),
            queries,
            np.ones(queries.shape, dtype=bool),
            np.full(len(queries), self.answer_start),
        )

    def columns(self, size: int) -> dict[str, list[Any]]:
        """The columns of a data set's rows, for the first `size` samples."""
        queries = self.queries[:size]
        tags = zip(*(values[:size].tolist() for values in self.tags.values()), strict=True)
        return {
            "context_ids": self.contexts[:size].tolist(),
            "query_ids": queries.tolist(),
            "answer_start": [[self.answer_start] * queries.shape[1]] * len(queries),
            "guess_seen": self.guess_seen[:size].tolist(),
            "tags": [dict(zip(self.tags, row, strict=True)) for row in tags],
        }


class GeneratedTask(Task):
    """A task that `generate` draws. A subclass gives its constructor's findings to this one's."""

    endless: ClassVar[bool] = True

    def __init__(self, settings: Any, vocabulary: Vocabulary, blind: float) -> None:
        self.settings = settings
        self.vocabulary = vocabulary
        self.blind = blind  # the chance that a guess without any input is right
        self.vocab_size = vocabulary.size
        self.pad_id = vocabulary.pad_id

    @abstractmethod
    def generate(self, rng: np.random.Generator, size: int) -> Samples:
        """`size` samples, drawn from `rng` alone."""

    def dataset(self, split: Split, size: int | None, seed: int) -> datasets.Dataset:
        from datasets import Dataset

        size = DEFAULT_SIZE if size is None else size
        columns: dict[str, list[Any]] = {}
        for index in range(-(-size // BLOCK)):
            block = self.generate(stream(seed, split, index, purpose=1), BLOCK)
            for name, values in block.columns(size - index * BLOCK).items():
                columns.setdefault(name, []).extend(values)
        return Dataset.from_dict(columns)

    def batches(
        self, split: Split, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        for index in count(start):
            yield self.generate(stream(seed, split, index), batch_size).batch()

    def floors(self, dataset: datasets.Dataset) -> dict[str, float]:
        chances = [chance for row in dataset["guess_seen"] for chance in row]
        return {"floor/blind": self.blind, "floor/guess_seen": float(np.mean(chances))}

    def decode(self, ids: Any) -> str:
        return self.vocabulary.decode(ids)


def distinct(rng: np.random.Generator, rows: int, size: int, space: int) -> np.ndarray:
    """`[rows, size]` integers below `space`, distinct within a row, in random order."""
    if space <= 4 * size:
        order = rng.permuted(np.broadcast_to(np.arange(space), (rows, space)), axis=1)
        return order[:, :size]
    drawn = rng.integers(0, space, (rows, size))
    while True:
        order = np.argsort(drawn, axis=1, kind="stable")
        ranked = np.take_along_axis(drawn, order, axis=1)
        row, column = np.nonzero(ranked[:, 1:] == ranked[:, :-1])
        if not len(row):
            return drawn
        drawn[row, order[row, column + 1]] = rng.integers(0, space, len(row))


def digits(numbers: np.ndarray, base: int, length: int) -> np.ndarray:
    """`[...]` numbers to `[..., length]` digits."""
    return numbers[..., None] // base ** np.arange(length)[::-1] % base


def place(units: np.ndarray, filler: np.ndarray, gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Facts among filler: `gaps[n, p]` filler tokens stand before fact p of sample n.

    units `[N, P, U]`, filler `[N, F]`, gaps `[N, P]` ascending in 0...F
    -> the tokens `[N, P*U + F]` and the index after each fact's last token `[N, P]`
    """
    rows, facts, width = units.shape
    tokens = np.empty((rows, facts * width + filler.shape[1]), dtype=np.int64)
    starts = gaps + np.arange(facts) * width
    where = (starts[:, :, None] + np.arange(width)).reshape(rows, -1)
    free = np.ones(tokens.shape, dtype=bool)
    np.put_along_axis(free, where, False, axis=1)
    tokens[free] = filler.ravel()
    np.put_along_axis(tokens, where, units.reshape(rows, -1), axis=1)
    return tokens, starts + width


def spread(rng: np.random.Generator, rows: int, facts: int, filler: int) -> np.ndarray:
    """Gaps for `place` that spread the filler evenly at random before, between and after facts."""
    return np.sort(rng.integers(0, filler + 1, (rows, facts)), axis=1)


def pick(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """`values[n, chosen[n, r]]`: `[N, P, ...]` and `[N, R]` to `[N, R, ...]`."""
    return values[np.arange(len(values))[:, None], chosen]


def chance_of(values: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Share of a sample's values `[N, P, V]` that equal the answer: `[N, R, V]` to `[N, R]`."""
    same = (values[:, None] == answers[:, :, None]).all(axis=-1)
    return same.mean(axis=-1)
