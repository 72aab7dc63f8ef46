"""Several processes train one model as one would: same weights, same scores, also resumed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from memarch.components.errors import SpecError
from memarch.studies.training.team import Team


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("team")
    script = Path(__file__).parents[1] / "team_training.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=300)
    return folder


def test_two_processes_train_as_one_does(trained):
    alone, team = (
        torch.load(trained / f"{name}.pt", weights_only=False) for name in ("alone", "team")
    )
    assert team["metrics"].keys() == alone["metrics"].keys()
    kinds = ("eval/", "cost/flops", "cost/state", "train/tokens", "train/flops", "train/loss")
    compared = [name for name in alone["metrics"] if name.startswith(kinds)]
    assert {"eval/kv/exact_match", "train/loss", "train/tokens"} <= set(compared)
    for name in compared:
        assert team["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4), name
    weights = [
        load_file(trained / name / "model" / "model.safetensors") for name in ("alone", "team")
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)


def test_a_team_that_was_cut_off_goes_on_from_the_leaders_checkpoint(trained):
    assert (trained / "kept-8").read_text() == "step-00000004"
    assert torch.load(trained / "team.pt", weights_only=False)["resumed_at"] == 4


def test_who_hears_of_anothers_end_knows_that_it_was_not_its_own(trained):
    assert (trained / "end-0").read_text() == "cut"
    assert (trained / "end-1").read_text() == "lost=True"


def test_rows_are_shared_with_their_queries_or_refused():
    batch = {"context_ids": torch.arange(3), "input_ids": torch.arange(6)}
    shared = Team(1, 3).rows(batch)
    assert {n: ids.tolist() for n, ids in shared.items()} == {
        "context_ids": [1],
        "input_ids": [2, 3],
    }
    with pytest.raises(SpecError, match="2 processes cannot share 3 rows evenly"):
        Team(1, 2).rows(batch)
