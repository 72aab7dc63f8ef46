"""What `memarch study diff` tells two studies apart by: their sections, variants, and results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ablation_documents import LOSS, MATCH, document

from memarch.search_spaces.study_file import StudyFile
from memarch.studies.driver.redefining import refusal
from memarch.studies.records.differences import Difference, best_rows, study_differences
from memarch.studies.settings.spec import load_study

BASE = """
study: {design: DESIGN, objective: {eval/kv/exact_match: maximize}}
variants:
  rmt: {model.memory.main: {type: rmt, num_tokens: SIZE}}
task: {type: kv_retrieval, pairs: 2, format: compact, alphabet: 4}
model:
  backbone: {type: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}
  segment_length: 4
train: {budget: {steps: 2}, batch_size: 4}
eval: {kv: {task: same, size: 8}}
"""
Load = Callable[..., StudyFile]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def made(text: str = "", *, design: str = "all", size: str = "2") -> StudyFile:
        (tmp_path / "base.yaml").write_text(BASE.replace("DESIGN", design).replace("SIZE", size))
        (tmp_path / "file.yaml").write_text(f"extends: base.yaml\n{text}\n")
        return load_study(tmp_path / "file.yaml", ())

    return made


def told(old: StudyFile, new: StudyFile) -> dict[str, tuple[Any, Any]]:
    return {one.path: (one.old, one.new) for one in study_differences(old, new)}


def test_a_variant_that_one_study_has_is_told_as_it_was_written(load: Load) -> None:
    written = {"model": {"memory": {"main": {"type": "armt", "d_mem": {"choice": [4, 8]}}}}}
    with_armt = load(
        "variants: {armt: {model.memory.main: {type: armt, d_mem: {choice: [4, 8]}}},"
        " none: {model.memory: {}}}"
    )
    added = told(load(), with_armt)
    assert added["variants.armt"] == (None, written)
    assert added["variants.none"] == (None, {"model": {"memory": {}}})
    assert told(with_armt, load())["variants.armt"] == (written, None)
    (shown,) = [str(d) for d in study_differences(load(), with_armt) if "armt" in d.path]
    assert shown.startswith("variants.armt: - -> {model: {memory: {main: {type: armt, ")


def test_sizes_differ_by_what_is_asked_for_and_not_by_what_was_solved(load: Load) -> None:
    def sized(levels: str, marks: str = "[1, 64]", tolerance: str = "5%") -> StudyFile:
        text = f"match: {{cost/state_floats: {levels}, tolerance: {tolerance}}}"
        return load(text, size=f"{{solve: {marks}}}")

    first = sized("[32, 64]")
    assert told(first, sized("[32, 64]")) == {}
    assert told(first, sized("[64, 128]")) == {
        "match.levels": ([32, 64], [64, 128]),
        "search.match.level.choice": ([32, 64], [64, 128]),
    }
    assert told(first, sized("[32, 64]", tolerance="10%")) == {"match.tolerance": (0.05, 0.1)}
    marked = told(first, sized("[32, 64]", "[1, 32]"))
    assert marked == {"solve.model.memory.main.num_tokens.solve": ([1, 64], [1, 32])}
    plain = told(load(), first)
    assert plain["match"] == (
        None,
        {"cost": "cost/state_floats", "levels": [32, 64], "tolerance": 0.05},
    )
    assert plain["model.memory.main.num_tokens"] == (2, None)


def test_ablations_differ_by_baseline_settings_and_equivalence(load: Load) -> None:
    def ablation(text: str) -> StudyFile:
        return load(f"ablation: {text}", design="ablation")

    first = ablation("{baseline: rmt, changes: {none: {remove: model.memory.main}}}")
    second = ablation(
        "{baseline: rmt, equivalence: 0.01, changes: {none: {remove: model.memory.main},"
        " more: {set: {model.memory.main.num_tokens: 4}}}}"
    )
    assert told(first, first) == {}
    assert told(first, second) == {
        "ablation.settings.more": (None, "model.memory.main.num_tokens: 4"),
        "ablation.equivalence": (None, 0.01),
    }
    against = told(load(), first)
    assert against["study.design"] == ("all", "ablation")
    assert against["ablation"][1]["baseline"] == "rmt"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("ablation.equivalence", ""),
        ("match.tolerance", ""),
        ("ablation.settings.more", "its settings are the variants, which stay as they began"),
        ("variants.more", "they are one categorical choice, which stays as it began"),
        ("match.levels", "the trials so far ran with the old value"),
        ("solve.model.memory.main.num_tokens.solve", "the trials so far ran with the old value"),
    ],
)
def test_what_of_these_a_resumed_study_may_change(path: str, why: str) -> None:
    study = {"design": "ablation", "sampler": {"type": "tpe"}}
    assert refusal(Difference(path, 1, 2), study) == why


def test_results_are_of_the_best_setting_by_its_mean_as_show_ranks_them() -> None:
    old = document({"steady": [0.8, 0.8, 0.8], "lucky": [1.0, 0.1, 0.1]})
    for row in old["trials"]:  # two settings of one variant
        row["params"], row["variant"] = {"n": row["variant"]}, "rmt"
    new = document({"rmt": [0.5, 0.6, None]})
    (row,) = best_rows(old, new)
    assert (row["variant"], row["metric"]) == ("rmt", MATCH)
    assert (row["old"], row["new"]) == (pytest.approx(0.8), pytest.approx(0.55))
    rows = best_rows(document({"a": [2.0, 3.0]}, metric=LOSS), document({"b": [1.0]}, metric=LOSS))
    assert [(row["variant"], row["old"], row["new"]) for row in rows] == [
        ("a", 2.5, None),
        ("b", None, 1.0),
    ]
