"""Templates: each works as it is, and a newcomer's memory and task run in a study beside rmt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from memarch import cli
from memarch.components.plugins import load_plugins

ENABLED = ("#  mine:", "  mine:"), ("# plugins:", "plugins:")


def new(kind: str, path: Path) -> str:
    assert cli.run(["new", kind, str(path)]) == 0
    return path.read_text()


@pytest.mark.parametrize("kind", ["memory", "task"])
def test_a_template_takes_the_name_of_its_file_and_passes_its_own_tests(
    kind: str, tmp_path: Path
) -> None:
    text = new(kind, tmp_path / f"leaky_{kind}.py")
    assert f'register("leaky_{kind}"' in text
    assert f"class Leaky{kind.capitalize()}(" in text
    assert f"my_{kind}" not in text
    assert f"My{kind.capitalize()}" not in text
    load_plugins([tmp_path / f"leaky_{kind}.py"])
    start = f"memarch_plugin_leaky_{kind}"
    module = next(module for name, module in sys.modules.items() if name.startswith(start))
    tests = [test for name, test in vars(module).items() if name.startswith("test_")]
    assert tests, "a template shows how to test"
    for test in tests:
        test()


def test_the_study_template_is_valid_as_it_is_and_with_the_plugin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "first.yaml"
    text = new("study", file)
    new("memory", tmp_path / "my_memory.py")
    capsys.readouterr()
    for expected in (
        {"none", "rmt", "gradmem", "armt"},
        {"none", "rmt", "gradmem", "armt", "mine"},
    ):
        assert cli.run(["validate", str(file), "--json"]) == 0
        assert set(json.loads(capsys.readouterr().out)["variants"]) == expected
        for commented, plain in ENABLED:
            text = text.replace(commented, plain)
        file.write_text(text)


def test_the_memory_template_keeps_the_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new("memory", tmp_path / "leaky_rule.py")
    capsys.readouterr()
    code = cli.run(["check", str(tmp_path / "leaky_rule.py"), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert [row for row in document["checks"] if not row["passed"]] == []
    assert (code, document["passed"]) == (0, True)


def test_check_finds_a_broken_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "leaky_broken.py"
    text = new("memory", file)
    start = text.index("        if segment.frozen")
    end = text.index("def leaky_mean")
    in_place = '        state["mean"].add_(y.detach().mean(1))\n        return y, state\n\n\n'
    file.write_text(text[:start] + in_place + text[end:])
    capsys.readouterr()
    assert cli.run(["check", str(file), "--json"]) == 1
    out, err = capsys.readouterr()
    broken = {row["name"]: row["message"] for row in json.loads(out)["checks"] if not row["passed"]}
    assert "purity" in broken
    assert "failed: " in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["memory", "my-memory.py"], "must be a Python name"),
        (["memory", "class.py"], "must be a Python name"),
        (["memory", "mine.yaml"], "is a .py file"),
        (["study", "mine.py"], "is a .yaml or .yml file"),
        (["study", "there.yaml"], "exists"),
    ],
)
def test_new_refuses(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.yaml").touch()
    assert cli.run(["new", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]


STUDY = """
plugins: [newcomers_memory.py, newcomers_task.py]
study: {name: newcomer, design: all, finalists: 0}
variants:
  rmt: {model.memory.main: {type: rmt, num_tokens: 2}}
  mine: {model.memory.main: {type: newcomers_memory, rate: 0.25}}
task: {type: newcomers_task, length: 8}
model:
  backbone: {type: llama, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2}
  segment_length: 4
train: {budget: {steps: 3}, batch_size: 4}
eval: {first: {size: 8}}
resources: {cpus: 1}
"""


def test_a_newcomers_memory_and_task_run_in_a_study_beside_rmt(tmp_path: Path) -> None:
    new("memory", tmp_path / "newcomers_memory.py")
    new("task", tmp_path / "newcomers_task.py")
    (tmp_path / "study.yaml").write_text(STUDY)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = ["study", "run", "../study.yaml", "--storage", str(tmp_path / "runs"), "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "memarch.cli", *command],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    trials = {trial["variant"]: trial for trial in document["trials"]}
    assert {name: trial["state"] for name, trial in trials.items()} == {
        "rmt": "complete",
        "mine": "complete",
    }, [trial["reason"] for trial in trials.values()]
    metrics = trials["mine"]["metrics"]
    assert metrics["cost/state_bytes"] == 2 * 16 * 4, "a mean of 16 floats in 2 layers"
    assert metrics["eval/first/floor/blind"] == pytest.approx(1 / 16)
    assert "1 of 2 trials done" in ended.stderr
    assert (tmp_path / "runs" / "studies" / "newcomer" / "report.html").is_file()
    number = trials["mine"]["number"]
    result = tmp_path / "runs" / "studies" / "newcomer" / "trials" / f"{number:03d}" / "result.json"
    hashes = json.loads(result.read_text())["plugins"]
    assert len(hashes) == 2
    assert all(len(value) == 64 for value in hashes.values())
