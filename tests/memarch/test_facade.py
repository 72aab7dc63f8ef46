"""`import memarch`: nothing heavy at once, and a model built from a file reads, answers, saves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import memarch
from memarch.components.errors import SpecError

MODEL = """
task: {type: kv_retrieval, pairs: 2, format: compact}
model:
  backbone: {type: llama, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2}
  memory: {main: {type: rmt, num_tokens: 2}}
  segment_length: 4
train: {budget: {steps: 1}}
"""


def test_import_is_light() -> None:
    code = "import memarch, sys; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_resolves() -> None:
    assert all(getattr(memarch, name) is not None for name in memarch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        memarch.nothing  # noqa: B018


def test_a_model_that_is_not_there_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no folder 'nothere'; a trial is written STUDY/NUMBER"):
        memarch.load("nothere", storage=tmp_path)


def test_build_write_generate_save_load(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "model.yaml"
    file.write_text(MODEL)
    model = memarch.build(file).eval()
    assert torch.equal(
        model(torch.ones(1, 3, dtype=int)).logits,
        memarch.build(file).eval()(torch.ones(1, 3, dtype=int)).logits,
    ), "the file's seed gives the weights"
    state = model.write(torch.arange(10).view(1, 10))
    answer = model.generate(torch.ones(1, 2, dtype=int), memory=state, max_new_tokens=3)
    assert answer.shape == (1, 5)
    state.save(tmp_path / "doc.safetensors")
    assert state.nbytes == 2 * 16 * 4
    model.save_pretrained(tmp_path / "saved")
    loaded = memarch.load(tmp_path / "saved")
    again = loaded.generate(
        torch.ones(1, 2, dtype=int),
        memory=memarch.MemoryState.load(tmp_path / "doc.safetensors"),
        max_new_tokens=3,
    )
    assert torch.equal(again, answer)


def test_build_takes_the_model_section_as_a_map() -> None:
    backbone = {"type": "llama", "hidden_size": 16, "num_attention_heads": 2}
    backbone |= {"num_hidden_layers": 1, "vocab_size": 7}
    model = memarch.build({"backbone": backbone, "segment_length": 4}, seed=1)
    assert model.config.spec["segment_length"] == 4


def test_wrong_input_is_a_spec_error(tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(MODEL.replace("num_tokens: 2", "num_tokens: {choice: [2, 4]}"))
    with pytest.raises(memarch.SpecError, match="searches num_tokens"):
        memarch.build(file)


def test_the_best_trial_is_given_whole() -> None:
    from memarch.studies.driver.events import StudyResult

    trials = [
        {
            "number": n,
            "variant": "rmt",
            "state": "complete",
            "params": {"n": n},
            "metrics": {"a": n},
        }
        for n in (3, 7)
    ]
    result = StudyResult("s", "/runs/s", "complete", {"a": "maximize"}, trials, [7])
    assert result.best_trial == trials[1]
    assert StudyResult("s", "/runs/s", "failed", {"a": "maximize"}, [], []).best_trial is None
