"""Key-value retrieval: read pairs, then recall the value of a key (GradMem, arXiv 2603.13875).

`text` is the paper's format, one token a character, keys unique, values free to repeat:

    context `!k:v!!k:v!|`    question `?!k:`    answer `v!|`

`compact` has nothing but the symbols, which small models learn in a fraction of the time:

    context `kvkv`    question `k`    answer `v`

Exact match asks for the value; `!` and `|` are trained on and do not count.
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
    place,
    spread,
)
from memarch.studies.tasks.vocabulary import ALPHANUMERIC, NUM_FILLERS, Vocabulary, characters

SPECIALS = ("<bos>", "<eos>", "<unk>")


@tasks.register("kv_retrieval", paper="2603.13875")
class KeyValueRetrieval(GeneratedTask):
    """Pairs of keys and values; each query asks for the value of one key."""

    class Settings(TaskSettings):
        """Settings of `kv_retrieval`."""

        type: Literal["kv_retrieval"] = "kv_retrieval"
        pairs: Annotated[int, Field(ge=1)] = 4
        """Pairs in a context."""
        format: Literal["text", "compact"] = "text"
        """`text` is `!k:v!` of the paper, `compact` only the symbols of keys and values."""
        key_length: Annotated[int, Field(ge=1, le=10)] | None = None
        """Symbols of a key; by default 2 in text, 1 in compact."""
        value_length: Annotated[int, Field(ge=1)] | None = None
        """Symbols of a value; by default 2 in text, 1 in compact."""
        alphabet: Annotated[int, Field(ge=2)] | Annotated[str, Field(min_length=2)] | None = None
        """How many symbols, or the symbols themselves; by default the 62 letters and digits in
        text, 16 in compact."""
        separate: bool | None = None
        """Keys and values have symbols of their own, `alphabet` each: compact only, there the
        default."""
        filler: Annotated[int, Field(ge=0)] = 0
        """Random tokens that stand between pairs and tell nothing."""
        queries: Annotated[int, Field(ge=1)] = 1
        """Queries about each context, about different keys."""

        @model_validator(mode="after")
        def _check(self) -> KeyValueRetrieval.Settings:
            symbols, num_keys = len(self.symbols), len(self.symbols) ** self.lengths[0]
            if len(set(self.symbols)) != symbols:
                raise SpecError(f"{self.alphabet!r} holds a character twice", path="alphabet")
            if self.separate and self.format == "text":
                raise SpecError("separate symbols need `format: compact`", path="separate")
            if self.separate and isinstance(self.alphabet, str):
                raise SpecError(
                    "an alphabet in letters is shared by keys and values: say `separate: false`, "
                    f"or `alphabet: {symbols}`",
                    path="separate",
                )
            if self.format == "text" and set(self.symbols) & set("!?:|"):
                raise SpecError("must not hold ! ? : |, which text uses", path="alphabet")
            if num_keys < self.pairs:
                raise SpecError(
                    f"{self.pairs} pairs need as many different keys, but keys of "
                    f"{self.lengths[0]} out of {symbols} symbols are only {num_keys}: fewer pairs, "
                    "a larger key_length or a larger alphabet",
                    path="pairs",
                )
            if num_keys > 2**62:
                raise SpecError("makes more keys than can be drawn", path="key_length")
            if self.queries > self.pairs:
                raise SpecError(
                    f"must be at most pairs, {self.pairs}, got {self.queries}", path="queries"
                )
            return self

        @property
        def symbols(self) -> list[str]:
            """The alphabet."""
            if isinstance(self.alphabet, str):
                return list(self.alphabet)
            default = len(ALPHANUMERIC) if self.format == "text" else 16
            return characters(self.alphabet or default)

        @property
        def lengths(self) -> tuple[int, int]:
            """Symbols of a key and of a value."""
            default = 2 if self.format == "text" else 1
            return self.key_length or default, self.value_length or default

        @property
        def shared(self) -> bool:
            """Whether keys and values are drawn from the same symbols."""
            separate = self.separate is None and not isinstance(self.alphabet, str)
            return self.format == "text" or not (self.separate or separate)

    def __init__(self, settings: Settings, tokenizer: Any = None) -> None:
        alphabet = settings.symbols
        values = alphabet
        if settings.format == "text":
            symbols = [*SPECIALS, *"!?:|", *alphabet]
            fillers = alphabet
        elif settings.shared:
            every = characters(len(alphabet) + NUM_FILLERS + len(ALPHANUMERIC))
            fillers = [c for c in every if c not in alphabet][:NUM_FILLERS]
            symbols = [*alphabet, *fillers]
        else:
            symbols = characters(2 * len(alphabet) + NUM_FILLERS)
            values = symbols[len(alphabet) : 2 * len(alphabet)]
            fillers = symbols[2 * len(alphabet) :]
        blind = float(len(values)) ** -settings.lengths[1]
        super().__init__(settings, Vocabulary(symbols, tokenizer), blind)
        self._keys = self.vocabulary.index(alphabet)
        self._values = self.vocabulary.index(values)
        self._fillers = self.vocabulary.index(fillers)
        if settings.format == "text":
            self._marks = {mark: self.vocabulary.index(mark)[0] for mark in "!?:|"}
            self.ignored_ids = frozenset(self.vocabulary.ids(self.vocabulary.index("!|")).tolist())

    def generate(self, rng: np.random.Generator, size: int) -> Samples:
        """Draw `size` samples."""
        s = self.settings
        key_length, value_length = s.lengths
        numbers = distinct(rng, size, s.pairs, len(self._keys) ** key_length)
        keys = self._keys[digits(numbers, len(self._keys), key_length)]  # [N, P, key]
        values = self._values[rng.integers(0, len(self._values), (size, s.pairs, value_length))]
        filler = self._fillers[rng.integers(0, len(self._fillers), (size, s.filler))]
        asked = distinct(rng, size, s.queries, s.pairs)  # [N, R]
        question, answer = pick(keys, asked), pick(values, asked)
        guess_seen = chance_of(values, answer)
        if s.format == "text":
            units = self._join("!", keys, ":", values, "!")
            queries = self._join("?!", question, ":", answer, "!|")
            start = key_length + 3
        else:
            units = np.concatenate([keys, values], axis=-1)
            queries = np.concatenate([question, answer], axis=-1)
            start = key_length
        contexts, ends = place(units, filler, spread(rng, size, s.pairs, s.filler))
        if s.format == "text":
            bar = np.full((size, 1), self._marks["|"])
            contexts = np.concatenate([contexts, bar], axis=1)
        tags = {
            "distance": contexts.shape[1] - pick(ends, asked),
            "age": s.pairs - 1 - asked,
            "facts": np.full(asked.shape, s.pairs),
        }
        ids = self.vocabulary.ids
        return Samples(ids(contexts), ids(queries), start, guess_seen, tags)

    def _join(self, *parts: str | np.ndarray) -> np.ndarray:
        """Punctuation and arrays `[N, P, n]` side by side."""
        shape = next(part.shape[:2] for part in parts if isinstance(part, np.ndarray))
        arrays = [
            np.broadcast_to([self._marks[mark] for mark in part], (*shape, len(part)))
            if isinstance(part, str)
            else part
            for part in parts
        ]
        return np.concatenate(arrays, axis=-1)
