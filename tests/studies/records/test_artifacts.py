"""Copies of checkpoints and models at a URL, for nodes that share no disk: two folders are two."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from memarch.studies.records.artifacts import ArtifactStore, TrialArtifacts, fetch_model, kept_at
from memarch.studies.training.checkpoints import load_checkpoint, save_checkpoint


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path) -> str:
    if request.param == "file":
        return (tmp_path / "shared").as_uri()
    return f"memory://{tmp_path.name}"


def node(tmp_path: Path, name: str) -> Path:
    """A trial's folder on one machine."""
    folder = tmp_path / name / "studies" / "one" / "trials" / "007"
    folder.mkdir(parents=True)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_trial_goes_on_from_its_checkpoint_on_another_node(url, tmp_path):
    one, other = node(tmp_path, "one"), node(tmp_path, "other")
    with kept_at(url, one):
        for step in (10, 20):
            save_checkpoint(one / "checkpoints", step, {"step": step, "weights": torch.ones(3)})
    with kept_at(url, other):
        content = load_checkpoint(other / "checkpoints")
        assert content is not None
        assert content["step"] == 20
        assert files(other) == ["checkpoints/step-00000020.pt"]  # the older one is gone there too
        (other / "model").mkdir()
        (other / "model" / "weights").write_text("trained")
        (other / "result.json").write_text("{}")
        (other / "checkpoints" / "step-00000020.pt").unlink()
    store = ArtifactStore.at(url)
    assert store.names("one/007") == ["model/weights", "result.json"]
    (one / "checkpoints" / "step-00000020.pt").unlink()
    fetch_model(url, one)
    assert files(one) == ["model/weights"]


def test_a_copy_is_there_whole_or_not_at_all(tmp_path):
    folder, url = node(tmp_path, "one"), (tmp_path / "shared").as_uri()
    large = folder / "model" / "weights"
    large.parent.mkdir()
    large.write_bytes(b"1" * 50_000_000)
    sender = multiprocessing.get_context("fork").Process(
        target=lambda: [TrialArtifacts.of(url, folder).send("model") for _ in range(50)]
    )
    sender.start()
    while not list((tmp_path / "shared").rglob("*.partial")):
        assert sender.is_alive()
    sender.kill()
    sender.join()
    other = node(tmp_path, "other")
    TrialArtifacts.of(url, other).fetch("model")
    sizes = [path.stat().st_size for path in (other / "model").rglob("*") if path.is_file()]
    assert sizes in ([], [50_000_000])


def test_a_store_that_does_not_answer_costs_no_training(tmp_path, monkeypatch):
    folder, shared = node(tmp_path, "one"), tmp_path / "shared"
    with kept_at(shared.as_uri(), folder):
        save_checkpoint(folder / "checkpoints", 10, {"step": 10})
        for path in sorted(shared.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        shared.rmdir()
        shared.write_text("no folder any more")
        save_checkpoint(folder / "checkpoints", 20, {"step": 20})
        assert "Error" in (folder / "artifacts_error.txt").read_text()
        shared.unlink()
        save_checkpoint(folder / "checkpoints", 30, {"step": 30})
    names = ArtifactStore.at(shared.as_uri()).names("one/007")
    assert names == ["checkpoints/step-00000030.pt"]
