"""Every wrong file, by the command line: code 2, one message with file and line, no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from memarch import cli

FILE = Path(__file__).parents[1] / "search_spaces" / "wrong_files.yaml"
DATA = YAML(typ="safe").load(FILE)
CASES: dict[str, Any] = DATA["cases"]


def write(name: str, folder: Path) -> list[str]:
    """Write a case; the command line that reads it."""
    (folder / "good.yaml").write_text(DATA["good"])
    (folder / "case.yaml").write_text(CASES[name]["text"])
    sets = CASES[name].get("set", [])
    return ["validate", "case.yaml", *(["--set", *sets] if sets else [])]


def expected_start(case: dict[str, Any]) -> str:
    """`error: FILE:LINE: key.path: `, as far as the case has them."""
    place = ":".join(
        str(part) for part in (case.get("file", "case.yaml"), case.get("line")) if part
    )
    return "error: " + ": ".join(part for part in (place, case.get("key")) if part) + ": "


@pytest.mark.parametrize("name", CASES)
def test_wrong_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = cli.run(write(name, tmp_path))
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith(expected_start(CASES[name]))
    assert CASES[name]["says"] in err
    assert err.count("\n") == 1, "one message, and nothing else"


def test_the_good_file_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(DATA["good"])
    assert cli.run(["validate", "good.yaml"]) == 0
    assert capsys.readouterr().out.startswith("good.yaml is valid")


@pytest.mark.parametrize("command", ["validate", "study run"])
def test_in_a_process_of_its_own(command: str, tmp_path: Path) -> None:
    _, *rest = write("duplicate_key", tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "memarch.cli", *command.split(), *rest],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: case.yaml:5: train.lr: ")
    assert ended.stderr.count("\n") == 1
