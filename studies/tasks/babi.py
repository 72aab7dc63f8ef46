"""bAbI question answering over short stories (Weston et al., arXiv 1502.05698), the real text.

A question's context is all earlier statements of its story, earlier questions left out:

    context `mary moved to the bathroom . john went to the hallway .`
    question `where is mary ?`    answer `bathroom <eos>`

`babi_release.py` reads the files. Validation is cut from the last tenth of the training stories;
the official test questions are the test split. Answers of several words (qa8, qa19) hold commas,
which count. Words in lower case and punctuation marks are the tokens, one vocabulary for all tasks
that the data holds, unless a tokenizer is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, count
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from memarch.components.errors import SpecError
from memarch.studies.tasks.babi_release import (
    Question,
    find_file,
    load,
    open_release,
    vocabulary,
)
from memarch.studies.tasks.base import Split, Task, TaskSettings, stream, tasks
from memarch.studies.tasks.collate import Collator
from memarch.studies.tasks.files import DataPath, is_hub
from memarch.studies.tasks.vocabulary import Tokens, Words, split_words

if TYPE_CHECKING:
    import datasets

VALIDATION_SHARE = 0.1
NUM_TASKS = 20


def _task_name(name: str) -> str:
    if name in (f"qa{number}" for number in range(1, NUM_TASKS + 1)):
        return name
    raise SpecError(f"must be one of qa1 to qa{NUM_TASKS}, got {name!r}")


TaskName = Annotated[str, AfterValidator(_task_name)]


@tasks.register("babi", paper="1502.05698")
class Babi(Task):
    """Questions about the statements of a story."""

    class Settings(TaskSettings):
        """Settings of `babi`."""

        type: Literal["babi"] = "babi"
        data: DataPath
        """Folder or zip archive of the bAbI release, or `hf://owner/name`."""
        task: TaskName | Annotated[list[TaskName], Field(min_length=1)] = "qa1"
        """Which of the tasks qa1 to qa20, or a list of them."""
        set: Literal["en", "en-10k"] = "en-10k"
        """1,000 (`en`) or 10,000 (`en-10k`) questions to train on; the test questions are equal."""
        max_facts: Annotated[int, Field(ge=1)] | None = None
        """Leave out questions after more statements than this."""

        @property
        def names(self) -> list[str]:
            """The tasks."""
            return [self.task] if isinstance(self.task, str) else self.task

        @model_validator(mode="after")
        def _files_are_there(self) -> Babi.Settings:
            if not is_hub(self.data):
                files = open_release(self.data)
                for name in self.names:
                    for part in ("train", "test"):
                        find_file(files, self.set, name, part)
            return self

    def __init__(self, settings: Settings, tokenizer: Any = None) -> None:
        self.settings = settings
        self.tokens: Words | Tokens = (
            Words(vocabulary(settings.data, settings.set))
            if tokenizer is None
            else Tokens(tokenizer)
        )
        self.vocab_size, self.pad_id = self.tokens.size, self.tokens.pad_id
        self._questions: dict[Split, list[Question]] = {}
        self._rows: dict[Split, list[dict[str, Any]]] = {}

    def questions(self, split: Split) -> list[Question]:
        """The questions of a split, in the order of the files."""
        if split not in self._questions:
            s = self.settings
            part: Literal["train", "test"] = "test" if split == "test" else "train"
            found: list[Question] = []
            for name in s.names:
                every = load(s.data, s.set, name, part)
                if split != "test":
                    every = _cut(every, split)
                found += [q for q in every if s.max_facts is None or len(q.facts) <= s.max_facts]
            if not found:
                raise SpecError(
                    f"no question of {split} has at most {s.max_facts} statements before it",
                    path="task.max_facts",
                )
            self._questions[split] = found
        return self._questions[split]

    def rows(self, split: Split) -> list[dict[str, Any]]:
        """The samples of a split."""
        if split not in self._rows:
            by_training = Counter(q.answer for q in self.questions("train"))
            self._rows[split] = [self._row(q, by_training) for q in self.questions(split)]
        return self._rows[split]

    def dataset(self, split: Split, size: int | None, seed: int) -> datasets.Dataset:
        from datasets import Dataset

        rows = self.rows(split)
        if size is not None and size < len(rows):
            chosen = stream(seed, split, 0, purpose=2).permutation(len(rows))[:size]
            rows = [rows[index] for index in np.sort(chosen)]
        return Dataset.from_list(rows)

    def batches(
        self, split: Split, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Epoch after epoch, each in an order of its own; a batch may lie across two epochs."""
        rows, collate = self.rows(split), Collator(self.pad_id)
        for index in count(start):
            places = np.arange(index * batch_size, (index + 1) * batch_size)
            epochs = places // len(rows)
            orders = {int(e): _order(seed, split, int(e), len(rows)) for e in np.unique(epochs)}
            yield collate(
                [
                    rows[orders[int(epoch)][place % len(rows)]]
                    for epoch, place in zip(epochs, places, strict=True)
                ]
            )

    def floors(self, dataset: datasets.Dataset) -> dict[str, float]:
        """`blind` answers what is most frequent in training, `guess_seen` what the context repeats
        most often among the answers that training knows."""
        majority = Counter(q.answer for q in self.questions("train")).most_common(1)[0][0]
        answer = self.tokens.answer(majority)
        blind = [
            row["query_ids"][0][row["answer_start"][0] :] == answer
            for row in dataset.select_columns(["query_ids", "answer_start"])
        ]
        return {
            "floor/blind": float(np.mean(blind)),
            "floor/guess_seen": float(np.mean([chance[0] for chance in dataset["guess_seen"]])),
        }

    def decode(self, ids: Any) -> str:
        return self.tokens.decode(ids)

    def _row(self, question: Question, by_training: Counter[str]) -> dict[str, Any]:
        facts = self.tokens.facts(question.facts)
        asked = self.tokens.question(question.question)
        oldest = min(question.needed, default=0)
        return {
            "context_ids": [token for fact in facts for token in fact],
            "query_ids": [asked + self.tokens.answer(question.answer)],
            "answer_start": [len(asked)],
            "guess_seen": [float(_guess_seen(question.facts, by_training) == question.answer)],
            "tags": {
                "distance": [sum(len(fact) for fact in facts[oldest + 1 :])],
                "age": [len(facts) - 1 - oldest],
                "facts": [len(facts)],
            },
        }


def _cut(questions: list[Question], split: Split) -> list[Question]:
    """Training without, or validation as, the last tenth of the stories."""
    stories = questions[-1].story + 1
    first = stories - max(1, round(stories * VALIDATION_SHARE))
    return [q for q in questions if (q.story >= first) == (split == "validation")]


@lru_cache(maxsize=4)
def _order(seed: int, split: Split, epoch: int, size: int) -> np.ndarray:
    return stream(seed, split, epoch, purpose=3).permutation(size)


def _guess_seen(facts: Sequence[str], by_training: Counter[str]) -> str:
    """The known answer that the context holds most often, by its count in training at a tie."""
    seen = Counter(chain.from_iterable(map(split_words, facts)))
    candidates = [answer for answer in by_training if answer.lower() in seen]
    if not candidates:
        return by_training.most_common(1)[0][0]
    return max(candidates, key=lambda answer: (seen[answer.lower()], by_training[answer]))
