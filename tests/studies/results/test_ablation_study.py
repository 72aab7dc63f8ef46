"""Ablations through the real driver: one whose outcomes are chance, one of real training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from memarch.cli import app
from memarch.studies.driver.sessions import run_study
from memarch.studies.records.store import show_study
from memarch.studies.results.ablation import Comparison, comparisons, conclusions
from memarch.studies.results.replicates import replicates

pytestmark = pytest.mark.usefixtures("local_ray", "module_without_mlflow")

TRIALS = Path(__file__).parents[1] / "ablation_trials.py"

CHANCE = """
study:
  design: ablation
  objective: {eval/kv/exact_match: maximize}
  seeds: {model: [1, 2, 3, 4, 5, 6, 7]}
  finalists: 0
variants:
  gradmem: {model.memory.main: {type: gradmem, num_tokens: 4, write: {steps: 2}}}
task: {type: kv_retrieval, pairs: 4, format: compact}
model:
  backbone: {type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4}
  segment_length: 16
train: {budget: {steps: 100}}
eval: {kv: {task: same}}
resources: {cpus: 2}
ablation:
  baseline: gradmem
  changes:
    no_write: {set: {model.memory.main.write.steps: 0}}
    nothing: {set: {train.checkpoint_every: 50}}
    failing: {set: {train.batch_size: 13}}
    steps: {vary: {model.memory.main.write.steps: [2]}}
"""

REAL = """
study:
  design: ablation
  objective: {eval/kv/exact_match: maximize}
  seeds: {model: [1, 2, 3, 4, 5]}
  finalists: 0
variants:
  gradmem: {model.memory.main: {type: gradmem, num_tokens: 2, write: {steps: 1, step_size: 2.0}}}
task: {type: kv_retrieval, format: compact, pairs: 2, queries: 2}
model:
  backbone: {type: llama, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}
  segment_length: 16
train: {budget: {steps: 60}, batch_size: 32, lr: 1e-2, warmup: 10, eval_every: 30}
eval: {kv: {task: same, size: 200}}
ablation:
  baseline: gradmem
  changes:
    no_write: {set: {model.memory.main.write.steps: 0}}
    renamed: {set: {train.checkpoint_every: 1000}}
"""


def by_name(document: dict[str, Any]) -> dict[str, Comparison]:
    return {one.name: one for one in comparisons(document)}


@pytest.fixture(scope="module")
def chance(
    local_ray: None, module_without_mlflow: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The storage folder of the finished study of chance."""
    storage = tmp_path_factory.mktemp("chance")
    file = storage / "chance.yaml"
    file.write_text(CHANCE)
    trial_function, test_function = f"{TRIALS}:run", f"{TRIALS}:test"
    run_study(file, storage=storage, trial_function=trial_function, test_function=test_function)
    return storage


def test_the_planted_effect_is_found_and_the_planted_null_is_not(chance: Path) -> None:
    found = by_name(show_study("chance", chance))
    assert list(found) == ["no_write", "nothing", "failing", "steps-2"]
    assert found["no_write"].outcome == "worse"
    assert found["no_write"].high is not None
    assert found["no_write"].high < 0
    assert found["no_write"].unconverged == 7
    assert found["nothing"].outcome == "undecided"
    assert found["no_write"].change == "model.memory.main.write.steps: 0"


def test_every_setting_has_the_same_seeds_and_equal_ones_are_not_run_again(chance: Path) -> None:
    document = show_study("chance", chance)
    for name, one in by_name(document).items():
        if name == "failing":
            assert (one.seeds, one.failed) == ((1, 3, 4, 5, 6, 7), 1)
            assert "1 of 7 seeds gave no result" in one.verdict
        elif name != "steps-2":
            assert one.seeds == (1, 2, 3, 4, 5, 6, 7)
    assert by_name(document)["steps-2"].outcome == "same"
    assert len(document["trials"]) == 35
    baseline = next(row for row in replicates(document) if row.variant == "gradmem")
    assert len(baseline.scores) == 7


def test_show_has_settings_over_seeds_and_every_change(chance: Path) -> None:
    shown = CliRunner().invoke(app, ["study", "show", "chance", "--storage", str(chance)])
    assert shown.exit_code == 0, shown.output
    for text in (
        "no_write",
        "worse by 0.",
        "0 of 7",
        "6 of 7",
        "by the mean of eval/kv/exact_match over seeds",
    ):
        assert text in shown.output
    assert "differences by seed" not in shown.output
    arguments = ["study", "show", "chance", "--seeds", "--storage", str(chance)]
    assert "differences by seed" in CliRunner().invoke(app, arguments).output
    arguments = ["study", "show", "chance", "--json", "--storage", str(chance)]
    document = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert document["comparisons"][0]["outcome"] == "worse"
    assert document["settings"][0]["tied_with_best"] is True


def test_real_training_shows_that_a_memory_needs_its_write(tmp_path: Path) -> None:
    file = tmp_path / "write.yaml"
    file.write_text(REAL)
    run_study(file, storage=tmp_path / "runs")
    document = show_study("write", tmp_path / "runs")
    found = by_name(document)
    no_write, renamed = found["no_write"], found["renamed"]
    assert no_write.outcome == "worse"
    assert no_write.high is not None
    assert no_write.high < -0.1
    assert all(difference < -0.3 for difference in no_write.differences)
    assert renamed.verdict.startswith("no difference at all on 5 seeds")
    assert conclusions(document)["comparisons"][0]["p_corrected"] == pytest.approx(4 / 252)
