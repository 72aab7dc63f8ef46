"""What every kind of change in `ablation:` makes of the baseline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memarch.search_spaces.study_file import StudyFile
from memarch.studies.records.snapshot import read_snapshot, write_snapshot
from memarch.studies.settings.spec import load_study

GOOD = """
study: {design: ablation, seeds: {model: [1, 2, 3, 4, 5, 6]}}
vars: {num_tokens: 4}
variants:
  gradmem: {model.memory.main: {type: gradmem, num_tokens: $num_tokens, write: {steps: 2}}}
  rmt: {model.memory.main: {type: rmt, num_tokens: $num_tokens}}
task: {type: kv_retrieval, pairs: 4, format: compact}
model:
  backbone: {type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4}
  memory: {cache: {type: full_attention}}
  segment_length: 16
train: {budget: {steps: 20}, lr: {float: [1e-4, 1e-2], log: true}}
eval: {kv: {}}
"""
Load = Callable[..., StudyFile]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load an `ablation:` in flow style over the good file above."""
    (tmp_path / "good.yaml").write_text(GOOD)

    def load_text(text: str, *sets: str) -> StudyFile:
        (tmp_path / "case.yaml").write_text(f"extends: good.yaml\nablation: {text}\n")
        return load_study(tmp_path / "case.yaml", sets)

    return load_text


def spec(study: StudyFile, setting: str) -> dict[str, Any]:
    return study.resolve(setting, {"lr": 1e-3}).spec


def kinds(study: StudyFile, setting: str, name: str = "main") -> tuple[str, str]:
    """What stores and what writes a memory: presets are short for these."""
    memory = spec(study, setting)["model"]["memory"][name]
    return memory["type"], memory["write"]["type"]


def words(study: StudyFile) -> dict[str, str]:
    assert study.ablation is not None
    return dict(study.ablation.about()["settings"])


def test_the_baseline_is_a_variant_or_the_file_as_it_stands(load: Load) -> None:
    study = load("{baseline: gradmem, changes: {rmt: {variant: rmt}}}")
    assert study.variants == ["gradmem", "rmt"]
    assert kinds(study, "gradmem") == ("tokens", "gradient")
    assert kinds(study, "rmt") == ("tokens", "forward")
    study = load("{leave_one_out: model.memory.cache}")
    assert study.variants == ["baseline", "without-cache"]
    assert list(spec(study, "baseline")["model"]["memory"]) == ["cache"]
    assert spec(study, "without-cache")["model"]["memory"] == {}


def test_set_merges_and_replace_replaces(load: Load) -> None:
    study = load(
        "{baseline: gradmem, changes: {"
        "no_write: {set: {model.memory.main.write.steps: 0}},"
        "swapped: {replace: {model.memory.main: {type: deltanet, heads: 2}}},"
        "several: {set: {train.batch_size: 8, vars.num_tokens: 2}, remove: model.memory.cache}}}"
    )
    memory = spec(study, "no_write")["model"]["memory"]["main"]
    assert (memory["write"]["steps"], memory["num_tokens"]) == (0, 4)
    assert kinds(study, "swapped") == ("delta", "delta")
    several = spec(study, "several")
    assert several["train"]["batch_size"] == 8
    assert several["model"]["memory"].keys() == {"main"}
    assert several["model"]["memory"]["main"]["num_tokens"] == 2
    assert words(study)["several"] == (
        "without model.memory.cache, train.batch_size: 8, vars.num_tokens: 2"
    )


def test_what_is_removed_has_its_default(load: Load) -> None:
    study = load("{baseline: gradmem, changes: {plain: {remove: model.memory.main.write.steps}}}")
    assert spec(study, "plain")["model"]["memory"]["main"]["write"]["steps"] == 1


def test_each_level_of_size_is_a_comparison(load: Load) -> None:
    ablation = load("{baseline: gradmem, changes: {rmt: {variant: rmt}}}").ablation
    assert ablation is not None
    assert ablation.notes(4, {"gradmem": [], "rmt": []}) == []
    assert ablation.notes(4, {"gradmem": [256], "rmt": [256, 1024]}) == []
    for levels in ({"gradmem": [256, 1024], "rmt": [256, 1024]}, {"gradmem": [], "rmt": [1, 2]}):
        (note,) = ablation.notes(4, levels)
        assert note.startswith("4 seeds cannot show any difference over 2 comparisons; 5 can")


def test_vary_makes_a_setting_of_each_value(load: Load) -> None:
    study = load("{baseline: gradmem, changes: {size: {vary: {vars.num_tokens: [2, 8]}}}}")
    assert study.variants == ["gradmem", "size-2", "size-8"]
    assert spec(study, "size-8")["model"]["memory"]["main"]["num_tokens"] == 8
    assert words(study)["size-8"] == "vars.num_tokens: 8"


