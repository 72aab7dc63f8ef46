"""The JSON Schema accepts the studies that ship and the template, and refuses misspelt keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from memarch.schema import study_schema


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(json.dumps(study_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def read(text: str) -> Any:
    return json.loads(json.dumps(YAML(typ="safe").load(text)))


def test_what_ships_is_accepted(validator: Any, repository: Path) -> None:
    files = sorted((repository / "search_spaces").glob("*.yaml"))
    assert files
    for file in [*files, repository / "memarch" / "templates" / "study.yaml"]:
        errors = [error.message for error in validator.iter_errors(read(file.read_text()))]
        assert errors == [], file.name


@pytest.mark.parametrize(
    "text",
    [
        "trian: {lr: 1}",
        "train: {lrr: 1}",
        "train: {batch_size: eight}",
        "study: {design: serach}",
        "model: {memory: {main: {type: rmt, num_tokenz: 4}}}",
        "variants: {a: {model.memory.main: {type: rmt, num_tokenz: 4}}}",
        "task: {type: kv_retrieval, paris: 4}",
        "eval: {kv: {split: test}}",
        "ablation: {baselin: gradmem}",
        "ablation: {changes: {small: {drop: model.memory.main}}}",
    ],
)
def test_mistakes_are_found(validator: Any, text: str) -> None:
    assert not validator.is_valid(read(text))


@pytest.mark.parametrize(
    "text",
    [
        "train: {lr: {float: [1e-3, 1e-2], log: true}, batch_size: $size}",
        "train.lr: 0.1",
        "model: {memory: {main: {store: {type: tokens, num_tokens: 4}, write: {type: gradient}}}}",
        "model: {memory: {main: {type: someone_elses, anything: 4}}}",
        "study: {constraints: {cost/state_bytes: {max: 64KiB}}}",
        "task: {pairs: 4}",
        "study: {warm_start: [earlier, {study: other, top: 5}], racing: true}",
        "study: {racing: {after: 3}, first: [{variant: rmt, num_tokens: 2}]}",
        "study: {pruner: {type: domination, by: 2}}",
        "variants: {winner: {extends: {study: earlier, trial: best}, train.lr: 0.1}}",
    ],
)
def test_what_the_yaml_allows_is_accepted(validator: Any, text: str) -> None:
    assert [error.message for error in validator.iter_errors(read(text))] == []
