"""Scores of models that are known beforehand: one that knows every answer, and guessers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from memarch.arch.build import build_model
from memarch.studies.tasks.base import Task, build_task
from memarch.studies.training.evaluation import _slices, evaluate

BABI = str(Path(__file__).parents[2] / "data" / "babi")
TASKS: dict[str, dict[str, Any]] = {
    "kv text": {"type": "kv_retrieval", "pairs": 6, "queries": 2},
    "kv compact": {"type": "kv_retrieval", "format": "compact", "pairs": 4, "value_length": 2},
    "rewrite": {"type": "associative_retrieval", "mode": "rewrite", "pairs": 10},
    "mqar": {"type": "mqar", "vocab": 32, "pairs": 5},
    "babi": {"type": "babi", "data": BABI, "task": ["qa1", "qa8"], "set": "en"},
}

Choose = Callable[[Tensor, list[int], int], int]
"""(context, the query so far, the right token) -> the token to put first."""


class State(SimpleNamespace):
    """What `write` of a stand-in returns: the contexts."""

    contexts: Tensor

    def repeat(self, count: int) -> State:
        return State(contexts=self.contexts.repeat_interleave(count, dim=0))


class StandIn(nn.Module):
    """Obeys the contract of a memarch model; its first choice is what `choose` says."""

    def __init__(self, vocab_size: int, choose: Choose, sure: float = 20.0) -> None:
        super().__init__()
        self.vocab_size, self.choose, self.sure = vocab_size, choose, sure
        self.queries = 0
        self.answers: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        context_ids: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> SimpleNamespace:
        rows = []
        for row, position in (labels[:, 1:] != -100).nonzero().tolist():
            right = int(labels[row, position + 1])
            if context_ids is None:
                rows.append(self.choose(input_ids[row], [], right))
                continue
            context = context_ids[row * len(context_ids) // len(input_ids)]
            query = input_ids[row, : position + 1].tolist()
            rows.append(self.choose(context, query, right))
            self.answers.setdefault((tuple(context.tolist()), tuple(query)), []).append(rows[-1])
        logits = torch.zeros(len(rows), self.vocab_size)
        logits[torch.arange(len(rows)), torch.tensor(rows)] = self.sure
        return SimpleNamespace(logits=logits)

    def write(self, context_ids: Tensor, attention_mask: Tensor) -> State:
        return State(contexts=context_ids)

    def generate(
        self, prompts: Tensor, attention_mask: Tensor, memory: State, max_new_tokens: int, **_: Any
    ) -> Tensor:
        assert len(prompts) == len(memory.contexts)
        self.queries += len(prompts)
        out = []
        for prompt, mask, context in zip(prompts, attention_mask, memory.contexts, strict=True):
            assert mask[-1] == 1, "prompts end where answers begin"
            query = prompt[mask.bool()].tolist()
            new: list[int] = []
            for _step in range(max_new_tokens):
                known = self.answers.get((tuple(context.tolist()), (*query, *new)), [0])
                new.append(known[0])
            out.append(new)
        return torch.cat([prompts, torch.tensor(out)], dim=1)


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return build_task(TASKS[request.param])


def run(model: nn.Module, task: Task, size: int, **options: Any) -> dict[str, float]:
    rows = task.dataset("validation", size, 0)
    return evaluate(model, task, rows, batch_size=16, device="cpu", **options)


def test_a_model_that_knows_scores_one(task: Task) -> None:
    oracle = StandIn(task.vocab_size, lambda context, query, right: right)
    metrics = run(oracle, task, 50, generate=True)
    for name in ("exact_match", "exact_match_generated", "token_accuracy"):
        assert metrics[name] == 1.0, name
    assert metrics["loss"] < 1e-3
    slices = {name: value for name, value in metrics.items() if name.startswith("exact_match/")}
    assert slices
    assert set(slices.values()) == {1.0}


def test_a_model_that_is_always_wrong_scores_zero(task: Task) -> None:
    wrong = StandIn(task.vocab_size, lambda context, query, right: (right + 1) % task.vocab_size)
    metrics = run(wrong, task, 30, generate=True)
    for name in ("exact_match", "exact_match_generated", "token_accuracy"):
        assert metrics[name] == 0.0, name
    assert metrics["loss"] > 10


def test_a_guess_among_all_values_scores_the_blind_floor() -> None:
    task = build_task({"type": "kv_retrieval", "format": "compact", "pairs": 3, "alphabet": 4})
    rng = np.random.default_rng(0)
    values = sorted({token for row in sampled(task) for token in row["context_ids"][1::2]})
    assert len(values) == 4
    guesser = StandIn(task.vocab_size, lambda context, query, right: int(rng.choice(values)))
    metrics = run(guesser, task, 1500)
    assert metrics["floor/blind"] == 0.25
    assert metrics["exact_match"] == pytest.approx(0.25, abs=0.04)


def test_a_guess_among_the_values_seen_scores_that_floor() -> None:
    task = build_task({"type": "kv_retrieval", "format": "compact", "pairs": 3, "alphabet": 32})
    rng = np.random.default_rng(0)

    def guess(context: Tensor, query: list[int], right: int) -> int:
        return int(rng.choice(context[1::2]))

    metrics = run(StandIn(task.vocab_size, guess), task, 1500)
    assert metrics["floor/guess_seen"] == pytest.approx(1 / 3 + 2 / 3 / 32, abs=0.01)
    assert metrics["exact_match"] == pytest.approx(metrics["floor/guess_seen"], abs=0.04)
    assert metrics["floor/blind"] == 1 / 32


def sampled(task: Task) -> Any:
    return task.dataset("validation", 50, 0)


def test_a_loss_of_equal_odds_is_the_logarithm_of_the_vocabulary(task: Task) -> None:
    uniform = StandIn(task.vocab_size, lambda context, query, right: 0, sure=0.0)
    assert run(uniform, task, 20)["loss"] == pytest.approx(math.log(task.vocab_size), rel=1e-5)


def test_one_wrong_token_spoils_an_answer_and_punctuation_does_not() -> None:
    task = build_task({"type": "kv_retrieval", "pairs": 2})
    bang, bar = task.dataset("test", 1, 0)[0]["query_ids"][0][-2:]

    def only(wrong: Callable[[list[int]], bool]) -> dict[str, float]:
        model = StandIn(task.vocab_size, lambda _, query, right: 9 if wrong(query) else right)
        return run(model, task, 20, generate=True)

    assert task.decode([bang, bar]) == "!|"
    # The answer is `v v ! |` after the five tokens of `?!kk:`.
    punctuation = only(lambda query: len(query) >= 7)
    assert (punctuation["exact_match"], punctuation["exact_match_generated"]) == (1.0, 1.0)
    assert punctuation["token_accuracy"] == 1.0
    second = only(lambda query: len(query) == 6)
    assert second["exact_match"] < 0.1
    assert second["exact_match_generated"] < 0.1
    assert second["token_accuracy"] == pytest.approx(0.5, abs=0.05)


def test_batch_size_changes_nothing(task: Task) -> None:
    def metrics(batch_size: int) -> dict[str, float]:
        rng = np.random.default_rng(0)
        model = StandIn(
            task.vocab_size, lambda context, query, right: right if rng.random() < 0.7 else 1
        )
        rows = task.dataset("validation", 21, 0)
        return evaluate(model, task, rows, batch_size=batch_size, generate=True, device="cpu")

    assert metrics(4) == pytest.approx(metrics(100))


def test_slices_are_bins_of_powers_of_two() -> None:
    values = np.array([0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32])
    score = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1], dtype=float)
    assert _slices("m", score, values) == {
        "m/0": 1.0,
        "m/1": 1.0,
        "m/2-3": 0.5,
        "m/4-7": 0.0,
        "m/8-15": 1.0,
        "m/16-31": 0.5,
        "m/32-63": 1.0,
    }


def test_slices_of_a_model_that_remembers_only_the_last_pair() -> None:
    task = build_task({"type": "kv_retrieval", "format": "compact", "pairs": 8})

    def last_pair(context: Tensor, query: list[int], right: int) -> int:
        return right if int(context[-2]) == query[0] else 0

    metrics = run(StandIn(task.vocab_size, last_pair), task, 200)
    assert metrics["exact_match/age/0"] == 1.0
    assert metrics["exact_match/distance/0"] == 1.0
    assert metrics["exact_match/age/1"] == metrics["exact_match/age/4-7"] == 0.0
    assert metrics["exact_match"] == metrics["exact_match/facts/8-15"]


def test_language_modelling_has_loss_perplexity_and_bits_per_byte(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("ab" * 2000)
    task = build_task({"type": "text", "data": str(tmp_path / "corpus.txt"), "length": 9})
    uniform = StandIn(task.vocab_size, lambda context, query, right: 0, sure=0.0)
    metrics = run(uniform, task, 20, generate=True)
    assert metrics == pytest.approx(
        {
            "loss": math.log(257),
            "perplexity": 257,
            "bits_per_byte": math.log2(257),
            "floor/blind": -math.log(1801 / (3600 + 257)),
        },
        rel=1e-5,
    )


@pytest.fixture(scope="module")
def real_model() -> Any:
    task = build_task(TINY)
    spec = {
        "backbone": {
            "type": "llama",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        "memory": {"main": {"type": "rmt", "num_tokens": 2}},
        "segment_length": 4,
    }
    return build_model(spec, vocab_size=task.vocab_size, seed=0).eval()


TINY = {"type": "kv_retrieval", "format": "compact", "pairs": 2, "alphabet": 2, "queries": 2}


def test_both_exact_matches_agree_on_a_real_model(real_model: Any) -> None:
    """Forced tokens are all the first choice exactly when the greedy answer is right."""
    task = build_task(TINY | {"value_length": 2, "alphabet": 2})
    with torch.no_grad():  # make it choose among symbols, so that it is sometimes right
        real_model.backbone.get_output_embeddings().weight[0] = 0
    metrics = run(real_model, task, 60, generate=True)
    assert metrics["exact_match"] == metrics["exact_match_generated"]
    assert 0 <= metrics["exact_match"] <= 0.6
    assert metrics["floor/blind"] == 0.25


def test_a_real_model_scores_the_same_one_sample_at_a_time(real_model: Any) -> None:
    task = build_task(TINY)
    rows = task.dataset("validation", 12, 0)
    one = evaluate(real_model, task, rows, batch_size=1)
    many = evaluate(real_model, task, rows, batch_size=12)
    assert one == pytest.approx(many, rel=1e-4)