def test_one_at_a_time_goes_over_numbers_and_components(load: Load) -> None:
    study = load(
        "{baseline: gradmem, one_at_a_time: {vars.num_tokens: [2],"
        "model.memory.main: [{type: rmt, num_tokens: 2}, {type: armt}],"
        "model.backbone: {gpt2: {type: gpt2, hidden_size: 32, num_hidden_layers: 2, "
        "num_attention_heads: 4}}}}"
    )
    assert study.variants == ["gradmem", "num_tokens-2", "main-rmt", "main-armt", "backbone-gpt2"]
    assert kinds(study, "main-armt") == ("associative", "delta")
    assert spec(study, "backbone-gpt2")["model"]["backbone"]["type"] == "gpt2"
    assert words(study)["main-rmt"] == "model.memory.main: {type: rmt, num_tokens: 2}"


def test_leave_one_out_leaves_out_each_memory(load: Load) -> None:
    study = load("{baseline: gradmem, leave_one_out: model.memory}")
    assert study.variants == ["gradmem", "without-cache", "without-main"]
    assert list(spec(study, "without-main")["model"]["memory"]) == ["cache"]
    assert list(spec(study, "without-cache")["model"]["memory"]) == ["main"]


def test_a_factorial_crosses_values(load: Load) -> None:
    study = load(
        "{baseline: gradmem, factorial: {vars.num_tokens: [2, 4], model.segment_length: [8, 16]}}"
    )
    assert study.variants[1:] == [
        f"num_tokens-{tokens}_segment_length-{length}" for tokens in (2, 4) for length in (8, 16)
    ]
    assert spec(study, "num_tokens-2_segment_length-8")["model"]["segment_length"] == 8
    notes = study.validate()
    same = "settings 'gradmem' and 'num_tokens-4_segment_length-16' are the same model and training"
    assert same in notes


def test_a_factorial_of_changes_combines_two_and_more_of_them(load: Load) -> None:
    study = load(
        "{baseline: gradmem, factorial: [alone, small, size], changes: {"
        "alone: {remove: model.memory.cache}, small: {set: {model.segment_length: 8}},"
        "size: {vary: {vars.num_tokens: [2, 8]}}}}"
    )
    combined = set(study.variants[5:])
    pairs = {"alone_small", "alone_size-2", "alone_size-8", "small_size-2", "small_size-8"}
    assert combined == pairs | {"alone_small_size-2", "alone_small_size-8"}
    found = spec(study, "alone_small_size-8")["model"]
    assert (list(found["memory"]), found["segment_length"]) == (["main"], 8)
    assert found["memory"]["main"]["num_tokens"] == 8


def test_all_settings_draw_the_same_values_and_have_the_same_data(load: Load) -> None:
    from memarch.studies.search.sampling import one_of_each

    study = load("{baseline: gradmem, changes: {rmt: {variant: rmt}}}")
    points = one_of_each({name: study.space(name) for name in study.variants}, 1)
    assert points[0].draws == points[1].draws
    assert spec(study, "gradmem")["study"]["seeds"] == spec(study, "rmt")["study"]["seeds"]


def test_every_value_knows_the_setting_that_it_came_from(load: Load) -> None:
    study = load("{baseline: gradmem, changes: {size: {vary: {model.segment_length: [8]}}}}")
    origins = study.resolve("size-8", {"lr": 1e-3}).origins
    assert origins["model.segment_length"] == "setting size-8"
    assert origins["model.memory.main.num_tokens"].startswith(str(study.path.with_name("good")))


def test_overrides_lie_over_every_setting(load: Load) -> None:
    study = load("{leave_one_out: model.memory}", "train.batch_size=4")
    assert {spec(study, name)["train"]["batch_size"] for name in study.variants} == {4}


def test_an_ablation_extends_another_by_name_of_change(load: Load, tmp_path: Path) -> None:
    load("{baseline: gradmem, equivalence: 0.01, changes: {a: {variant: rmt}}}")
    (tmp_path / "more.yaml").write_text(
        "extends: case.yaml\nablation: {equivalence: 0.02, changes: {b: {set: {train.lr: 0.1}}}}\n"
    )
    study = load_study(tmp_path / "more.yaml")
    assert study.ablation is not None
    assert study.variants == ["gradmem", "a", "b"]
    assert study.ablation.equivalence == 0.02


def test_validate_says_how_many_seeds_it_takes(load: Load) -> None:
    changes = "{baseline: gradmem, changes: {rmt: {variant: rmt}}}"
    assert load(changes, "study.seeds.model=[1,2,3,4]").validate() == []
    (note,) = load(changes, "study.seeds.model=[1,2,3]").validate()
    assert note.startswith("3 seeds cannot show any difference over one comparison; 4 can: study")


def test_a_snapshot_has_the_same_settings(load: Load, tmp_path: Path) -> None:
    study = load(
        "{baseline: gradmem, equivalence: 0.1, leave_one_out: model.memory,"
        "changes: {swapped: {replace: {model.memory.main: {type: rmt}}}}}"
    )
    (tmp_path / "kept").mkdir()
    write_snapshot(study, tmp_path / "kept")
    again = read_snapshot(tmp_path / "kept", ())
    assert study.ablation is not None
    assert again.ablation is not None
    assert again.ablation.about() == study.ablation.about()
    for name in study.variants:
        before, after = (one.resolve(name, {"lr": 1e-3}) for one in (study, again))
        assert (before.hash, before.origins) == (after.hash, after.origins)
