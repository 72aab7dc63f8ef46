"""Values that training draws for every batch: in files, in batches, in resumed runs and stages."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memarch.components.errors import SpecError
from memarch.search_spaces.ranges import as_written, parse_range
from memarch.search_spaces.study_file import StudyFile
from memarch.studies.settings.spec import load_study
from memarch.studies.training.points import eval_points, make_task
from memarch.studies.training.sampled_batches import draw, training_batches
from memarch.studies.training.session import Session
from memarch.studies.training.stages import stage_specs
from memarch.studies.training.trainer import SessionTrainer
from memarch.studies.training.training import train

GOOD = """
study: {name: good, budget: {trials: 4}, seeds: {data: 5}}
task: {type: kv_retrieval, pairs: {sample: {int: [2, 8]}}, format: compact}
model:
  backbone: {type: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}
  memory: {main: {type: rmt, num_tokens: 2}}
  segment_length: 8
train: {budget: {steps: 6}, batch_size: 4, eval_every: 100}
eval: {kv: {size: 8}}
"""
Load = Callable[..., StudyFile]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(GOOD)

    def load_text(text: str = "", *sets: str, **more: Any) -> StudyFile:
        Path("case.yaml").write_text("extends: good.yaml\n" + text)
        return load_study("case.yaml", sets, **more)

    return load_text


def batches(spec: dict[str, Any], start: int, count: int) -> list[dict[str, torch.Tensor]]:
    task = make_task(spec["task"], spec["model"])
    return list(itertools.islice(training_batches(spec, task, 4, 5, start), count))


def pairs(found: list[dict[str, torch.Tensor]]) -> list[int]:
    return [batch["context_ids"].shape[1] // 2 for batch in found]


def same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    assert len(one) == len(other)
    return all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(one, other, strict=True)
    )


# Files


def test_a_spec_holds_evaluations_values_and_what_training_draws(load: Load) -> None:
    file = load("eval: {more: {task: {pairs: 12}}, each: {sweep: {task.pairs: [2, 3]}}}")
    assert file.validate() == []
    assert file.space() == {}
    spec = json.loads(json.dumps(file.resolve().spec))
    assert spec["task"]["pairs"] == 8
    assert spec["train"]["sample"] == [{"keys": ["task.pairs"], "range": {"int": [2, 8]}}]
    evaluated = {point.prefix: point.task["pairs"] for point in eval_points(spec)}
    assert evaluated == {"kv": 8, "more": 12, "each": 8, "each/pairs-2": 2, "each/pairs-3": 3}


def test_without_sampling_a_spec_says_nothing_of_it(load: Load) -> None:
    assert "sample" not in load("task: {pairs: 8}").resolve().spec["train"]


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("{choice: [4, 2, 3]}", 3, {"choice": [4, 2, 3]}),
        ("{choice: [1, 1k]}", 1000, {"choice": [1, 1000]}),
        ("{int: [2, $most], log: true}", 6, {"int": [2, 6], "log": True}),
        ("{int: [2, 9], step: 3}", 8, {"int": [2, 9], "step": 3}),
    ],
)
def test_ranges(load: Load, text: str, value: int, expected: dict[str, Any]) -> None:
    file = load(f"vars: {{most: 6}}\ntask: {{filler: {{sample: {text}}}, pairs: 4}}")
    spec = file.resolve().spec
    assert spec["task"]["filler"] == value
    assert spec["train"]["sample"] == [{"keys": ["task.filler"], "range": expected}]


def test_hashes_tell_sampling_apart(load: Load) -> None:
    texts = ["", "{sample: {int: [3, 8]}}", "{sample: {int: [2, 9]}}", "8"]
    hashes = [load(f"task: {{pairs: {text}}}" if text else "").resolve().hash for text in texts]
    assert len(set(hashes)) == 4
    var = load("vars: {n: {sample: {int: [2, 8]}}}\ntask: {pairs: $n}")
    assert var.resolve().hash == hashes[0]
    assert var.resolve().spec["vars"] == {"n": 8}
    assert load("", "task.pairs=8").resolve().hash == hashes[3]


def test_keys_of_one_var_are_drawn_together(load: Load) -> None:
    file = load("vars: {n: {sample: {int: [1, 4]}}}\ntask: {pairs: $n, queries: $n}")
    assert file.validate() == []
    spec = file.resolve().spec
    assert [entry["keys"] for entry in spec["train"]["sample"]] == [["task.pairs", "task.queries"]]
    found = batches(spec, 0, 12)
    assert pairs(found) == [len(batch["input_ids"]) // 4 for batch in found]
    assert set(pairs(found)) == {1, 2, 3, 4}


def test_beside_a_searched_value(load: Load) -> None:
    file = load("task: {queries: {int: [1, 2]}}")
    assert list(file.space()) == ["queries"]
    assert file.validate() == []
    with pytest.raises(SpecError, match=r"must be at most pairs, 2, got 3 \(when a batch has"):
        load("task: {queries: {int: [1, 3]}}").validate()


def test_a_file_that_extends_such_a_trial_samples_too(load: Load) -> None:
    stages = "train: {stages: [{set: {task.pairs: {sample: {int: [2, 3]}}}, steps: 2}]}\n"
    shared = "vars: {n: {sample: {int: [1, 4]}}}\ntask: {pairs: $n, queries: $n}\n"
    for text in (stages, shared):
        first = load(text).resolve()
        Path("next.yaml").write_text("extends: {study: good, trial: 0}\n")
        again = load_study("next.yaml", find_trial=lambda name, trial, one=first: one.record)
        assert again.resolve().spec["train"] == first.spec["train"]
        assert again.resolve().spec["task"] == first.spec["task"]


# Batches


def test_values_vary_and_batches_depend_on_their_number_alone(load: Load) -> None:
    spec = load().resolve().spec
    found = batches(spec, 0, 40)
    assert set(pairs(found)) == set(range(2, 9))
    assert same(found, batches(spec, 0, 40))
    assert same(found[17:], batches(spec, 17, 23))


def test_a_batch_is_that_of_the_task_with_the_drawn_values(load: Load) -> None:
    spec = load().resolve().spec
    for number, batch in enumerate(batches(spec, 0, 5)):
        task = make_task(spec["task"] | {"pairs": pairs([batch])[0]}, spec["model"])
        assert same([batch], [next(task.batches("train", 4, 5, number))])


@pytest.mark.parametrize(
    "written",
    [
        {"choice": ["a", 2, [3]]},
        {"int": [3, 9], "step": 2},
        {"int": [1, 64], "log": True},
        {"float": [0.5, 1.5]},
        {"float": [0.0, 1.0], "step": 0.25},
        {"float": [0.01, 10.0], "log": True},
        {"subset": [1, 2, 3], "size": [1, 2]},
    ],
)
def test_draws_lie_in_the_range_and_reach_its_ends(written: dict[str, Any]) -> None:
    known = parse_range(written)
    assert as_written(known) == written
    values = [draw(known, np.random.default_rng(seed)) for seed in range(400)]
    assert all(known.contains(value) for value in values)
    grid = known.grid()
    if grid is not None and len(grid) < 20:
        assert all(value in values for value in grid)
    if written.get("log"):
        middle = np.sqrt(np.prod(next(iter(written.values()))))
        assert 0.4 < sum(value < middle for value in values) / len(values) < 0.6
    json.dumps(values)


def test_the_vocabulary_cannot_change(load: Load, tmp_path: Path) -> None:
    spec = load("task: {pairs: 2, alphabet: {sample: {int: [4, 8]}}}").resolve().spec
    with pytest.raises(SpecError, match="must not change the task's vocabulary") as caught:
        Session(spec, tmp_path / "run", lambda step, metrics: False)
    assert caught.value.path == "task.alphabet"


# Training


class KilledError(Exception):
    """What stands for a killed process."""


def test_a_resumed_run_sees_the_same_batches(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = load("train: {accumulate: 2, checkpoint_every: 2}\nstudy: {seeds: {model: 1}}")
    spec = file.resolve().spec
    seen: list[list[int]] = []
    count = Session.count

    def record(self: Session, found: list[dict[str, torch.Tensor]]) -> None:
        seen.append([int(batch["context_ids"].sum()) for batch in found] + pairs(found))
        count(self, found)

    monkeypatch.setattr(Session, "count", record)
    whole = train(spec, tmp_path / "whole", lambda step, metrics: False)
    uninterrupted, seen[:] = list(seen), []
    after_step = Session.after_step

    def kill(self: Session) -> bool:
        over = after_step(self)
        if self.progress.spent.steps == 3:
            raise KilledError
        return over

    with monkeypatch.context() as patch:
        patch.setattr(Session, "after_step", kill)
        session = Session(spec, tmp_path / "cut", lambda step, metrics: False)
        with pytest.raises(KilledError):
            SessionTrainer(session).train()
    assert seen == uninterrupted[:3]
    seen.clear()
    cut = train(spec, tmp_path / "cut", lambda step, metrics: False)
    assert cut["resumed_at"] == 2
    assert seen == uninterrupted[2:]
    scores = [one["metrics"]["eval/kv/loss"] for one in (whole, cut)]
    assert scores[0] == scores[1]


def test_stages_override_sampling(load: Load, tmp_path: Path) -> None:
    file = load(
        "vars: {most: 8, length: {sample: {choice: [0, 2]}}}\n"
        "task: {pairs: {sample: {int: [2, $most]}}, filler: $length}\n"
        "train:\n"
        "  stages:\n"
        "    - {set: {task.pairs: 8}, steps: 1}\n"
        "    - {set: {vars.most: 3}, steps: 1}\n"
        "    - {set: {vars.length: 2, task.pairs: {sample: {choice: [5, 6]}}}, steps: 1}\n"
    )
    assert file.validate() == []
    spec = json.loads(json.dumps(file.resolve().spec))
    filler = {"keys": ["task.filler"], "range": {"choice": [0, 2]}}
    drawn = [one["train"]["sample"] for one in stage_specs(spec)]
    assert drawn == [
        [filler],
        [filler, {"keys": ["task.pairs"], "range": {"int": [2, 3]}}],
        [{"keys": ["task.pairs"], "range": {"choice": [5, 6]}}],
        [filler, {"keys": ["task.pairs"], "range": {"int": [2, 8]}}],
    ]
    assert [one["task"]["pairs"] for one in stage_specs(spec)] == [8, 3, 6, 8]
    session = Session(spec, tmp_path / "run", lambda step, metrics: False)
    lengths = {next(session.stage.batches)["context_ids"].shape[1] for _ in range(20)}
    assert lengths == {16, 18}


def test_a_stage_of_a_plain_spec_overrides_sampling(load: Load) -> None:
    spec = load().resolve().spec
    spec["train"]["stages"] = [{"set": {"task.pairs": 4}, "steps": 1}]
    first, last = stage_specs(spec)
    assert set(pairs(batches(first, 0, 10))) == {4}
    assert len(set(pairs(batches(last, 0, 10)))) > 1
