"""Language modelling on text: loss, perplexity and bits per byte, no context and no question.

A sample is `length` consecutive tokens; all but its first are scored. Samples of validation and
test overlap by that one token, so that every token of the text but the first is scored once.
Training draws its samples from anywhere in the text. Tokens are bytes unless a tokenizer is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from memarch.components.errors import SpecError
from memarch.studies.tasks.base import SPLITS, Split, Task, TaskSettings, stream, tasks
from memarch.studies.tasks.collate import tensors
from memarch.studies.tasks.files import DataPath, is_hub, load_hub, read_bytes, text_files
from memarch.studies.tasks.vocabulary import padding_of

if TYPE_CHECKING:
    import datasets

NUM_BYTES = 256
CHUNK = 1 << 17
"""Characters that a tokenizer sees at once."""

Paths = DataPath | Annotated[list[DataPath], Field(min_length=1)]


class GivenSplits(BaseModel):
    """Data of each split; validation and test are cut from the end of train where not given."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    train: Paths
    """What to train on."""
    validation: Paths | None = None
    """What to select on."""
    test: Paths | None = None
    """What to report on."""


@dataclass(frozen=True)
class Corpus:
    """The tokens of a split."""

    ids: np.ndarray
    """[N] token ids."""
    ends: np.ndarray | None
    """[N] bytes of text up to the end of each token; None where every token is one byte."""

    def bytes_between(self, first: int, last: int) -> int:
        """Bytes of the tokens after `first`, up to and with `last`."""
        return last - first if self.ends is None else int(self.ends[last] - self.ends[first])


