"""Comparisons at equal size and models made larger: what is solved, shown, recorded, left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from memarch.arch.build import build_model
from memarch.cli import run as memarch
from memarch.components.errors import SpecError
from memarch.search_spaces.ranges import LEVEL
from memarch.search_spaces.sizing import UnreachableError
from memarch.search_spaces.study_file import StudyFile
from memarch.studies.records.store import StudyFolder
from memarch.studies.search import costs
from memarch.studies.search.sampling import Coder, grid_points, one_of_each
from memarch.studies.settings.spec import load_study
from memarch.studies.training.session import Session
from memarch.studies.training.trainer import SessionTrainer
from memarch.studies.training.training import train

TRIALS = Path(__file__).parents[1] / "driver_trials.py"
FILE = """
study: {name: equal, design: grid, objective: {eval/kv/exact_match: maximize}, finalists: 0}
match: {cost/state_floats: [32, 256], tolerance: 10%}
variants:
  none: {model.memory: {}}
  rmt: {model.memory.main: {type: rmt, num_tokens: {solve: [1, 64]}}}
  armt: {model.memory.main: {type: armt, d_mem: {solve: [1, 64]}, feature_map: dpfp1}}
task: {type: kv_retrieval, pairs: 2, format: compact, alphabet: 4}
model:
  backbone: {type: llama, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2}
  segment_length: 4
