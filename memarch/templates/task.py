"""my_task: read a row of symbols, then say which one came first.

A sample is a context, which the model reads once, and queries about it; a query is a segment of its
own, so the answer must have gone through the memory:

    context  [s_1 s_2 ... s_n]      query  [? s_1]      scored: s_1

Use it in a study with

    plugins: [my_task.py]
    task: {type: my_task, length: 32}

Test it with `pytest my_task.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Annotated, Any, Literal

import numpy as np
from datasets import Dataset
from pydantic import Field

from memarch.studies.tasks.base import Split, Task, TaskSettings, stream, tasks
from memarch.studies.tasks.collate import Collator

PAD, ASK = 0, 1
FIRST_SYMBOL = 2


@tasks.register("my_task")
class MyTask(Task):
    """Which symbol came first?"""

    class Settings(TaskSettings):  # the keys that the YAML may give
        type: Literal["my_task"]
        length: Annotated[int, Field(ge=1)] = 32
        """Symbols in the context."""
        symbols: Annotated[int, Field(ge=2)] = 16
        """Different symbols."""

    pad_id = PAD

    def __init__(self, settings: Settings, tokenizer: Any = None) -> None:
        self.settings = settings
        self.vocab_size = FIRST_SYMBOL + settings.symbols

    def rows(self, rng: np.random.Generator, size: int) -> dict[str, list[Any]]:
        """`size` samples, column by column; base.py says what each column is."""
        n = self.settings.length
        contexts = rng.integers(FIRST_SYMBOL, self.vocab_size, (size, n))
        first = contexts[:, 0]
        return {
            "context_ids": contexts.tolist(),
            "query_ids": [[[ASK, symbol]] for symbol in first.tolist()],
            "answer_start": [[1]] * size,
            "guess_seen": [[p] for p in (contexts == first[:, None]).mean(1).tolist()],
            "tags": [{"distance": [n - 1], "age": [n - 1], "facts": [n]}] * size,
        }

    def dataset(self, split: Split, size: int | None, seed: int) -> Dataset:
        """The same samples for the same split, size and seed."""
        return Dataset.from_dict(self.rows(stream(seed, split, 0, purpose=1), size or 512))

    def batches(
        self, split: Split, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Endless batches; each depends on its number alone, so a stopped run can go on."""
        collate = Collator(self.pad_id)
        for index in count(start):
            columns = self.rows(stream(seed, split, index), batch_size)
            names = list(columns)
            values = zip(*columns.values(), strict=True)
            yield collate([dict(zip(names, row, strict=True)) for row in values])

    def floors(self, dataset: Dataset) -> dict[str, float]:
        """What needs no memory: a guess among all symbols, and among those in the context."""
        return {
            "floor/blind": 1 / self.settings.symbols,
            "floor/guess_seen": float(np.mean([row[0] for row in dataset["guess_seen"]])),
        }

    def decode(self, ids: Any) -> str:
        """Token ids as text that a person can read."""
        names = {PAD: ".", ASK: "?"}
        return " ".join(names.get(int(i), str(int(i) - FIRST_SYMBOL)) for i in ids)


def test_the_answer_is_the_first_symbol_of_the_context() -> None:
    task = MyTask(MyTask.Settings(type="my_task", length=5))
    for row in task.dataset("train", 8, seed=0):
        assert row["query_ids"][0][row["answer_start"][0] :] == row["context_ids"][:1]


def test_a_batch_depends_on_its_number_alone() -> None:
    task = MyTask(MyTask.Settings(type="my_task"))
    batches = task.batches("train", 4, seed=1)
    next(batches)
    again = next(task.batches("train", 4, seed=1, start=1))
    assert again["context_ids"].equal(next(batches)["context_ids"])
