"""Evaluation as a job of its own, of another size and with another time limit than training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from driver_study import write_study
from training_spec import make_spec

from memarch.studies.driver.sessions import run_study
from memarch.studies.records.store import StudyFolder, read_json
from memarch.studies.training.trial import run_trial

TRIALS = Path(__file__).parents[1] / "two_part_trials.py"


@pytest.mark.usefixtures("local_ray", "without_mlflow")
def test_a_study_deals_training_and_evaluation_apart(tmp_path):
    file = write_study(tmp_path, name="parts", budget="{trials: 2}", cpus=2, question={"slow": [1]})
    result = run_study(
        file,
        storage=tmp_path / "runs",
        overrides=["resources.eval.cpus=1", "study.eval_time_limit=8s"],
        trial_function=f"{TRIALS}:run",
    )
    done, late = result.trials
    assert (done["state"], done["attempts"]) == ("complete", 1)
    assert (late["state"], late["attempts"]) == ("failed", 1)
    assert "longer than eval_time_limit, 8 s" in late["reason"]
    folder = StudyFolder(tmp_path / "runs", "parts").trial(0).path
    sizes = {part: json.loads((folder / part).read_text())["CPU"] for part in ("train", "evaluate")}
    assert sizes == {"train": 2, "evaluate": 1}


def test_a_trial_in_two_parts_gives_what_it_gives_in_one(tmp_path):
    reports: list[int] = []

    def report(step: int, metrics: dict[str, float]) -> bool:
        reports.append(step)
        return False

    spec = make_spec({"main": {"type": "rmt", "num_tokens": 2}})
    whole = run_trial(spec, tmp_path / "whole", report)
    apart = spec | {"resources": {"eval": {"cpus": 1}}}
    trained = run_trial(apart, tmp_path / "parts", report)
    assert trained["state"] == "trained"
    assert not (tmp_path / "parts" / "result.json").exists()
    assert not any(name.startswith("eval/") for name in trained["metrics"])
    result = run_trial(apart, tmp_path / "parts", report)
    assert result["state"] == whole["state"] == "complete"
    assert read_json(tmp_path / "parts" / "result.json")["state"] == "complete"
    assert result["metrics"].keys() == whole["metrics"].keys()
    for name, value in whole["metrics"].items():
        if name.startswith(("eval/", "train/loss")):
            assert result["metrics"][name] == value, name
    assert result["converged"] == whole["converged"]
    assert reports[-1] == reports[0] == 8
