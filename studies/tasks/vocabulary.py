"""Vocabularies: symbols of generated tasks, words of stories, or the tokens of a tokenizer."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from memarch.components.errors import SpecError

PAD, UNKNOWN, END = "<pad>", "<unk>", "<eos>"
ALPHANUMERIC = string.ascii_letters + string.digits
NUM_FILLERS = 8
"""Filler of the formats without punctuation comes from tokens of its own, this many."""


def characters(count: int) -> list[str]:
    """`count` single characters: letters, digits, then letters of Unicode from U+0100 on."""
    return [*ALPHANUMERIC[:count], *(chr(0x100 + i) for i in range(count - len(ALPHANUMERIC)))]


class Vocabulary:
    """Symbols in a fixed order: generators draw indices, `ids` turns them into token ids.

    Without a tokenizer a symbol's id is its index, and symbol 0 is padding. With a pretrained
    tokenizer each symbol must be one of its tokens.
    """

    def __init__(self, symbols: Sequence[str], tokenizer: Any = None, separator: str = "") -> None:
        self.symbols = (PAD, *symbols)
        self.separator = separator
        self._index = {symbol: index for index, symbol in enumerate(self.symbols)}
        if tokenizer is None:
            self.size, self.pad_id, self._table = len(self.symbols), 0, None
            self._names = dict(enumerate(self.symbols))
            return
        self.size, self.pad_id = len(tokenizer), padding_of(tokenizer)
        known = tokenizer.get_vocab()
        missing = [symbol for symbol in symbols if symbol not in known]
        if missing:
            raise SpecError(
                f"the tokenizer of the backbone has no token {missing[0]!r}: this task needs "
                f"{len(symbols)} symbols that are single tokens; choose a smaller alphabet of "
                "letters and digits, or a backbone with random weights",
                path="task",
            )
        self._table = np.array([self.pad_id, *(known[symbol] for symbol in symbols)])
        self._names = {int(self._table[index]): symbol for symbol, index in self._index.items()}

    def index(self, symbols: Iterable[str]) -> np.ndarray:
        """Indices of symbols, for a generator to draw from."""
        return np.array([self._index[symbol] for symbol in symbols], dtype=np.int64)

    def ids(self, indices: np.ndarray) -> np.ndarray:
        """Token ids of symbols."""
        return indices if self._table is None else self._table[indices]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, without padding."""
        names = (self._names.get(int(i), "?") for i in ids if int(i) != self.pad_id)
        return self.separator.join(names)


def padding_of(tokenizer: Any) -> int:
    """The id to pad with: masked everywhere, so any id will do where the tokenizer has none."""
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if value is not None:
            return int(value)
    return 0


@lru_cache(maxsize=1 << 16)  # stories repeat their statements
def split_words(text: str) -> tuple[str, ...]:
    """`Where is Mary?` to `where`, `is`, `mary`, `?`."""
    return tuple(re.findall(r"\w+|[^\w\s]", text.lower()))


class Words:
    """Lower-case words and punctuation marks."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = (PAD, UNKNOWN, END, *words)
        self.size, self.pad_id = len(self.words), 0
        self._ids = {word: index for index, word in enumerate(self.words)}

    def facts(self, facts: Sequence[str]) -> list[list[int]]:
        """The ids of each statement."""
        return [self.question(fact) for fact in facts]

    def question(self, text: str) -> list[int]:
        """The ids of a text."""
        return [self._ids.get(word, 1) for word in split_words(text)]

    def answer(self, text: str) -> list[int]:
        """The ids of an answer and its end."""
        return [*self.question(text), 2]

    def decode(self, ids: Any) -> str:
        """Words with spaces between."""
        return " ".join(self.words[int(i)] for i in ids if int(i) != self.pad_id)


class Tokens:
    """The tokens of a pretrained backbone."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.size, self.pad_id = len(tokenizer), padding_of(tokenizer)
        self._known: dict[str, list[int]] = {}
        end = tokenizer.eos_token_id
        self._end = [] if end is None else [int(end)]

    def facts(self, facts: Sequence[str]) -> list[list[int]]:
        """The ids of each statement, a space before all but the first."""
        return [self._ids(" " * (index > 0) + fact) for index, fact in enumerate(facts)]

    def question(self, text: str) -> list[int]:
        """The ids of a question."""
        return self._ids(text)

    def answer(self, text: str) -> list[int]:
        """The ids of an answer, a space before it, and its end."""
        return [*self._ids(" " + text), *self._end]

    def decode(self, ids: Any) -> str:
        """Text, special tokens included."""
        return str(self.tokenizer.decode([int(i) for i in ids]))

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._known[text]
