"""What a task is: seeded data, how an answer is scored, the floors, and the registry of tasks.

A sample is a context, which the model reads once, and one or several queries about it. Every query
is a segment of its own, so the answer is never in the segment that asks. A row of a data set holds

| column | what |
| --- | --- |
| `context_ids` | list of token ids; empty in language modelling |
| `query_ids` | one list per query: the question's tokens, then the answer's |
| `answer_start` | per query, the index in `query_ids` at which the answer starts |
| `guess_seen` | per query, the chance that a guess among the values seen in the context is right |
| `tags` | per query: `distance`, `age` and `facts`, below |
| `num_bytes` | language modelling only: bytes of text behind the scored tokens |

Tags say how hard an answer is: `distance` counts the context's tokens after the fact that is needed
(the oldest, where several are), `age` the facts after it, `facts` all facts of the context.

Importing this module imports neither torch, datasets, transformers nor numpy: `memarch validate`
needs the settings only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from memarch.arch.settings import join, parse, show
from memarch.components.errors import SpecError
from memarch.components.registry import Registry

if TYPE_CHECKING:
    import datasets
    import numpy as np

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class TaskSettings(BaseModel):
    """What every task's settings share. Each task's own subclass has `type: Literal[name]`.

    A validator checks what is cheap to check, the presence of data files too, so that
    `memarch validate` finds it: `studies/tasks/files.py` has the types of such fields.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    type: str
    """Which task."""
    tokenizer: str | None = None
    """Folder or hub name of a transformers tokenizer; by default the pretrained backbone's own, or
    the task's own vocabulary where the backbone starts from random weights."""


class Task(ABC):
    """A task is cheap to construct, so that a curriculum may build one per stage or per batch."""

    Settings: ClassVar[type[TaskSettings]]
    splits: ClassVar[tuple[Split, ...]] = SPLITS
    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "token_accuracy", "loss")
    primary: ClassVar[str] = "exact_match"
    maximize: ClassVar[bool] = True
    """Whether more of `primary` is better."""

    endless: ClassVar[bool] = False
    """Samples are generated; else a split has so many, and the test split is scored whole."""

    vocab_size: int
    pad_id: int
    ignored_ids: frozenset[int] = frozenset()
    """Answer tokens that are trained on but do not count for exact match (punctuation)."""

    @abstractmethod
    def __init__(self, settings: Any, tokenizer: Any = None) -> None: ...

    @abstractmethod
    def dataset(self, split: Split, size: int | None, seed: int) -> datasets.Dataset:
        """`size` samples of a split (all there are when None), the same for the same seed."""

    @abstractmethod
    def batches(
        self, split: Split, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Endless collated batches from number `start` on.

        Each depends on its number alone, so a resumed run sees what an uninterrupted one would.
        """

    @abstractmethod
    def floors(self, dataset: datasets.Dataset) -> dict[str, float]:
        """What needs no memory, in units of `primary`: `floor/blind` and `floor/guess_seen`."""

    @abstractmethod
    def decode(self, ids: Any) -> str:
        """Token ids as text that a person can read."""


tasks: Registry[Task] = Registry("task", ("memarch.studies.tasks",))


def stream(seed: int, split: Split, index: int, purpose: int = 0) -> np.random.Generator:
    """A random stream of its own for every (seed, split, purpose, index): no two ever overlap.

    Philox is a counter-based generator with a 128-bit key, so stream number one million costs as
    much as stream number one. Purposes: 0 training batches, 1 blocks of a data set, 2 selections,
    3 values that are drawn for every training batch.
    """
    import numpy as np

    word = (SPLITS.index(split) * 4 + purpose) << 56 | index
    return np.random.Generator(np.random.Philox(key=np.array([seed, word], dtype=np.uint64)))


def parse_settings(
    settings: Mapping[str, Any], path: str = "task", *, folders: Sequence[Path] = ()
) -> TaskSettings:
    """Checked settings of the task that `type:` names; data paths start in one of `folders`."""
    kind = settings.get("type")
    if kind is None:
        known = ", ".join(entry.name for entry in tasks)
        raise SpecError(f"is required; known: {known}", path=join(path, "type"))
    if not isinstance(kind, str):
        raise SpecError(f"must be the name of a task, got {show(kind)}", path=join(path, "type"))
    try:
        entry = tasks[kind]
    except SpecError as error:
        raise SpecError(error.message, path=join(path, "type")) from None
    return parse(entry.cls.Settings, {**entry.defaults, **settings}, path, folders=folders)


def build_task(settings: Mapping[str, Any] | TaskSettings, *, tokenizer: Any = None) -> Task:
    """The task that settings describe; `tokenizer` is that of a pretrained backbone, if any."""
    checked = settings if isinstance(settings, TaskSettings) else parse_settings(settings)
    if checked.tokenizer is not None:
        tokenizer = _load_tokenizer(checked.tokenizer)
    return tasks[checked.type].cls(checked, tokenizer)


def _load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise SpecError(f"no tokenizer at {name!r}: {reason}", path="task.tokenizer") from error
