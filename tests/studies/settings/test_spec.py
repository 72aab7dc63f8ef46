"""The sections of a study file: checks across sections, the JSON Schema, and what reading costs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

import memarch.search_spaces as shipped
from memarch.arch.spec import parse_model_spec
from memarch.components.errors import SpecError
from memarch.schema import study_schema
from memarch.studies.settings.spec import TrialSpec, load_study

STUDIES = sorted(Path(shipped.__path__[0]).glob("*.yaml"))
PLAIN: dict[str, Any] = {
    "task": {"type": "kv_retrieval", "pairs": 4, "format": "compact"},
    "model": {
        "backbone": {
            "type": "llama",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "memory": {"main": {"type": "rmt", "num_tokens": 2}},
        "segment_length": 16,
    },
    "train": {"budget": {"steps": 10}},
    "eval": {"kv": {}},
}


def parse(**sections: Any) -> dict[str, Any]:
    return TrialSpec.parse(PLAIN | sections)


def test_a_parsed_spec_parses_to_itself() -> None:
    spec = parse(
        study={"pruner": {"type": "median"}, "constraints": {"cost/state_bytes": {"max": "64KiB"}}},
        train={"budget": {"hours": "12h"}, "lr": {"memory": 1, "backbone": 0.5}, "warmup": "5%"},
    )
    again = TrialSpec.parse(json.loads(json.dumps(spec)))
    assert again == spec
    assert parse_model_spec(spec["model"]).canonical() == spec["model"]


@pytest.mark.parametrize(
    ("sections", "path", "fragment"),
    [
        (
            {"study": {"objective": {"test/kv/exact_match": "maximize"}}},
            "study.objective.test/kv/exact_match",
            "use 'eval/kv/exact_match'",
        ),
        (
            {"study": {"objective": {"exact_match": "maximize"}}},
            "study.objective.exact_match",
            "must be a metric's name",
        ),
        (
            {"study": {"objective": {"eval/kv": "maximize"}}},
            "study.objective.eval/kv",
            "there are: exact_match",
        ),
        (
            {"study": {"constraints": {"eval/vk/loss": {"max": 1}}}},
            "study.constraints.eval/vk/loss",
            "did you mean 'kv'",
        ),
        (
            {"study": {"pruner": {"type": "median", "on": "eval/vk/loss"}}},
            "study.pruner.on",
            "did you mean 'kv'",
        ),
        (
            {"train": {"budget": {"steps": 1}, "early_stop": {"on": "eval/vk/loss"}}},
            "train.early_stop.on",
            "did you mean 'kv'",
        ),
        (
            {"train": {"budget": {"steps": 1, "tokens": 5}}},
            "train.budget",
            "got steps and tokens",
        ),
        ({"eval": {"kv": {"task": "other"}}}, "eval.kv.task", "must be `same` or a map"),
        ({"eval": {"kv": {"task": {"pears": 2}}}}, "eval.kv.task.pears", "'pairs'"),
        ({"eval": {"a b": {}}}, "eval.a b", "text like"),
        ({"eval": {"kv": {"sweep": {"vars.n": []}}}}, "eval.kv.sweep.vars.n", "at least 1"),
    ],
)
def test_checks_across_sections(sections: dict[str, Any], path: str, fragment: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(**sections)
    assert caught.value.path == path
    assert fragment in caught.value.message


def test_metrics_inside_a_sweep_and_of_generation_may_be_objectives() -> None:
    for name, settings in (
        ("eval/kv/write_steps-2/exact_match", {"sweep": {"task.pairs": [1]}}),
        ("eval/kv/exact_match_generated", {"generate": True}),
    ):
        assert parse(study={"objective": {name: "maximize"}}, eval={"kv": settings})


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_studies_that_ship_are_valid(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BABI", str(Path(__file__).parents[2] / "data" / "babi"))
    study = load_study(file, ["task.set=en"] if file.stem == "babi" else [])
    study.validate()
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    raw = YAML(typ="safe").load(file)
    assert [error.message for error in _errors(schema, raw)] == []


@pytest.mark.parametrize(
    ("section", "value", "right"),
    [
        ("train", {"budget": {"steps": 1}, "lr": {"float": [0.1, 0.2], "log": True}}, True),
        ("train", {"budget": {"steps": 1}, "lr": "$rate"}, True),
        ("train", {"budget": {"tokens": "3.2B"}}, True),
        ("train", {"budget": {"steps": 1}, "lr": "fast"}, False),
        ("train", {"budget": {"steps": 1}, "rate": 0.1}, False),
        ("study", {"sampler": {"type": "tpe", "n_startup_trials": 3}}, True),
        ("task", {"type": "kv_retrieval", "pairs": {"int": [1, 4]}}, True),
        ("task", {"type": "kv_retrieval", "pears": 4}, False),
        ("model", {"memory": {"main": {"type": "rmt", "num_tokens": "=hidden_size // 8"}}}, True),
        ("model", {"memory": {"main": {"type": "rmt", "num_token": 3}}}, False),
        ("eval", {"kv": {"split": "test"}}, False),
        ("trian", {}, False),
    ],
)
def test_the_json_schema_knows_what_is_right(section: str, value: Any, right: bool) -> None:
    schema = study_schema()
    if section == "model":
        value = {"backbone": {"type": "llama"}, "segment_length": 16, **value}
    assert (not list(_errors(schema, {section: value}))) == right


def test_every_setting_has_a_description() -> None:
    schema = study_schema()
    for section in ("study", "train", "eval", "resource"):
        for name, setting in schema["$defs"][f"{section.title()}Settings"]["properties"].items():
            assert setting.get("description"), f"{section}.{name}"


def _errors(schema: dict[str, Any], document: Any) -> Iterator[jsonschema.ValidationError]:
    return jsonschema.Draft202012Validator(schema).iter_errors(document)


def test_reading_and_validating_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from memarch.studies.settings.spec import load_study\n"
        "load_study(sys.argv[1]).validate()\n"
        "heavy = {'transformers', 'optuna', 'ray', 'mlflow', 'datasets', 'peft', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    quickstart = next(file for file in STUDIES if file.stem == "quickstart")
    subprocess.run([sys.executable, "-c", code, str(quickstart)], check=True)
