"""Language modelling: every token is scored once, and bytes are counted whatever the tokens are."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memarch.components.errors import SpecError
from memarch.studies.tasks.base import Task, build_task

TEXT = "".join(f"Line {number} of a text – with ünïcode, 漢字 and 🙂.\n" for number in range(60))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def text(data: Any, **settings: Any) -> Task:
    return build_task({"type": "text", "data": data, "length": 16, **settings})


def content(task: Task, split: str) -> bytes:
    return bytes(task.corpus(split).ids)  # type: ignore[attr-defined]


def test_tokens_are_bytes_and_padding_is_no_byte(corpus: Path) -> None:
    task = text(str(corpus))
    assert (task.vocab_size, task.pad_id) == (257, 256)
    assert task.decode([*"für".encode(), task.pad_id]) == "für"


def test_splits_are_cut_by_position_between_characters(corpus: Path) -> None:
    task = text(str(corpus), validation_share=0.2, test_share=0.1)
    parts = [content(task, split) for split in task.splits]
    assert b"".join(parts) == TEXT.encode()
    total = len(TEXT.encode())
    assert [len(part) / total for part in parts] == pytest.approx([0.7, 0.2, 0.1], abs=0.01)
    assert "".join(part.decode() for part in parts) == TEXT  # no character was cut


def test_given_splits_are_used_and_missing_ones_cut_from_training(
    corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "held_out.txt").write_text("held out text, long enough")
    task = text({"train": str(corpus), "test": str(tmp_path / "held_out.txt")})
    assert content(task, "test") == b"held out text, long enough"
    assert content(task, "train") + content(task, "validation") == TEXT.encode()


def test_files_folders_patterns_and_gzip(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second " * 20)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"first " * 20))
    (tmp_path / "notes.json").write_text("{}")
    both = b"first " * 20 + b"\n" + b"second " * 20

    def whole(data: Any) -> bytes:
        task = text(data, length=4)
        return b"".join(content(task, split) for split in task.splits)

    assert whole(str(tmp_path)) == both
    assert whole(str(tmp_path / "*.txt*")) == both
    assert whole([str(tmp_path / "a.txt.gz"), str(tmp_path / "b.txt")]) == both
    assert whole(str(tmp_path / "b.txt")) == b"second " * 20


def test_every_token_but_the_first_is_scored_once(corpus: Path) -> None:
    task = text(str(corpus))
    rows = task.dataset("validation", None, 0)
    scored = [token for row in rows for token in row["query_ids"][0][row["answer_start"][0] :]]
    assert bytes(scored) == content(task, "validation")[1 : len(scored) + 1]
    assert len(scored) == 15 * len(rows)
    assert sum(rows["num_bytes"]) == len(scored)
    assert rows[0]["context_ids"] == []


def test_a_smaller_data_set_is_a_seeded_selection(corpus: Path) -> None:
    task = text(str(corpus))
    everything = task.dataset("train", None, 0)["query_ids"]
    some = task.dataset("train", 7, 0)["query_ids"]
    assert len(some) == 7
    assert all(row in everything[:] for row in some)
    assert task.dataset("train", 7, 1)["query_ids"] != some


def test_batches_score_all_but_the_first_token(corpus: Path) -> None:
    task = text(str(corpus))
    batch = next(task.batches("train", 4, 0))
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].shape == (4, 16)
    assert batch["labels"][:, 1:].equal(batch["input_ids"][:, 1:])
    assert all(bytes(ids) in TEXT.encode() for ids in batch["input_ids"].tolist())
    again = next(task.batches("train", 4, 0, start=5))
    assert not again["input_ids"].equal(batch["input_ids"])


def test_the_blind_floor_is_the_unigram_loss(corpus: Path) -> None:
    task = text(str(corpus))
    train = content(task, "train")
    rows = task.dataset("test", None, 0)
    nats = [
        -math.log((train.count(token) + 1) / (len(train) + 257))
        for row in rows
        for token in row["query_ids"][0][1:]
    ]
    assert task.floors(rows) == {"floor/blind": pytest.approx(np.mean(nats))}


def test_bytes_behind_the_tokens_of_a_tokenizer(corpus: Path) -> None:
    task = text(str(corpus))
    tokenised = build_task(
        {"type": "text", "data": str(corpus), "length": 16}, tokenizer=word_tokenizer()
    )
    assert tokenised.vocab_size < 257
    found = tokenised.corpus("train")  # type: ignore[attr-defined]
    assert found.ends[-1] == len(content(task, "train"))
    rows = tokenised.dataset("train", None, 0)
    last = 15 * len(rows)
    assert sum(rows["num_bytes"]) == found.ends[last] - found.ends[0]
    first = tokenised.decode(rows[0]["query_ids"][0])
    assert first.replace(" ", "") == TEXT[: found_length(first)].replace(" ", "")


def found_length(text: str) -> int:
    """How much of TEXT has the same characters, spaces left out."""
    wanted = len(text.replace(" ", ""))
    return next(n for n in range(len(TEXT)) if len(TEXT[:n].replace(" ", "")) == wanted)


def word_tokenizer() -> Any:
    """A fast tokenizer of words and of the spaces between them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Split(" ", "merged_with_next")
    words = sorted({word for word, _ in split.pre_tokenize_str(TEXT)})
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["[UNK]", *words])}, "[UNK]")
    )
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def test_too_little_text_is_a_clear_error(corpus: Path) -> None:
    with pytest.raises(SpecError, match="too few for samples of 4096"):
        text(str(corpus), length=4096).dataset("validation", None, 0)


def test_a_folder_without_text_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(SpecError, match=r"task\.data: no \.txt or \.md file in"):
        text(str(tmp_path))


def test_a_data_set_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes a folder named owner/name in the current folder before the hub."""
    folder = tmp_path / "someone" / "texts"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation"):
        lines = [json.dumps({"body": f"{split} line {number}"}) for number in range(50)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    task = text("hf://someone/texts", column="body")
    assert content(task, "validation").startswith(b"validation line 0\nvalidation line 1\n")
    assert content(task, "train").startswith(b"train line 0\n")
    assert content(task, "test").endswith(b"train line 49")
    with pytest.raises(SpecError, match=r"task\.column: .* has no column 'text'; it has body"):
        text("hf://someone/texts").dataset("test", None, 0)
