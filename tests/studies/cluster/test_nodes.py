"""What is looked at on every node, what is said when it is wrong, and the wheel that is sent."""

from __future__ import annotations

import copy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from memarch.studies.cluster import node_probe
from memarch.studies.cluster.nodes import Look, data_of
from memarch.studies.cluster.wheel import build_wheel
from memarch.studies.settings.spec import load_study

STUDY = """
study: {budget: {trials: 1}}
task: {type: text, data: notes.txt, length: 32}
model:
  backbone: {type: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}
  segment_length: 16
train: {budget: {steps: 2}}
"""


@pytest.fixture
def look(tmp_path: Path) -> tuple[Look, dict[str, Any]]:
    """What the driver has, and what a node that is just like it answers."""
    data = tmp_path / "data.txt"
    data.write_text("one")
    storage = tmp_path / "runs"
    storage.mkdir()
    token = storage / ".node-check-1"
    token.write_text(token.name)
    made = Look(storage, {}, [str(data)])
    made.request["token"] = str(token)
    made.mine = node_probe.look(made.request, "driver")
    return made, node_probe.look(made.request, "n1") | {"answered": True}


def test_a_node_like_the_driver_is_fine(look):
    made, found = look
    assert made.problem(found) is None
    assert not made.lacks_memarch(found)
    assert Path(f"{made.request['token']}.n1").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"python": "3.9"}, "has Python 3.9, the driver 3."),
        ({"packages": {"torch": None, "peft": None}}, "has no torch, peft; install what memarch"),
        ({"packages": {"torch": "1.0"}}, "has torch 1.0, the driver "),
        ({"memarch": "other", "place": "/old"}, "another memarch than the driver's, from /old"),
        ({"plugins": "mine.py is wrong"}, "cannot load the plugins: mine.py is wrong"),
        ({"files": None}, "data.txt, which the study reads; copy it there, or share the folder"),
        ({"files": "x"}, "data.txt than the driver; copy the driver's there"),
        ({"storage": {"token": None, "error": "No"}}, "does not see the storage folder"),
        ({"storage": {"token": ".node-check-1", "error": "Read-only"}}, "cannot write to the stor"),
        ({"answered": False}, "of its own; put it on a file system that all nodes share (--stor"),
    ],
)
def test_what_differs_is_one_clear_sentence(look, change, problem):
    made, found = look
    found = copy.deepcopy(found)
    for name, value in change.items():
        if name == "packages":
            found[name] |= value
        else:
            found[name] = dict.fromkeys(found[name], value) if name == "files" else value
    assert problem in (made.problem(found) or "")


def test_with_a_url_for_artifacts_the_storage_need_not_be_shared(look, tmp_path):
    made, found = look
    found["storage"] = {"token": None, "error": "No such file"}
    for url, problem in ((tmp_path / "a", None), ("nothing://x", "use --artifacts nothing://x: ")):
        made.request["artifacts"] = str(url)
        found["artifacts"] = node_probe.look(made.request, "n1")["artifacts"]
        assert (made.problem(found) or "None").find(str(problem)) >= 0
    assert not list((tmp_path / "a").iterdir())


def test_the_probe_sees_files_and_folders_that_differ(tmp_path):
    (tmp_path / "a").write_text("1")
    before = node_probe.digest(str(tmp_path)), node_probe.digest(str(tmp_path / "*"))
    (tmp_path / "a").write_text("2")
    after = node_probe.digest(str(tmp_path)), node_probe.digest(str(tmp_path / "*"))
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert node_probe.digest(str(tmp_path / "none")) is None


def test_a_plugin_that_does_not_load_on_a_node_is_named(tmp_path):
    assert "mine.py' fails to import: ModuleNotFoundError" in str(
        node_probe.trouble_with({"mine.py": "import nowhere_to_be_found\n"})
    )


def test_data_are_found_in_the_studys_specs(tmp_path):
    (tmp_path / "notes.txt").write_text("some text to learn " * 50)
    (tmp_path / "study.yaml").write_text(STUDY)
    assert data_of(load_study(tmp_path / "study.yaml")) == [str(tmp_path / "notes.txt")]


def test_the_wheel_installs_as_the_same_memarch(tmp_path):
    wheel = build_wheel(tmp_path)
    assert build_wheel(tmp_path / "again").read_bytes() == wheel.read_bytes()
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    (about,) = [name for name in names if name.endswith("/METADATA")]
    assert b"Requires-Dist" not in archive.read(about)  # Ray would have pip fetch them
    assert {"memarch/cli.py", "memarch/arch/build.py", "memarch/search_spaces/quickstart.yaml"} <= {
        *names
    }
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(wheel)], check=True)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "import memarch.studies.cluster.node_probe as p; "
        "assert p.__file__.startswith(sys.argv[1]), p.__file__; print(p.memarch_digest())"
    )
    there = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert there.stdout.strip() == node_probe.memarch_digest()
