"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text("utf-8")
STUDIES = [
    block
    for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    if re.search(r"^study:", block, re.MULTILINE)
]


@pytest.mark.parametrize("text", STUDIES)
def test_its_studies_are_valid(text: str, tmp_path: Path) -> None:
    """Each YAML block that is a whole study."""
    from memarch.studies.settings.spec import load_study

    file = tmp_path / "study.yaml"
    file.write_text(text, encoding="utf-8")
    load_study(file, ()).validate()


def test_its_commands_exist() -> None:
    """Every `memarch COMMAND` in a block of shell commands."""
    import click

    from memarch.cli import app

    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        for words in re.findall(r"^(?:.*&& )?memarch ((?:[a-z]+ ?)+)", block, re.MULTILINE):
            command: click.Command = app
            for word in words.split():
                if isinstance(command, click.Group):
                    assert word in command.commands, f"memarch {words}"
                    command = command.commands[word]


def test_its_links_lead_somewhere() -> None:
    """Relative links and pictures."""
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (REPOSITORY / target).exists(), target


def test_its_make_targets_exist() -> None:
    """`make quickstart`, `make test`, ..."""
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
