"""Every wrong file gives one clear error with file, line and key: the cases of wrong_files.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from memarch.components.errors import SpecError
from memarch.studies.settings.spec import load_study

DATA = YAML(typ="safe").load(Path(__file__).with_name("wrong_files.yaml"))
CASES: dict[str, Any] = DATA["cases"]


def test_the_good_file_is_good(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(DATA["good"])
    assert load_study(tmp_path / "good.yaml").validate() == []


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_wrong_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(DATA["good"])
    Path("case.yaml").write_text(case["text"])
    with pytest.raises(SpecError) as caught:
        load_study("case.yaml", case.get("set", ())).validate()
    error = caught.value
    assert case["says"] in error.message
    assert error.path == case.get("key", "")
    assert (error.file, error.line) == (case.get("file", "case.yaml"), case.get("line"))
    assert "\n" not in str(error)