train: {budget: {steps: 2}, batch_size: 4}
eval: {kv: {task: same, size: 8}}
"""
Load = Callable[..., StudyFile]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)

    def made(text: str = "", *overrides: str, **more: Any) -> StudyFile:
        Path("equal.yaml").write_text(FILE)
        Path("file.yaml").write_text(f"extends: equal.yaml\n{text}\n")
        return load_study("file.yaml", overrides, **more)

    return made


def real_state(spec: dict[str, Any]) -> int:
    """Numbers of the state of the model that is really built."""
    model = build_model(spec["model"], vocab_size=11, seed=1)
    with torch.no_grad():
        return model.write(torch.zeros(1, 9, dtype=torch.long)).numel


def test_each_level_is_solved_for_each_variant(load: Load) -> None:
    study = load()
    assert study.validate() == [
        (
            "armt is left out where cost/state_floats = 32 is not reached within 10 %: "
            "the nearest is 68 (d_mem 1)"
        )
    ]
    assert {name: list(study.space(name)) for name in study.variants} == {
        "none": [],
        "rmt": [LEVEL],
        "armt": [LEVEL],
    }
    assert study.space("rmt")[LEVEL].extremes() == [32, 256]
    assert study.space("armt")[LEVEL].extremes() == [256]
    for variant, level, values in [
        ("rmt", 32, {"num_tokens": 2}),
        ("rmt", 256, {"num_tokens": 16}),
        ("armt", 256, {"d_mem": 4}),
    ]:
        resolved = study.resolve(variant, {LEVEL: level})
        assert resolved.sized is not None
        assert resolved.sized.values == values
        assert real_state(resolved.spec) == resolved.sized.cost == resolved.spec["match"]["value"]
        assert abs(resolved.sized.residual) <= 0.1
    assert study.resolve("none").spec.get("match") is None


def test_where_a_solved_value_came_from(load: Load) -> None:
    resolved = load().resolve("armt", {LEVEL: 256})
    source = "solved for cost/state_floats = 256 (272, +6.2 %)"
    assert resolved.origins["model.memory.main.d_mem"] == source
    assert resolved.draws == {LEVEL: 256}
    again = resolved.at({"study.seeds.model": 7})
    assert again.spec["model"] == resolved.spec["model"]
    assert again.spec["match"] == resolved.spec["match"]
    assert resolved.at({"model.memory.main.d_mem": 2}).spec["model"]["memory"]["main"]["d_mem"] == 2


def test_stages_and_sweeps_keep_the_solved_sizes(load: Load) -> None:
    study = load(
        "train: {stages: [{set: {task.pairs: 1}, steps: 1}]}\n"
        "variants: {rmt: {eval.kv.sweep: {model.memory.main.write.steps: [2]}}}"
    )
    spec = study.resolve("rmt", {LEVEL: 256}).spec
    (point,) = spec["eval"]["kv"]["points"]
    assert point["spec"]["model"]["memory"]["main"]["num_tokens"] == 16
    assert spec["train"]["stages"][0]["set"] == {"task.pairs": 1}


def test_one_level_needs_no_parameter(load: Load) -> None:
    study = load("", "match.cost/state_floats=256")
    assert list(study.space("rmt")) == []
    assert study.resolve("rmt").spec["model"]["memory"]["main"]["num_tokens"] == 16


def test_a_var_is_solved_for_too_and_parameters_may_be_matched(load: Load) -> None:
    study = load(
        "match: {replace: {cost/parameters: 12.5k, tolerance: 5%}}\n"
        "vars: {width: {solve: [8, 64], step: 8}}\n"
        "model: {backbone: {hidden_size: $width, intermediate_size: =2 * $width}}\n"
        "variants: {replace: {none: {}, rmt: {model.memory.main: {type: rmt}}}}"
    )
    for variant in study.variants:
        resolved = study.resolve(variant)
        assert resolved.sized is not None
        model = build_model(resolved.spec["model"], vocab_size=costs_vocabulary(resolved.spec))
        assert sum(p.numel() for p in model.parameters()) == resolved.sized.cost
        width = resolved.sized.values["width"]
        assert resolved.spec["model"]["backbone"]["intermediate_size"] == 2 * width


def costs_vocabulary(spec: dict[str, Any]) -> int:
    from memarch.studies.training.points import make_task

    return make_task(spec["task"], spec["model"]).vocab_size


def test_several_values_and_values_of_any_kind(load: Load) -> None:
    study = load(
        "variants: {armt: {model.memory.main: {feature_map: {solve: {choice: [dpfp1, dpfp3]}}, "
        "layers: {solve: {choice: [[0], all]}}}}}"
    )
    assert study.variants == ["none", "rmt", "armt"]
    memory = study.resolve("armt", {LEVEL: 32}).spec["model"]["memory"]["main"]
    assert (memory["d_mem"], memory["feature_map"], memory["layers"]) == (1, "dpfp1", [0])


def test_a_growing_state_is_that_of_the_longest_evaluation(load: Load) -> None:
    growing = "{type: full_attention, layers: {solve: {choice: [[0], all]}}}"
    study = load(
        "match: {replace: {cost/state_bytes: 1032}}\n"
        f"variants: {{replace: {{full: {{model.memory.main: {growing}}}}}}}\n"
        "eval: {kv: {sweep: {task.pairs: [4]}}}"
    )
    assert costs.longest_context(study.resolve("full").spec) == 8
    assert study.resolve("full").spec["model"]["memory"]["main"]["layers"] == [0]


@pytest.mark.parametrize(
    ("memory", "step"),
    [("type: armt, d_mem", 12_384), ("type: rmt, num_tokens", 512)],
)
def test_steps_of_mechanisms_at_four_layers_of_width_128(
    load: Load, memory: str, step: int
) -> None:
    backbone = "{hidden_size: 128, num_hidden_layers: 4, num_attention_heads: 4}"
    study = load(
        f"match: null\nmodel.backbone: {backbone}\n"
        f"variants: {{replace: {{two: {{model.memory.main: {{{memory}: 2}}}}, "
        f"three: {{model.memory.main: {{{memory}: 3}}}}}}}}"
    )
    two, three = (costs.size(study.resolve(n).spec, "cost/state_bytes") for n in study.variants)
    assert three - two == step


def test_no_variant_at_any_level_is_an_error(load: Load) -> None:
    study = load(
        "match: {replace: {cost/state_floats: [3], tolerance: 1%}}\n"
        "variants: {replace: {rmt: {model.memory.main: {type: rmt, "
        "num_tokens: {solve: [1, 9]}}}}}"
    )
    with pytest.raises(SpecError, match=r"no variant reaches any level: rmt: .*nearest is 16"):
        study.validate()


def test_designs_cross_the_levels(load: Load) -> None:
    study = load()
    spaces = {name: study.space(name) for name in study.variants}
    expected = [("none", None), ("rmt", 32), ("rmt", 256), ("armt", 256)]
    for points in (grid_points(spaces), one_of_each(spaces, 1)):
        assert [(point.variant, point.draws.get(LEVEL)) for point in points] == expected
    coder = Coder(spaces)
    assert coder.encode(grid_points(spaces)[1])["variant"] == "rmt"


def test_validate_and_plan_show_sizes(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    load()
    assert memarch(["plan", "file.yaml", "--dry", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    reached = [row for row in document["sizes"] if "reason" not in row]
    assert [(row["variant"], row["level"], row["value"]) for row in reached] == [
        ("rmt", 32, 32),
        ("rmt", 256, 256),
        ("armt", 256, 272),
    ]
    assert document["trials"] == 4
    assert memarch(["validate", "file.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "+6.2 %" in shown
    assert "left out" in shown


@pytest.mark.usefixtures("local_ray", "without_mlflow")
def test_a_study_records_levels_and_what_they_gave(load: Load, storage: Path) -> None:
    from memarch.studies.driver.sessions import run_study

    load(
        "vars: {width: {choice: [16, 48]}}\nmodel.backbone.hidden_size: $width\n"
        "variants: {replace: {rmt: {model.memory.main: {type: rmt, "
        "num_tokens: {solve: [1, 64]}}}}}"
    )
    names = {"trial_function": f"{TRIALS}:run", "test_function": f"{TRIALS}:test"}
    run_study("file.yaml", storage=storage, **names)
    records = StudyFolder(storage, "equal").records()
    found = {
        (record["params"]["width"], record["params"][LEVEL]): record for record in records.values()
    }
    assert found[16, 32]["solved"] == {"num_tokens": 2}
    assert found[48, 256]["state"] == "complete"
    left = found[48, 32]
    assert (left["state"], left["attempts"]) == ("infeasible", 0)
    assert "not reached" in left["reason"]


def test_a_trained_trial_tells_how_near_it_came(load: Load, tmp_path: Path) -> None:
    spec = load().resolve("armt", {LEVEL: 256}).spec
    metrics = train(spec, tmp_path / "trial", lambda step, metrics: False)["metrics"]
    assert metrics["match/level"] == 256
    assert metrics["match/residual"] == pytest.approx(272 / 256 - 1)
    assert metrics["match/cost/state_floats"] == metrics["cost/state_floats"] == 272
    before = costs.of_spec(spec)
    assert {name: metrics[name] for name in before if name in metrics} == {
        name: value for name, value in before.items() if name in metrics
    }
    assert set(before) - set(metrics) <= {"cost/break_even_queries"}


def test_costs_without_numbers_are_those_of_the_model(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load().resolve("armt", {LEVEL: 256}).spec
    real = costs.of_spec(spec)
    costs._of_spec.cache_clear()
    monkeypatch.setattr(costs, "SMALL", 0)
    shapes = costs.of_spec(spec)
    peak = "cost/peak_activation_bytes"
    assert shapes.pop(peak) == pytest.approx(real.pop(peak), rel=0.05)
    assert shapes == real


@pytest.mark.parametrize("truncate", [None, 1])
def test_flops_of_training_are_those_of_the_trainers_step(
    load: Load, tmp_path: Path, truncate: int | None
) -> None:
    """Several queries a context, a gradient that is cut: what the profiler sees of a whole step."""
    text = "task: {pairs: 4, queries: 3}\nmodel: {schedule: sequential}"
    spec = load(text).resolve("armt", {LEVEL: 256}).spec
    spec["train"] |= {"truncate": truncate, "budget": {"steps": 1}, "eval_every": 10}
    session = Session(spec, tmp_path / "trial", lambda step, metrics: False)
    with profile(activities=[ProfilerActivity.CPU], with_flops=True, record_shapes=True) as seen:
        SessionTrainer(session).train()
    products = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
    counted = sum(event.flops for event in seen.events() if event.name in products)
    assert session.progress.spent.flops == pytest.approx(counted, rel=0.03)


# Larger


SCALED = "extends: {{study: equal, trial: best}}\nscale: {{cost/parameters: 100k, {}}}\n"


@pytest.fixture
def winner(load: Load) -> dict[str, Any]:
    return load().resolve("armt", {LEVEL: 256}).record


def larger(winner: dict[str, Any], settings: str, more: str = "") -> StudyFile:
    Path("larger.yaml").write_text(SCALED.format(settings) + more)
    return load_study("larger.yaml", find_trial=lambda study, trial: winner)


@pytest.mark.parametrize("rule", ["width", "depth", "width_and_depth"])
def test_a_winner_is_made_larger(winner: dict[str, Any], rule: str) -> None:
    study = larger(winner, f"rule: {rule}, tolerance: 30%")
    assert study.validate() == []
    resolved = study.resolve()
    model = build_model(resolved.spec["model"], vocab_size=costs_vocabulary(resolved.spec))
    assert resolved.sized is not None
    assert sum(p.numel() for p in model.parameters()) == resolved.sized.cost
    assert resolved.spec["scale"]["residual"] == pytest.approx(resolved.sized.cost / 1e5 - 1)
    backbone = resolved.spec["model"]["backbone"]
    width = backbone["hidden_size"] / 16
    assert backbone["hidden_size"] / backbone["num_attention_heads"] == 8
    memory, rate = resolved.spec["model"]["memory"]["main"], resolved.spec["train"]["lr"]
    assert memory["d_mem"] == 4 * width
    assert rate == pytest.approx(1e-3 / width)
    layers = backbone["num_hidden_layers"]
    assert {
        "width": width > 1 and layers == 2,
        "depth": width == 1 and layers > 2,
        "width_and_depth": layers == 2 * width > 2,
    }[rule]
    place = {"depth": "num_hidden_layers"}.get(rule, "hidden_size")
    origin = resolved.origins[f"model.backbone.{place}"]
    assert origin.startswith(f"scaled by {rule} for cost/parameters = 100000 (")


def test_what_is_kept_stays(winner: dict[str, Any]) -> None:
    keep = "keep: [model.memory.main.d_mem, train.lr]"
    spec = larger(winner, f"rule: width, tolerance: 20%, {keep}").resolve().spec
    assert (spec["model"]["memory"]["main"]["d_mem"], spec["train"]["lr"]) == (4, 1e-3)
    root = larger(winner, "rule: width, tolerance: 20%, lr: 1/sqrt(width)").resolve().spec
    width = root["model"]["backbone"]["hidden_size"] / 16
    assert root["train"]["lr"] == pytest.approx(1e-3 / width**0.5)


def test_groups_of_heads_and_lists_of_layers_follow(winner: dict[str, Any]) -> None:
    winner["model"]["backbone"] |= {"num_key_value_heads": 1, "intermediate_size": 40}
    backbone = larger(winner, "rule: width, tolerance: 20%").resolve().spec["model"]["backbone"]
    heads = backbone["num_attention_heads"]
    assert backbone["num_key_value_heads"] * 2 == heads
    assert backbone["intermediate_size"] == 40 * heads // 2
    winner["model"]["memory"]["main"]["layers"] = [0, 1]
    spec = larger(winner, "rule: depth").resolve().spec["model"]
    assert spec["memory"]["main"]["layers"] == [0, spec["backbone"]["num_hidden_layers"] - 1]


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ("rule: depth, keep: [model.memory.main.d_mem]", "", "does not change"),
        ("rule: width, tolerance: 0.1%", "", "not reached within 0.1 %: the nearest are"),
        ("rule: width", "train.init_from: equal/3", "weights of the smaller model"),
        ("rule: width", ("match: {cost/state_floats: 3}\n"
         "model.memory.main.d_mem: {solve: [1, 3]}"), "both set sizes"),
    ],
)  # fmt: skip
def test_what_cannot_be_scaled(
    winner: dict[str, Any], settings: str, more: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        larger(winner, settings, more).validate()
    assert caught.value.file == "larger.yaml"
    assert caught.value.line


def test_a_pretrained_backbone_has_its_size(winner: dict[str, Any], tmp_path: Path) -> None:
    build_model(winner["model"], vocab_size=9, seed=1).backbone.save_pretrained(tmp_path / "base")
    winner["model"]["backbone"] = {"pretrained": str(tmp_path / "base")}
    with pytest.raises(SpecError, match="a pretrained backbone has its size"):
        larger(winner, "rule: width").validate()


def test_an_unreachable_point_is_an_error_of_its_own(load: Load) -> None:
    with pytest.raises(UnreachableError, match="nearest is 68") as caught:
        load().resolve("armt", {LEVEL: 32})
    assert (caught.value.file, caught.value.path) == ("equal.yaml", "match")
