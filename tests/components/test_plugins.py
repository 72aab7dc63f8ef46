"""A user's own files: imported once, replaced when edited, refused with what is wrong and where."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from memarch.components.errors import SpecError
from memarch.components.memory import memories
from memarch.components.plugins import load_plugins, registered_by

MEMORY = '''
from typing import Literal
from memarch.components.memory import Memory, MemorySettings, memories

@memories.register("{name}")
class Mine(Memory):
    """{doc}"""
    site = "segment"
    class Settings(MemorySettings):
        type: Literal["{name}"]
    def __init__(self, settings, context): super().__init__()
    def init_state(self, batch, like): return {{}}
    def step(self, state, x, inner, segment): return inner(x, segment.valid), state
'''


def write(path: Path, name: str, doc: str = "") -> Path:
    path.write_text(MEMORY.format(name=name, doc=doc))
    return path


def test_a_file_registers_and_its_hash_is_of_its_text(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "plugin_a")
    assert load_plugins([file]) == {str(file): hashlib.sha256(file.read_bytes()).hexdigest()}
    assert registered_by(file) == {"memory": {"plugin_a"}}
    assert memories["plugin_a"].cls.site == "segment"


def test_a_copy_of_a_file_is_the_same_module(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "plugin_b")
    load_plugins([file])
    cls = memories["plugin_b"].cls
    (tmp_path / "copy").mkdir()
    copy = write(tmp_path / "copy" / "mine.py", "plugin_b")
    load_plugins([copy])
    assert memories["plugin_b"].cls is cls
    assert registered_by(copy) == {"memory": {"plugin_b"}}


def test_an_edited_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "plugin_c", "old")
    load_plugins([file])
    write(file, "plugin_c", "new")
    load_plugins([file])
    assert memories["plugin_c"].cls.__doc__ == "new"
    write(file, "plugin_d")
    load_plugins([file])
    assert "plugin_c" not in memories
    assert "plugin_d" in memories


def test_a_task_is_registered_too(tmp_path: Path, repository: Path) -> None:
    text = (repository / "memarch" / "templates" / "task.py").read_text()
    file = tmp_path / "other.py"
    file.write_text(text.replace("my_task", "plugin_task"))
    load_plugins([file])
    assert registered_by(file) == {"task": {"plugin_task"}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "registers nothing"),
        ("import nothing_of_that_name\n", "ModuleNotFoundError"),
        ("x = 1\ny = undefined\n", "NameError: name 'undefined' is not defined (line 2)"),
        ("def f(:\n", "SyntaxError"),
        (MEMORY.format(name="rmt", doc=""), "'rmt' is registered twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    before = set(sys.modules)
    with pytest.raises(SpecError) as caught:
        load_plugins([file])
    assert says in caught.value.message
    assert str(file) in caught.value.message
    assert not [name for name in set(sys.modules) - before if name.startswith("memarch_plugin")]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        load_plugins([tmp_path / "nowhere.py"])


def test_a_failed_file_can_be_mended(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "plugin_e")
    text = file.read_text()
    file.write_text(text + "\nundefined\n")
    with pytest.raises(SpecError):
        load_plugins([file])
    assert "plugin_e" not in memories
    file.write_text(text)
    load_plugins([file])
    assert "plugin_e" in memories
