"""bAbI: the release's files are read exactly, in every place where they may lie."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from memarch.components.errors import SpecError
from memarch.studies.tasks.babi import Babi, _guess_seen
from memarch.studies.tasks.babi_release import Question, find_file, open_release, parse
from memarch.studies.tasks.base import build_task

DATA = Path(__file__).parents[2] / "data" / "babi"


def babi(task: str | list[str] = "qa1", data: Path = DATA, **settings: object) -> Babi:
    built = build_task({"type": "babi", "data": str(data), "task": task, "set": "en", **settings})
    assert isinstance(built, Babi)
    return built


def read(name: str, part: str) -> list[Question]:
    files = open_release(str(DATA))
    return parse(files.read(find_file(files, "en", name, part)))


def test_statements_before_a_question_are_its_facts() -> None:
    questions = read("qa1", "train")
    assert len(questions) == 100
    assert questions[0] == Question(
        0,
        ("Mary moved to the bathroom.", "John went to the hallway."),
        "Where is Mary?",
        "bathroom",
        (0,),
    )
    assert questions[1] == Question(
        0,
        (
            "Mary moved to the bathroom.",
            "John went to the hallway.",
            "Daniel went back to the hallway.",
            "Sandra moved to the garden.",
        ),
        "Where is Daniel?",
        "hallway",
        (2,),
    )
    assert questions[5].story == 1
    assert len(questions[5].facts) == 2


def test_answers_of_several_words_keep_their_commas() -> None:
    paths = read("qa19", "train")
    assert paths[0].question == "How do you go from the kitchen to the garden?"
    assert (paths[0].answer, paths[0].needed) == ("s,e", (1, 3))
    lists = read("qa8", "train")
    assert (lists[1].answer, lists[1].needed) == ("nothing", (2, 5))
    assert any("," in question.answer for question in lists)


def test_tokens_are_lower_case_words_and_punctuation() -> None:
    task = babi("qa19")
    row = task.dataset("train", None, 0)[0]
    ids, start = row["query_ids"][0], row["answer_start"][0]
    assert task.decode(row["context_ids"]).startswith("the office is east of the hallway . the")
    assert task.decode(ids[:start]) == "how do you go from the kitchen to the garden ?"
    assert task.decode(ids[start:]) == "s , e <eos>"
    assert row["tags"] == {"distance": [24], "age": [3], "facts": [5]}


def test_validation_is_the_last_tenth_of_the_training_stories() -> None:
    task = babi()
    sizes = {split: len(task.questions(split)) for split in task.splits}
    assert sizes == {"train": 90, "validation": 10, "test": 50}
    assert task.questions("train") + task.questions("validation") == read("qa1", "train")
    assert {question.story for question in task.questions("validation")} == {18, 19}
    assert task.questions("test") == read("qa1", "test")


def test_tags_count_from_the_oldest_statement_needed() -> None:
    row = babi("qa2").dataset("test", 1, 0)[0]
    question = babi("qa2").questions("test")[0]
    assert len(question.needed) == 2
    assert row["tags"]["age"] == [len(question.facts) - 1 - min(question.needed)]


def test_several_tasks_share_one_vocabulary() -> None:
    one, two = babi("qa1"), babi(["qa1", "qa19"])
    assert one.vocab_size == two.vocab_size
    assert len(two.dataset("test", None, 0)) == 53
    assert babi("qa1", max_facts=4).questions("train")[-1].facts.__len__() <= 4


def test_unseen_words_are_unknown() -> None:
    task = babi()
    assert task.decode(task.tokens.question("Where is Zarathustra?")) == "where is <unk> ?"


def test_every_epoch_has_every_question_once_in_a_new_order() -> None:
    task = babi()
    batches = task.batches("train", 30, seed=0)
    epochs = [
        [str(ids) for _ in range(3) for ids in next(batches)["context_ids"].tolist()]
        for _ in range(2)
    ]
    strip = [Counter(text.replace(", 0", "") for text in epoch) for epoch in epochs]
    assert strip[0] == strip[1]
    assert epochs[0] != epochs[1]


def test_the_blind_floor_is_the_majority_answer_of_training() -> None:
    task = babi()
    majority = Counter(q.answer for q in task.questions("train")).most_common(1)[0][0]
    expected = sum(q.answer == majority for q in task.questions("test")) / 50
    assert task.floors(task.dataset("test", None, 0))["floor/blind"] == pytest.approx(expected)


def test_the_guess_among_seen_answers() -> None:
    training = Counter({"garden": 5, "office": 3, "hallway": 9, "two": 1})
    once = ["Mary went to the garden.", "John went to the office."]
    assert _guess_seen(once, training) == "garden"
    assert _guess_seen([*once, "Mary went to the office."], training) == "office"
    assert _guess_seen(["It rains."], training) == "hallway"
    task = babi()
    answers = Counter(q.answer for q in task.questions("train"))
    hits = [_guess_seen(q.facts, answers) == q.answer for q in task.questions("test")]
    floors = task.floors(task.dataset("test", None, 0))
    assert floors["floor/guess_seen"] == pytest.approx(sum(hits) / 50)


def test_folders_archives_and_folders_with_an_archive(tmp_path: Path) -> None:
    archive = tmp_path / "zipped" / "tasks_1-20_v1-2.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for path in DATA.rglob("*.txt"):
            file.write(path, f"tasks_1-20_v1-2/{path.relative_to(DATA)}")
    shutil.copytree(DATA / "en", tmp_path / "around" / "tasks_1-20_v1-2" / "en")
    expected = babi().dataset("test", None, 0).to_dict()
    for place in (archive, archive.parent, tmp_path / "around", DATA / "en"):
        assert babi(data=place).dataset("test", None, 0).to_dict() == expected


def test_a_missing_training_file_names_what_to_use_instead() -> None:
    with pytest.raises(SpecError, match=r"no train file of qa3 in set 'en-10k'; `set: en` has it"):
        babi("qa3", set="en-10k")
    assert len(babi("qa3").questions("test")) == 5
    with pytest.raises(SpecError, match="choose another task"):
        babi("qa7")


def test_a_broken_archive_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "babi.zip").write_text("not a zip")
    with pytest.raises(SpecError, match="neither a folder nor a zip archive"):
        babi(data=tmp_path / "babi.zip")


def test_a_data_set_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes a folder named owner/name in the current folder before the hub."""
    folder = tmp_path / "someone" / "babi"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    row = {"passage": "Mary moved to the hall.\nJohn left.", "question": "Where is Mary?"}
    for split, number in (("train", 20), ("test", 2)):
        lines = [row | {"answer": "hall", "task": 1}] * number + [row | {"answer": "x", "task": 2}]
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    task = build_task({"type": "babi", "data": "hf://someone/babi", "task": "qa1"})
    rows = task.dataset("test", None, 0)
    assert len(rows) == 2
    assert task.decode(rows[0]["context_ids"]) == "mary moved to the hall . john left ."
    assert rows[0]["tags"] == {"distance": [3], "age": [1], "facts": [2]}
    assert len(task.dataset("train", None, 0)) == 18
