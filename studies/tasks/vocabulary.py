"""The vocabulary of a generated task: its symbols in ids of its own or in those of a tokenizer."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from memarch.components.errors import SpecError

PAD = "<pad>"
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
