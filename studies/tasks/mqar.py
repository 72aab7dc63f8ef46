"""Multi-query associative recall (zoology, arXiv 2312.04927), each query in its own segment.

    context `k v . . k v . k v . .`    question `k`    answer `v`

Keys and values have half of the vocabulary each and are unique in a context. Zoology asks further
down the same sequence, after gaps with a power law; here a query is a segment of its own, so the
gaps lie in the context: a pair g slots before its end is drawn with probability ~ (g + 1)^(a - 1),
and the slots between hold filler.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from memarch.components.errors import SpecError
from memarch.studies.tasks.base import TaskSettings, tasks
from memarch.studies.tasks.generated import GeneratedTask, Samples, distinct, pick, place
from memarch.studies.tasks.vocabulary import NUM_FILLERS, Vocabulary


@tasks.register("mqar", paper="2312.04927")
class MultiQueryRecall(GeneratedTask):
    """Pairs at power-law distances from the end; each query asks for the value of one key."""

    class Settings(TaskSettings):
        """Settings of `mqar`."""

        type: Literal["mqar"] = "mqar"
        vocab: Annotated[int, Field(ge=4)] = 256
        """Symbols: half of them are keys, half values. Zoology uses 8192."""
        pairs: Annotated[int, Field(ge=1)] = 8
        """Pairs in a context."""
        queries: Annotated[int, Field(ge=1)] | None = None
        """Queries about each context, about different keys; by default every key is asked for."""
        length: Annotated[int, Field(ge=2)] | None = None
        """Tokens of a context; by default twice as many as the pairs take."""
        power: Annotated[float, Field(gt=0)] = 0.01
        """a of the power law: near 0 pairs crowd at the end of the context, 1 is even."""

        @model_validator(mode="after")
        def _check(self) -> MultiQueryRecall.Settings:
            if self.vocab // 2 < self.pairs:
                raise SpecError(
                    f"{self.pairs} pairs need at least {2 * self.pairs}, got {self.vocab}",
                    path="vocab",
                )
            if self.num_tokens < 2 * self.pairs:
                raise SpecError(
                    f"{self.pairs} pairs need at least {2 * self.pairs}, got {self.num_tokens}",
                    path="length",
                )
            if self.queries is not None and self.queries > self.pairs:
                raise SpecError(
                    f"must be at most pairs, {self.pairs}, got {self.queries}", path="queries"
                )
            return self

        @property
        def num_tokens(self) -> int:
            """Tokens of a context."""
            return self.length or 4 * self.pairs

    def __init__(self, settings: Settings, tokenizer: Any = None) -> None:
        half = settings.vocab // 2
        symbols = [f"k{i}" for i in range(half)] + [f"v{i}" for i in range(half)]
        fillers = [f".{i}" for i in range(NUM_FILLERS)]
        vocabulary = Vocabulary([*symbols, *fillers], tokenizer, separator=" ")
        super().__init__(settings, vocabulary, 1 / half)
        self._keys = vocabulary.index(symbols[:half])
        self._values = vocabulary.index(symbols[half:])
        self._fillers = vocabulary.index(fillers)

    def generate(self, rng: np.random.Generator, size: int) -> Samples:
        """Draw `size` samples."""
        s = self.settings
        keys = self._keys[distinct(rng, size, s.pairs, len(self._keys))]
        values = self._values[distinct(rng, size, s.pairs, len(self._values))]
        asked = distinct(rng, size, s.queries or s.pairs, s.pairs)  # [N, R]
        slots = s.num_tokens // 2
        starts = slots - 1 - power_law(rng, size, s.pairs, slots, s.power)[:, ::-1]
        gaps = 2 * (starts - np.arange(s.pairs))
        filler = self._fillers[
            rng.integers(0, len(self._fillers), (size, s.num_tokens - 2 * s.pairs))
        ]
        contexts, ends = place(np.stack([keys, values], axis=-1), filler, gaps)
        queries = np.stack([pick(keys, asked), pick(values, asked)], axis=-1)
        tags = {
            "distance": s.num_tokens - pick(ends, asked),
            "age": s.pairs - 1 - asked,
            "facts": np.full(asked.shape, s.pairs),
        }
        guess_seen = np.full(asked.shape, 1 / s.pairs)  # values are unique
        ids = self.vocabulary.ids
        return Samples(ids(contexts), ids(queries), 1, guess_seen, tags)


def power_law(
    rng: np.random.Generator, rows: int, size: int, slots: int, power: float
) -> np.ndarray:
    """`[rows, size]` distinct slots, ascending, slot g with weight (g + 1)^(power - 1).

    Adding Gumbel noise to log weights and keeping the largest draws without replacement.
    """
    scores = (power - 1) * np.log(np.arange(1, slots + 1)) + rng.gumbel(size=(rows, slots))
    return np.sort(np.argsort(-scores, axis=1)[:, :size], axis=1)