@tasks.register("text")
class Text(Task):
    """Predict the next token."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "bits_per_byte")
    primary: ClassVar[str] = "loss"
    maximize: ClassVar[bool] = False

    class Settings(TaskSettings):
        """Settings of `text`."""

        type: Literal["text"] = "text"
        data: Paths | GivenSplits
        """A file (also .gz), a folder of .txt and .md files, a glob pattern, a list of these,
        `hf://owner/name`, or a map with train, validation and test."""
        length: Annotated[int, Field(ge=2)] = 256
        """Tokens of a sample."""
        validation_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
        """Share of the text that is cut off for validation, where no validation data is given."""
        test_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
        """Share of the text, at its very end, that is cut off for the test split."""
        column: str = "text"
        """Column that holds the text, in a data set on the hub."""

        @model_validator(mode="after")
        def _files_are_there(self) -> Text.Settings:
            for name in [name for names in self.sources.values() for name in names]:
                if not is_hub(name) and not text_files(name):
                    raise SpecError(f"no .txt or .md file in {name}", path="data")
            return self

        @property
        def sources(self) -> dict[Split, list[str]]:
            """Names of data, for the splits that have some of their own."""
            data = self.data if isinstance(self.data, GivenSplits) else GivenSplits(train=self.data)
            given = {split: getattr(data, split) for split in SPLITS}
            return {s: [d] if isinstance(d, str) else d for s, d in given.items() if d is not None}

    def __init__(self, settings: Settings, tokenizer: Any = None) -> None:
        self.settings, self.tokenizer = settings, tokenizer
        self.vocab_size = NUM_BYTES + 1 if tokenizer is None else len(tokenizer)
        self.pad_id = NUM_BYTES if tokenizer is None else padding_of(tokenizer)

    def corpus(self, split: Split) -> Corpus:
        """The tokens of a split, read and tokenised once a process."""
        s = self.settings
        files = tuple((split, tuple(names)) for split, names in s.sources.items())
        name = None if self.tokenizer is None else self.tokenizer.name_or_path or self.tokenizer
        key = (files, _modified(s), s.validation_share, s.test_share, s.column, name, split)
        if key not in _CORPORA:
            while len(_CORPORA) >= CORPORA_KEPT:
                _CORPORA.pop(next(iter(_CORPORA)))
            _CORPORA[key] = tokenise(split_bytes(s, split), self.tokenizer)
        corpus = _CORPORA[key]
        if len(corpus.ids) < s.length:
            raise SpecError(
                f"the {split} split has {len(corpus.ids)} tokens, too few for samples of "
                f"{s.length}: more text, a smaller length or a larger {split}_share",
                path="task.length",
            )
        return corpus

    def dataset(self, split: Split, size: int | None, seed: int) -> datasets.Dataset:
        from datasets import Dataset

        corpus, length = self.corpus(split), self.settings.length
        numbers = np.arange((len(corpus.ids) - 1) // (length - 1))
        if size is not None and size < len(numbers):
            numbers = np.sort(stream(seed, split, 0, purpose=2).permutation(numbers)[:size])
        starts = (numbers * (length - 1)).tolist()
        return Dataset.from_dict(
            {
                "context_ids": [[] for _ in starts],
                "query_ids": [[corpus.ids[start : start + length].tolist()] for start in starts],
                "answer_start": [[1]] * len(starts),
                "num_bytes": [corpus.bytes_between(at, at + length - 1) for at in starts],
            }
        )

    def batches(
        self, split: Split, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        ids, length = self.corpus(split).ids, self.settings.length
        for index in count(start):
            starts = stream(seed, split, index).integers(0, len(ids) - length + 1, batch_size)
            samples = ids[starts[:, None] + np.arange(length)].astype(np.int64)
            full = np.ones(samples.shape, dtype=bool)
            yield tensors(None, samples, full, np.ones(batch_size, dtype=np.int64))

    def floors(self, dataset: datasets.Dataset) -> dict[str, float]:
        """Mean loss when tokens are predicted from their frequency in training alone."""
        counts = np.bincount(self.corpus("train").ids, minlength=self.vocab_size) + 1.0
        nats = -np.log(counts / counts.sum())
        scored = np.concatenate([np.asarray(row[0][1:]) for row in dataset["query_ids"]])
        return {"floor/blind": float(nats[scored].mean())}

    def decode(self, ids: Any) -> str:
        if self.tokenizer is not None:
            return str(self.tokenizer.decode([int(i) for i in ids]))
        return bytes(int(i) for i in ids if int(i) < NUM_BYTES).decode("utf-8", errors="replace")


_CORPORA: dict[tuple[Any, ...], Corpus] = {}
CORPORA_KEPT = 6


def tokenise(content: bytes, tokenizer: Any) -> Corpus:
    """Bytes as they are, or a tokenizer's tokens with the bytes up to the end of each."""
    if tokenizer is None:
        return Corpus(np.frombuffer(content, dtype=np.uint8), None)
    if not tokenizer.is_fast:
        raise SpecError(
            "bits per byte need a fast tokenizer, which knows where its tokens stand in the text",
            path="task.tokenizer",
        )
    text = content.decode("utf-8", errors="replace")
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    ids: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    start = 0
    while start < len(text):
        stop = text.rfind("\n", start, start + CHUNK) + 1 if start + CHUNK < len(text) else 0
        stop = stop if stop > start else min(start + CHUNK, len(text))
        found = tokenizer(
            text[start:stop], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        offsets = np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        ids.append(np.array(found["input_ids"], dtype=np.int32))
        ends.append(bytes_before[start + offsets[:, 1]])
        start = stop
    return Corpus(np.concatenate(ids), np.maximum.accumulate(np.concatenate(ends)))


def split_bytes(settings: Text.Settings, split: Split) -> bytes:
    """The text of a split: its own data, or its part of the training data."""
    own = {name: _own_data(settings, name) for name in SPLITS}
    if split != "train" and own[split]:
        return _content(settings, own[split], split)
    whole = _content(settings, own["train"], "train")
    test = 0.0 if own["test"] else settings.test_share
    validation = 0.0 if own["validation"] else settings.validation_share
    after_train = _boundary(whole, 1 - test - validation)
    after_validation = _boundary(whole, 1 - test)
    parts = {"train": (0, after_train), "validation": (after_train, after_validation)}
    first, last = parts.get(split, (after_validation, len(whole)))
    return whole[first:last]


def _own_data(settings: Text.Settings, split: Split) -> list[str]:
    """Names of the data that a split has to itself; data sets on the hub come with their splits."""
    sources = settings.sources
    if split in sources:
        return sources[split]
    train = sources["train"]
    return train if all(is_hub(name) and split in load_hub(name) for name in train) else []


def _content(settings: Text.Settings, names: list[str], split: Split) -> bytes:
    """The named data, one after the other."""
    return b"\n".join(
        _hub_bytes(name, split, settings.column)
        if is_hub(name)
        else b"\n".join(read_bytes(file) for file in text_files(name))
        for name in names
    )


def _hub_bytes(name: str, split: Split, column: str) -> bytes:
    found = load_hub(name)
    rows = found[split if split in found else "train"]
    if column not in rows.column_names:
        raise SpecError(
            f"{name!r} has no column {column!r}; it has {', '.join(rows.column_names)}",
            path="task.column",
        )
    return "\n".join(rows[column]).encode("utf-8")


def _boundary(content: bytes, share: float) -> int:
    """The place after this share of the bytes, moved on to where a character starts."""
    place = round(len(content) * share)
    while place < len(content) and content[place] & 0xC0 == 0x80:
        place += 1
    return place


def _modified(settings: Text.Settings) -> tuple[int, ...]:
    names = [name for names in settings.sources.values() for name in names if not is_hub(name)]
    return tuple(Path(file).stat().st_mtime_ns for name in names for file in text_files(name))
