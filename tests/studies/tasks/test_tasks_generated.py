"""The formats of the generated tasks, pinned on samples that were read and found right by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from memarch.components.errors import SpecError
from memarch.studies.tasks.base import Task, build_task
from memarch.studies.tasks.generated import chance_of
from memarch.studies.tasks.mqar import power_law


def texts(task: Task, size: int) -> Iterator[tuple[str, list[str]]]:
    """Contexts of samples, and their queries with an arrow before the answer."""
    for row in task.dataset("validation", size, seed=1):
        queries = [
            f"{task.decode(ids[:start])} -> {task.decode(ids[start:])}"
            for ids, start in zip(row["query_ids"], row["answer_start"], strict=True)
        ]
        yield task.decode(row["context_ids"]), queries


@pytest.mark.parametrize(
    ("settings", "context", "queries"),
    [
        (
            {"type": "kv_retrieval"},
            "!gx:fW!!kW:rT!!Co:5J!!Ap:ef!|",
            ["?!Co: -> 5J!|"],
        ),
        (
            {"type": "kv_retrieval", "filler": 6, "queries": 2},
            "!gx:fW!!kW:rT!wa!Co:5J!JVJ!Ap:ef!p|",
            ["?!kW: -> rT!|", "?!gx: -> fW!|"],
        ),
        (
            {"type": "kv_retrieval", "format": "compact", "pairs": 6, "queries": 2},
            "mxcEhqoCpDgA",
            ["h -> q", "m -> x"],
        ),
        (
            {"type": "associative_retrieval"},
            "1a5:e,2c8:5,748:e,6c6:d,8ca:c,",
            ["8ca- -> c"],
        ),
        (
            {
                "type": "associative_retrieval",
                "mode": "rewrite",
                "pairs": 12,
                "queries": 3,
                "symbols": 4,
            },
            "0:1,0:0,1:2,1:2,2:1,3:0,1:0,0:2,1:0,3:2,2:0,2:2,",
            ["0- -> 2", "1- -> 0", "3- -> 2"],
        ),
        (
            {"type": "mqar", "queries": 2},
            (
                "k13 v17 .7 .3 .0 .6 .3 .4 .1 .3 .1 .7 k22 v57 k58 v116 .3 .7 .7 .5 .4 .2 k54 v2 "
                "k70 v74 k115 v15 k61 v110 k14 v66"
            ),
            ["k13 -> v17", "k54 -> v2"],
        ),
    ],
)
def test_formats(settings: dict[str, Any], context: str, queries: list[str]) -> None:
    assert list(texts(build_task(settings), 1)) == [(context, queries)]


def test_the_paper_has_seventy_characters() -> None:
    """62 letters and digits, `!?:|` and four special tokens (GradMem's tokenizer)."""
    assert build_task({"type": "kv_retrieval"}).vocab_size == 70


def test_text_pairs_are_seven_characters_and_keys_are_unique() -> None:
    task = build_task({"type": "kv_retrieval", "pairs": 96})
    for row in task.dataset("test", 20, 0):
        context = task.decode(row["context_ids"])
        assert len(context) == 96 * 7 + 1
        assert len(set(re.findall(r"!(..):..!", context))) == 96


def test_punctuation_of_an_answer_does_not_count() -> None:
    task = build_task({"type": "kv_retrieval"})
    assert sorted(task.decode([token]) for token in task.ignored_ids) == ["!", "|"]
    assert not build_task({"type": "kv_retrieval", "format": "compact"}).ignored_ids


def test_lengths_and_alphabet_of_keys_and_values() -> None:
    task = build_task(
        {
            "type": "kv_retrieval",
            "alphabet": "xyz",
            "key_length": 3,
            "value_length": 1,
            "pairs": 27,
        }
    )
    context, _ = next(texts(task, 1))
    assert re.fullmatch(r"(![xyz]{3}:[xyz]!){27}\|", context)
    assert len(set(re.findall(r"!(...):", context))) == 27


def test_separate_symbols_for_keys_and_values() -> None:
    def symbols(separate: bool) -> tuple[set[int], set[int]]:
        task = build_task(
            {"type": "kv_retrieval", "format": "compact", "pairs": 16, "separate": separate}
        )
        contexts = np.array(task.dataset("test", 50, 0)["context_ids"])
        return set(contexts[:, 0::2].ravel().tolist()), set(contexts[:, 1::2].ravel().tolist())

    keys, values = symbols(separate=True)
    assert (len(keys), len(values), keys & values) == (16, 16, set())
    keys, values = symbols(separate=False)
    assert keys == values


def test_filler_is_told_apart_from_pairs() -> None:
    task = build_task({"type": "kv_retrieval", "format": "compact", "pairs": 3, "filler": 40})
    for row in task.dataset("test", 20, 0):
        fillers = [token for token in row["context_ids"] if token > 32]
        assert len(row["context_ids"]) == 46
        assert len(fillers) == 40


def test_remember_has_unique_keys_and_rewrite_asks_for_the_latest_value() -> None:
    remember = build_task({"type": "associative_retrieval", "key_size": 1, "pairs": 16})
    for context, _ in texts(remember, 20):
        assert len(set(re.findall(r"(.):.,", context))) == 16
    rewrite = build_task(
        {"type": "associative_retrieval", "mode": "rewrite", "pairs": 30, "queries": 4}
    )
    overwritten = 0
    for context, queries in texts(rewrite, 50):
        pairs = re.findall(r"(.):(.),", context)
        keys = []
        for query in queries:
            key, value = query.split("- -> ")
            assert value == [v for k, v in pairs if k == key][-1]
            overwritten += value != next(v for k, v in pairs if k == key)
            keys.append(key)
        assert len(set(keys)) == 4
    assert overwritten > 50


def test_rewrite_asks_again_where_there_are_too_few_keys() -> None:
    task = build_task(
        {
            "type": "associative_retrieval",
            "mode": "rewrite",
            "symbols": 2,
            "pairs": 8,
            "queries": 5,
        }
    )
    for context, queries in texts(task, 20):
        latest = dict(re.findall(r"(.):(.),", context))
        assert len(queries) == 5
        assert {query.split("- -> ")[0] for query in queries} <= set(latest)
        assert all(latest[query[0]] == query[-1] for query in queries)


def test_age_in_rewrite_is_that_of_the_latest_value() -> None:
    task = build_task({"type": "associative_retrieval", "mode": "rewrite", "pairs": 20})
    for row in task.dataset("test", 20, 0):
        pairs = re.findall(r"(.):(.),", task.decode(row["context_ids"]))
        key = task.decode(row["query_ids"][0][:1])
        age = [k for k, _ in reversed(pairs)].index(key)
        assert row["tags"]["age"] == [age]
        assert row["tags"]["distance"] == [4 * age]


def test_mqar_asks_for_every_key_unless_told() -> None:
    task = build_task({"type": "mqar", "pairs": 5})
    context, queries = next(texts(task, 1))
    keys = [query.split()[0] for query in queries]
    assert sorted(keys) == sorted(word for word in context.split() if word[0] == "k")


def test_mqar_slots_follow_the_power_law() -> None:
    rng = np.random.default_rng(0)
    first = power_law(rng, 40_000, 1, 8, 0.25).ravel()
    expected = np.arange(1, 9) ** -0.75
    assert np.bincount(first) / 40_000 == pytest.approx(expected / expected.sum(), abs=0.01)
    several = power_law(rng, 100, 5, 8, 0.25)
    assert (np.diff(several, axis=1) > 0).all()


def test_chance_of_a_guess_among_the_values() -> None:
    values = np.array([[[1, 2], [1, 2], [1, 3], [4, 4]]])
    answers = np.array([[[1, 2], [4, 4], [2, 1]]])
    assert chance_of(values, answers).tolist() == [[0.5, 0.25, 0.0]]


def test_guessing_among_seen_values_reaches_the_floor() -> None:
    task = build_task({"type": "kv_retrieval", "format": "compact", "pairs": 5})
    rows, rng = task.dataset("validation", 4000, 0), np.random.default_rng(0)
    hits = [row["query_ids"][0][1] == rng.choice(row["context_ids"][1::2]) for row in rows]
    assert np.mean(hits) == pytest.approx(task.floors(rows)["floor/guess_seen"], abs=0.025)


class TwoTokens:
    """A tokenizer of a pretrained backbone: every letter and digit, one token each, from 100 on."""

    pad_token_id, eos_token_id = None, 7

    def __init__(self, characters: str) -> None:
        self.vocabulary = {character: 100 + i for i, character in enumerate(characters)}

    def __len__(self) -> int:
        return 500

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def test_symbols_are_tokens_of_a_pretrained_backbone() -> None:
    tokenizer = TwoTokens("0123456789abcdef:,-")
    own = build_task({"type": "associative_retrieval"})
    task = build_task({"type": "associative_retrieval"}, tokenizer=tokenizer)
    assert (task.vocab_size, task.pad_id) == (500, 7)
    assert list(texts(task, 3)) == list(texts(own, 3))
    assert min(task.dataset("test", 1, 0)[0]["context_ids"]) >= 100


def test_a_tokenizer_without_the_symbols_is_an_error() -> None:
    with pytest.raises(SpecError, match="has no token ':'"):
        build_task({"type": "associative_retrieval"}, tokenizer=TwoTokens("0123456789abcdef,-"))
