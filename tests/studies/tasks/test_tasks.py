"""What every task keeps: seeds, splits, one query a segment, floors, speed; and the collator."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memarch.components.errors import SpecError
from memarch.studies.tasks.base import Task, build_task, parse_settings, stream, tasks
from memarch.studies.tasks.collate import Collator
from memarch.studies.tasks.generated import GeneratedTask, distinct, place

BABI = str(Path(__file__).parents[2] / "data" / "babi")

GENERATED: dict[str, dict[str, Any]] = {
    "kv text": {"type": "kv_retrieval", "pairs": 6, "queries": 2},
    "kv text with filler": {"type": "kv_retrieval", "pairs": 4, "filler": 9},
    "kv compact": {"type": "kv_retrieval", "format": "compact", "pairs": 8, "queries": 3},
    "kv compact, shared": {"type": "kv_retrieval", "format": "compact", "separate": False},
    "remember": {"type": "associative_retrieval", "pairs": 6, "queries": 2},
    "rewrite": {"type": "associative_retrieval", "mode": "rewrite", "pairs": 20},
    "mqar": {"type": "mqar", "vocab": 32, "pairs": 5, "length": 24},
}
RETRIEVAL = {**GENERATED, "babi": {"type": "babi", "data": BABI, "set": "en"}}


@pytest.fixture(params=RETRIEVAL)
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return RETRIEVAL[request.param]


@pytest.fixture
def task(settings: dict[str, Any]) -> Task:
    return build_task(settings)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(left[key].equal(right[key]) for key in left)


def test_all_tasks_are_registered() -> None:
    names = {entry.name for entry in tasks}
    assert names >= {"kv_retrieval", "associative_retrieval", "mqar", "babi", "text"}


def test_checking_settings_needs_neither_torch_nor_datasets() -> None:
    code = (
        "import sys; from memarch.studies.tasks.base import parse_settings; "
        "parse_settings({'type': 'kv_retrieval'}); "
        "print([m for m in ('torch', 'datasets', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "task.type: is required; known: associative_retrieval, babi"),
        ({"type": "kv_retreival"}, "did you mean 'kv_retrieval'"),
        ({"type": 3}, "task.type: must be the name of a task, got 3"),
        ({"type": "kv_retrieval", "pair": 3}, "task.pair: unknown key 'pair'"),
        ({"type": "kv_retrieval", "pairs": 0}, "task.pairs: must be at least 1, got 0"),
        ({"type": "kv_retrieval", "pairs": 4000}, "keys of 2 out of 62 symbols are only 3844"),
        ({"type": "kv_retrieval", "queries": 5}, "task.queries: must be at most pairs, 4, got 5"),
        ({"type": "kv_retrieval", "alphabet": "aba"}, "task.alphabet: 'aba' holds a character"),
        ({"type": "kv_retrieval", "alphabet": "ab|"}, "task.alphabet: must not hold"),
        ({"type": "kv_retrieval", "separate": True}, "task.separate: separate symbols need"),
        (
            {"type": "kv_retrieval", "format": "compact", "alphabet": "abcd", "separate": True},
            "or `alphabet: 4`",
        ),
        ({"type": "associative_retrieval", "key_size": 1, "pairs": 17}, "`mode: rewrite`"),
        ({"type": "mqar", "vocab": 8}, "task.vocab: 8 pairs need at least 16, got 8"),
        ({"type": "mqar", "length": 10}, "task.length: 8 pairs need at least 16, got 10"),
        ({"type": "text"}, "task.data: is required"),
        ({"type": "text", "data": "no/such.txt"}, "task.data: there is no file or folder"),
        ({"type": "text", "data": {"trian": "x"}}, "did you mean 'train'"),
        ({"type": "text", "data": "hf://name"}, "a data set on the hub is hf://owner/name"),
        ({"type": "babi", "data": "nowhere"}, "task.data: there is no file or folder 'nowhere'"),
        ({"type": "babi", "data": BABI, "task": "qa21"}, "task.task: must be one of qa1 to qa20"),
        ({"type": "babi", "data": BABI, "task": "qa3"}, "task.set: .*`set: en` has it"),
        ({"type": "babi", "data": str(Path(__file__).parent)}, "task.data: no bAbI files"),
    ],
)
def test_wrong_settings_are_one_clear_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_settings(given)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_data_paths_start_in_the_folder_of_the_study(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("text")
    found = parse_settings({"type": "text", "data": "corpus.txt"}, folders=[tmp_path])
    assert found.model_dump()["data"] == str(tmp_path / "corpus.txt")


def test_equal_seeds_give_equal_data(settings: dict[str, Any]) -> None:
    one, two = build_task(settings), build_task(settings)
    assert one.dataset("test", 20, 3).to_dict() == two.dataset("test", 20, 3).to_dict()
    assert same(next(one.batches("train", 8, 3)), next(two.batches("train", 8, 3)))
    assert not same(next(one.batches("train", 8, 3)), next(one.batches("train", 8, 4)))


def test_a_larger_data_set_begins_with_the_smaller() -> None:
    for given in GENERATED.values():
        task = build_task(given)
        small, large = task.dataset("validation", 5, 0), task.dataset("validation", 1030, 0)
        assert small["query_ids"] == large["query_ids"][:5]
        assert len(large) == 1030


def test_a_batch_depends_on_its_number_alone(task: Task) -> None:
    uninterrupted = task.batches("train", 4, seed=1)
    for _ in range(3):
        next(uninterrupted)
    resumed = task.batches("train", 4, seed=1, start=3)
    for _ in range(3):
        assert same(next(resumed), next(uninterrupted))


def test_splits_are_disjoint(task: Task) -> None:
    if isinstance(task, GeneratedTask):
        pairs = [(seed, split) for seed in (0, 1) for split in task.splits]
        samples = [
            {(tuple(row["context_ids"]), str(row["query_ids"])) for row in rows}
            for rows in (task.dataset(split, 100, seed) for seed, split in pairs)
        ]
        batch = next(task.batches("train", 100, 0))
        queries = batch["input_ids"].reshape(100, -1, batch["input_ids"].shape[1]).tolist()
        samples.append(
            {
                (tuple(c), str(q))
                for c, q in zip(batch["context_ids"].tolist(), queries, strict=True)
            }
        )
    else:
        samples = [{str(q) for q in task.questions(split)} for split in task.splits]  # type: ignore[attr-defined]
    assert all(samples)
    for index, left in enumerate(samples):
        for right in samples[index + 1 :]:
            assert not left & right


def test_streams_never_meet() -> None:
    keys = [(0, "train", 0, 0), (1, "train", 0, 0), (0, "test", 0, 0), (0, "train", 1, 0)]
    drawn = [stream(*key).integers(0, 2**63, 4).tolist() for key in [*keys, (0, "train", 0, 1)]]
    assert len({number for numbers in drawn for number in numbers}) == 20


def test_the_answer_is_in_the_context_and_not_in_the_question(task: Task) -> None:
    for row in task.dataset("validation", 50, 0):
        for ids, start in zip(row["query_ids"], row["answer_start"], strict=True):
            question, answer = task.decode(ids[:start]), task.decode(ids[start:])
            key = question.strip("?!:-")
            value = answer.strip("!|").removesuffix(" <eos>")
            assert value in task.decode(row["context_ids"])
            assert question in (key, f"?!{key}:", f"{key}-") or question.endswith("?")
            if key.isalnum():
                assert task.decode(row["context_ids"]).count(key)


def test_every_query_is_a_segment_of_its_own() -> None:
    task = build_task(GENERATED["kv compact"])
    batch = next(task.batches("train", 4, 0))
    assert batch["context_ids"].shape == (4, 16)
    assert batch["input_ids"].shape == (12, 2)
    assert (batch["labels"] != -100).sum(dim=1).tolist() == [1] * 12
    keys_of_context = batch["context_ids"][:, 0::2].repeat_interleave(3, dim=0)
    assert (keys_of_context == batch["input_ids"][:, :1]).sum(dim=1).tolist() == [1] * 12


def test_batches_and_data_sets_have_one_form() -> None:
    """A batch is what the collator makes of rows."""
    for given in GENERATED.values():
        task = build_task(given)
        rows = task.dataset("train", 3, 0).to_list()
        collated, batch = Collator(task.pad_id)(rows), next(task.batches("train", 3, 0))
        assert {key: value.shape for key, value in collated.items()} == {
            key: value.shape for key, value in batch.items()
        }
        assert (collated["labels"] == -100).equal(batch["labels"] == -100)


def test_distances_and_ages_are_those_of_the_fact() -> None:
    for name in ("kv text", "kv text with filler", "kv compact", "remember", "mqar"):
        task = build_task(GENERATED[name])
        for row in task.dataset("test", 20, 0):
            context = row["context_ids"]
            for number, (ids, start) in enumerate(
                zip(row["query_ids"], row["answer_start"], strict=True)
            ):
                key, value = asked(task, ids[:start], ids[start:])
                pairs = facts(task, name, context)
                place_of_fact = [k for k, _, _ in pairs].index(key)
                _, found, end = pairs[place_of_fact]
                assert found == value
                assert row["tags"]["distance"][number] == len(context) - end
                assert row["tags"]["age"][number] == len(pairs) - 1 - place_of_fact
                assert row["tags"]["facts"][number] == len(pairs)


def test_the_floor_of_seen_values_is_what_guessing_among_them_gives() -> None:
    for name in GENERATED:
        task = build_task(GENERATED[name])
        rows = task.dataset("validation", 60, 0)
        chances = []
        for row in rows:
            values = [value for _, value, _ in facts(task, name, row["context_ids"])]
            for ids, start in zip(row["query_ids"], row["answer_start"], strict=True):
                _, answer = asked(task, ids[:start], ids[start:])
                chances.append(values.count(answer) / len(values))
        assert task.floors(rows)["floor/guess_seen"] == pytest.approx(np.mean(chances))


@pytest.mark.parametrize(
    ("name", "blind"),
    [("kv text", 62**-2), ("kv compact", 1 / 16), ("remember", 1 / 16), ("mqar", 1 / 16)],
)
def test_the_blind_floor_is_a_guess_among_all_values(name: str, blind: float) -> None:
    task = build_task(GENERATED[name])
    assert task.floors(task.dataset("test", 5, 0))["floor/blind"] == pytest.approx(blind)


def test_vocabularies_do_not_change_with_what_a_curriculum_changes() -> None:
    changes = [
        ("kv_retrieval", {"pairs": 9, "filler": 5, "queries": 3, "key_length": 3}),
        ("associative_retrieval", {"mode": "rewrite", "pairs": 50, "key_size": 2}),
        ("mqar", {"pairs": 3, "length": 99, "queries": 1}),
    ]
    for name, change in changes:
        plain, changed = build_task({"type": name}), build_task({"type": name, **change})
        assert (plain.vocab_size, plain.pad_id) == (changed.vocab_size, changed.pad_id)
        ids = plain.dataset("test", 1, 0)[0]["context_ids"]
        assert plain.decode(ids) == changed.decode(ids)


def test_distinct_numbers_are_distinct_and_even() -> None:
    rng = np.random.default_rng(0)
    for size, space in ((1, 1), (3, 4), (5, 5), (3, 100), (40, 1000)):
        drawn = distinct(rng, 2000, size, space)
        assert drawn.shape == (2000, size)
        assert all(len(set(row)) == size for row in drawn.tolist())
        assert drawn.min() >= 0
        assert drawn.max() < space
        counts = np.bincount(drawn[:, -1], minlength=space)  # also the last is drawn from all
        expected = 2000 / space
        assert np.abs(counts - expected).max() < 6 * expected**0.5 + 1e-9


def test_facts_are_placed_among_filler() -> None:
    units = np.array([[[1, 2], [3, 4]]])
    tokens, ends = place(units, np.array([[7, 8, 9]]), np.array([[1, 3]]))
    assert tokens.tolist() == [[7, 1, 2, 8, 9, 3, 4]]
    assert ends.tolist() == [[3, 7]]


def test_generation_is_vectorised_and_starts_anywhere_at_once() -> None:
    """Against the same samples drawn and formatted in a loop, one by one."""
    task = build_task({"type": "kv_retrieval", "pairs": 32})

    def one_by_one() -> None:
        rng = np.random.default_rng(0)
        symbols = [task.decode([index]) for index in range(8, 70)]
        ids = {symbol: index for index, symbol in enumerate(symbols)}
        for _ in range(64):
            keys: list[str] = []
            while len(keys) < 32:
                key = "".join(rng.choice(symbols, 2))
                keys += [key] * (key not in keys)
            text = "".join(f"!{key}:{''.join(rng.choice(symbols, 2))}!" for key in keys) + "|"
            [ids.get(character, 0) for character in text]

    fast = fastest(lambda: next(task.batches("train", 64, 0)), 5)
    assert fastest(one_by_one, 1) > 10 * fast
    assert fastest(lambda: next(task.batches("train", 64, 0, start=10**9)), 5) < 5 * fast


def test_the_collator_pads_on_the_right_and_scores_answers_only() -> None:
    rows = [
        {"context_ids": [5, 6, 7], "query_ids": [[1, 2], [3, 4, 8]], "answer_start": [1, 1]},
        {"context_ids": [9], "query_ids": [[1, 2, 3, 4], [2, 2]], "answer_start": [3, 0]},
    ]
    batch = {name: tensor.tolist() for name, tensor in Collator(0)(rows).items()}
    assert batch == {
        "context_ids": [[5, 6, 7], [9, 0, 0]],
        "context_mask": [[1, 1, 1], [1, 0, 0]],
        "input_ids": [[1, 2, 0, 0], [3, 4, 8, 0], [1, 2, 3, 4], [2, 2, 0, 0]],
        "attention_mask": [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]],
        "labels": [
            [-100, 2, -100, -100],
            [-100, 4, 8, -100],
            [-100, -100, -100, 4],
            [2, 2, -100, -100],
        ],
    }


def test_the_collator_wants_equally_many_queries() -> None:
    rows = [
        {"context_ids": [1], "query_ids": [[1]] * number, "answer_start": [0] * number}
        for number in (1, 2)
    ]
    with pytest.raises(ValueError, match="equally many queries"):
        Collator(0)(rows)


def asked(task: Task, question: list[int], answer: list[int]) -> tuple[str, str]:
    """Key and value of a query, as text."""
    return task.decode(question).strip("?!:-"), task.decode(answer).strip("!|")


def facts(task: Task, name: str, context: list[int]) -> list[tuple[str, str, int]]:
    """Key, value and end of the facts of a context, read from its text alone."""
    if name == "mqar":
        words = task.decode(context).split()
        return [(w, words[i + 1], i + 2) for i, w in enumerate(words) if w.startswith("k")]
    text = task.decode(context)
    patterns = {
        "kv text": r"!(..):(..)!",
        "kv text with filler": r"!(..):(..)!",
        "remember": r"(...):(.),",
        "rewrite": r"(.):(.),",
    }
    pattern = patterns.get(name, r"(.)(.)")
    return [(match[1], match[2], match.end()) for match in re.finditer(pattern, text)]


def fastest(call: Callable[[], object], times: int) -> float:
    """Seconds of the fastest call."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
