"""Associative retrieval: remember pairs, or follow keys that are rewritten (ARMT, 2407.04841).

    context `<k1>:<v1>,<k2>:<v2>,`    question `<k>-`    answer `<v>`

`remember` has unique keys and asks for the value of any of them; `rewrite` draws keys with
repetition and asks for the latest value. A pair is `key_size + value_size + 2` tokens: a
`segment_length` of that many puts one pair into each segment, as in the paper.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from memarch.components.errors import SpecError
from memarch.studies.tasks.base import TaskSettings, tasks
from memarch.studies.tasks.generated import (
    GeneratedTask,
    Samples,
    chance_of,
    digits,
    distinct,
    pick,
)
from memarch.studies.tasks.vocabulary import ALPHANUMERIC, Vocabulary


@tasks.register("associative_retrieval", paper="2407.04841")
class AssociativeRetrieval(GeneratedTask):
    """Pairs of keys and values; each query asks for the latest value of one key."""

    class Settings(TaskSettings):
        """Settings of `associative_retrieval`."""

        type: Literal["associative_retrieval"] = "associative_retrieval"
        mode: Literal["remember", "rewrite"] = "remember"
        """`remember`: unique keys, recall any; `rewrite`: keys repeat, recall the latest value."""
        pairs: Annotated[int, Field(ge=1)] = 5
        """Pairs in a context."""
        key_size: Annotated[int, Field(ge=1, le=10)] | None = None
        """Symbols of a key; by default 3 for remember, 1 for rewrite, as at the paper's end."""
        value_size: Annotated[int, Field(ge=1)] = 1
        """Symbols of a value."""
        symbols: Annotated[int, Field(ge=2, le=62)] = 16
        """Different symbols, shared by keys and values."""
        queries: Annotated[int, Field(ge=1)] = 1
        """Queries about each context, about different keys as long as there are so many."""

        @model_validator(mode="after")
        def _check(self) -> AssociativeRetrieval.Settings:
            num_keys = self.symbols**self.key_length
            if self.mode == "remember" and num_keys < self.pairs:
                raise SpecError(
                    f"{self.pairs} pairs to remember need as many different keys, but keys of "
                    f"{self.key_length} out of {self.symbols} symbols are only {num_keys}: fewer "
                    "pairs, a larger key_size, more symbols, or `mode: rewrite`",
                    path="pairs",
                )
            if num_keys > 2**62:
                raise SpecError("makes more keys than can be drawn", path="key_size")
            if self.queries > self.pairs:
                raise SpecError(
                    f"must be at most pairs, {self.pairs}, got {self.queries}", path="queries"
                )
            return self

        @property
        def key_length(self) -> int:
            """Symbols of a key."""
            return self.key_size or (3 if self.mode == "remember" else 1)

    def __init__(self, settings: Settings, tokenizer: Any = None) -> None:
        alphabet = ALPHANUMERIC[-10:] + ALPHANUMERIC[:-10]  # digits first, as the paper's symbols
        vocabulary = Vocabulary([*":,-", *alphabet[: settings.symbols]], tokenizer)
        super().__init__(settings, vocabulary, float(settings.symbols) ** -settings.value_size)
        self._symbols = vocabulary.index(alphabet[: settings.symbols])
        self._marks = {mark: vocabulary.index(mark)[0] for mark in ":,-"}

    def generate(self, rng: np.random.Generator, size: int) -> Samples:
        """Draw `size` samples."""
        s = self.settings
        num_keys = s.symbols**s.key_length
        if s.mode == "remember":
            numbers = distinct(rng, size, s.pairs, num_keys)
            asked = distinct(rng, size, s.queries, s.pairs)  # [N, R]
        else:
            numbers = rng.integers(0, num_keys, (size, s.pairs))
            asked = choose(rng, latest(numbers), s.queries)
        keys = self._symbols[digits(numbers, s.symbols, s.key_length)]  # [N, P, key]
        values = self._symbols[rng.integers(0, s.symbols, (size, s.pairs, s.value_size))]
        answer = pick(values, asked)
        units = self._join(keys, ":", values, ",")
        queries = self._join(pick(keys, asked), "-", answer)
        tags = {
            "distance": (s.pairs - 1 - asked) * units.shape[-1],
            "age": s.pairs - 1 - asked,
            "facts": np.full(asked.shape, s.pairs),
        }
        ids = self.vocabulary.ids
        contexts = units.reshape(size, -1)
        start = s.key_length + 1
        return Samples(ids(contexts), ids(queries), start, chance_of(values, answer), tags)

    def _join(self, *parts: str | np.ndarray) -> np.ndarray:
        """Punctuation and arrays `[N, P, n]` side by side."""
        shape = next(part.shape[:2] for part in parts if isinstance(part, np.ndarray))
        arrays = [
            np.full((*shape, 1), self._marks[part]) if isinstance(part, str) else part
            for part in parts
        ]
        return np.concatenate(arrays, axis=-1)


def latest(numbers: np.ndarray) -> np.ndarray:
    """`[N, P]` bool: no later pair of the sample has the same key."""
    order = np.argsort(numbers, axis=1, kind="stable")
    ranked = np.take_along_axis(numbers, order, axis=1)
    last = np.ones(numbers.shape, dtype=bool)
    last[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    found = np.empty(numbers.shape, dtype=bool)
    np.put_along_axis(found, order, last, axis=1)
    return found


def choose(rng: np.random.Generator, allowed: np.ndarray, count: int) -> np.ndarray:
    """`[N, count]` of each row's allowed columns, different ones as long as there are enough."""
    scores = np.where(allowed, rng.random(allowed.shape), 2.0)
    order = np.argsort(scores, axis=1)[:, :count]
    enough = np.arange(count) < allowed.sum(axis=1)[:, None]
    return np.where(enough, order, order[:, :1])
