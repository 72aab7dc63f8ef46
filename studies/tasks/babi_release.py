"""The bAbI release: its files, the questions in them, and their words.

Files are `{en,en-10k}/qaN_NAME_{train,test}.txt`, in a folder or a zip archive. Lines are `ID text`
or, for a question, `ID text TAB answer TAB IDs of the statements needed`; ID 1 starts a story. A
data set on the hub needs the columns `passage`, `question`, `answer` and, for several tasks in one,
`task`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from memarch.components.errors import SpecError
from memarch.studies.tasks.files import Files, is_hub, load_hub
from memarch.studies.tasks.vocabulary import split_words

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Question:
    """A question with the statements before it."""

    story: int
    facts: tuple[str, ...]
    question: str
    answer: str
    needed: tuple[int, ...]
    """Indices in `facts` of the statements that the answer follows from."""


def parse(text: str) -> list[Question]:
    """The questions of a bAbI file."""
    found: list[Question] = []
    facts: dict[int, str] = {}
    story = -1
    for line in text.splitlines():
        if not line.strip():
            continue
        number, _, rest = line.partition(" ")
        if number == "1":
            facts, story = {}, story + 1
        asked, *answered = rest.split("\t")
        if not answered:
            facts[int(number)] = rest.strip()
            continue
        places = {line_number: place for place, line_number in enumerate(facts)}
        needed = answered[1].split() if len(answered) > 1 else []
        found.append(
            Question(
                story,
                tuple(facts.values()),
                asked.strip(),
                answered[0].strip(),
                tuple(places[int(i)] for i in needed if int(i) in places),
            )
        )
    return found


def from_hub(rows: datasets.Dataset, task: str, name: str) -> list[Question]:
    """The questions of one task in a data set with columns passage, question, answer (and task)."""
    missing = {"passage", "question", "answer"} - set(rows.column_names)
    if missing:
        raise SpecError(
            f"{name!r} has no column {sorted(missing)[0]!r}; it has {', '.join(rows.column_names)}",
            path="task.data",
        )
    found = []
    for story, row in enumerate(rows):
        if str(row.get("task", task)).removeprefix("qa") != task.removeprefix("qa"):
            continue
        facts = tuple(line.strip() for line in row["passage"].splitlines() if line.strip())
        mentions = [i for i, fact in enumerate(facts) if row["answer"] in split_words(fact)]
        needed = tuple(mentions[-1:])
        found.append(Question(story, facts, row["question"].strip(), row["answer"].strip(), needed))
    if not found:
        raise SpecError(f"{name!r} has no question of task {task}", path="task.task")
    return found


def find_file(files: Files, group: str, name: str, part: str) -> str:
    """The file of a task, or a SpecError that says what to use instead."""
    pattern = re.compile(rf"(^|/){group}/{name}_[^/]*_{part}\.txt$")
    found = [file for file in files.names if pattern.search(file)]
    if not found and files.path.name == group:
        found = [f for f in files.names if re.search(rf"^{name}_[^/]*_{part}\.txt$", f)]
    if found:
        return found[0]
    if not any(re.search(r"qa\d+_.*\.txt$", file) for file in files.names):
        raise SpecError(
            f"no bAbI files (qa1_..._train.txt) in {files.path}: expected the unpacked release "
            "tasks_1-20_v1-2 or its zip archive",
            path="data",
        )
    other = "en" if group == "en-10k" else "en-10k"
    there = any(re.search(rf"(^|/){other}/{name}_[^/]*_{part}\.txt$", f) for f in files.names)
    advice = f"`set: {other}` has it" if there else "choose another task"
    raise SpecError(
        f"{files.path} has no {part} file of {name} in set {group!r}; {advice}", path="set"
    )


@lru_cache(maxsize=64)
def load(data: str, group: str, name: str, part: Literal["train", "test"]) -> list[Question]:
    """The questions of a task's train or test file."""
    if is_hub(data):
        return from_hub(load_hub(data)[part], name, data)
    files = open_release(data)
    return parse(files.read(find_file(files, group, name, part)))


@lru_cache(maxsize=8)
def vocabulary(data: str, group: str) -> tuple[str, ...]:
    """The words of all training files, so that a curriculum over tasks keeps its vocabulary.

    The small set's files are enough where they are there: the large ones go on with the same words.
    """
    if is_hub(data):
        train = load_hub(data)["train"]
        texts = [t for name in ("passage", "question", "answer") for t in train[name]]
        return tuple(sorted(set(split_words(" ".join(texts)))))
    files = open_release(data)
    train_files = [file for file in files.names if re.search(r"(^|/)qa\d+_[^/]*_train\.txt$", file)]
    words: set[str] = set()
    for wanted in ("en", group):
        for file in train_files:
            if Path(file).parent.name == wanted or files.path.name == wanted:
                words |= set(split_words(files.read(file)))
        if words:
            break
    return tuple(sorted(word for word in words if not word.isdigit()))


def open_release(data: str) -> Files:
    """The files under a path; a folder that has none but one zip archive means that archive."""
    files = Files(data)
    archives = [name for name in files.names if name.endswith(".zip")]
    if archives and not any(re.search(r"qa\d+_.*\.txt$", name) for name in files.names):
        return Files(str(files.path / archives[0]))
    return files
