"""Real training that is told to stop by the cluster: it saves, and goes on to the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from agreement import assert_records_agree
from processes import wait_for

from memarch.studies.driver.sessions import resume_study
from memarch.studies.records.store import StudyFolder

FILE = """
study: {name: NAME, design: all, seeds: {model: 3}, finalists: 0}
task: {type: mqar, pairs: 2, length: 16, vocab: 32}
model:
  backbone: {type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}
  segment_length: 16
  memory: {main: {type: rmt, num_tokens: 2}}
train: {budget: {steps: 400}, batch_size: 8, lr: 1e-3, checkpoint_every: 100000, early_stop: none}
eval: {mqar: {task: same, size: 64}}
"""

COMMAND = "from memarch.cli import main; main()"


def begin(folder: Path, name: str) -> subprocess.Popen[str]:
    file = folder / f"{name}.yaml"
    file.write_text(FILE.replace("NAME", name))
    command = [sys.executable, "-c", COMMAND, "study", "run", str(file), "--storage"]
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            [*command, str(folder / "runs")], stdout=log, stderr=log, text=True, cwd=folder
        )


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_training_that_was_halted_ends_as_if_it_had_not_been(tmp_path):
    driver = begin(tmp_path, "halted")
    folder = StudyFolder(tmp_path / "runs", "halted")
    trial = folder.trial(0)
    wait_for(lambda: len(list(trial.progress())) >= 2, "the second evaluation", 240)
    os.kill(driver.pid, signal.SIGTERM)
    said = tmp_path / "halted.log"
    assert driver.wait(timeout=120) == 1, said.read_text()
    assert "interrupted; `memarch study resume halted" in said.read_text()
    assert trial.record["state"] == "waiting", said.read_text()
    # No other checkpoint is due in this run: this one was saved because the driver said so.
    (saved,) = (trial.path / "checkpoints").glob("step-*.pt")
    assert 80 <= int(saved.stem.removeprefix("step-")) < 400
    result = resume_study("halted", storage=tmp_path / "runs")
    assert (result.state, result.trials[0]["attempts"]) == ("complete", 2)
    assert_records_agree(tmp_path / "runs", "halted")

    whole = begin(tmp_path, "whole")
    assert whole.wait(timeout=280) == 0, (tmp_path / "whole.log").read_text()
    told = StudyFolder(tmp_path / "runs", "whole").trial(0).record["metrics"]
    kept = {n: v for n, v in result.trials[0]["metrics"].items() if n.startswith("eval/")}
    assert kept == {name: told[name] for name in kept}
    assert result.trials[0]["metrics"]["train/loss"] == told["train/loss"]
