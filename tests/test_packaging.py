"""The wheel holds the whole tree and nothing else; type checking sees across the folders."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ("arch", "components", "kernels", "search_spaces", "studies")


def tree_modules() -> set[str]:
    """Paths that the wheel must hold, as they stand in it."""
    found = {
        f"memarch/{path.relative_to(REPOSITORY)}"
        for folder in FOLDERS
        for path in (REPOSITORY / folder).rglob("*.py")
    }
    found |= {
        f"memarch/{path.relative_to(REPOSITORY)}"
        for path in (REPOSITORY / "search_spaces").glob("*.yaml")
    }
    found |= {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "memarch").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel, built from a copy: no build/ is left behind, and no old one is used."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    for name in (*FOLDERS, "memarch"):
        shutil.copytree(
            REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    out = tmp_path_factory.mktemp("wheel")
    result = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        capture_output=True,
        text=True,
        cwd=out,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_whole_tree_and_nothing_else(wheel: Path) -> None:
    """A folder missing from `packages` in pyproject.toml is silently missing from the wheel."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = tree_modules()
    missing, surplus = sorted(expected - names), sorted(names - expected)
    assert not missing, f"not in the wheel; add the folder to pyproject.toml: {missing}"
    assert not surplus, f"in the wheel, not in the tree: {surplus}"


def test_the_wheel_has_one_top_level_name(wheel: Path) -> None:
    """Above all no `kernels`, a name that belongs to another package."""
    archive = zipfile.ZipFile(wheel)
    tops = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" not in name}
    assert tops == {"memarch"}
    entry_points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "memarch = memarch.cli:main" in archive.read(entry_points).decode()


def test_the_wheel_imports_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    """Unpacked somewhere else, its own modules are the ones that import."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        # -S leaves out the editable install; the libraries' folder is put back by hand.
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; sys.path += {sys.path!r}\n"
        "import memarch.components.registry as ours, memarch.studies.tasks, memarch.search_spaces\n"
        "print(ours.__file__)"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "memarch/components/registry.py")


def test_constraints_pin_every_requirement_without_local_versions() -> None:
    """`torch==2.13.0+cpu` would exist on no public index; triton is torch's own choice."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["dev"]
    lines = [
        line
        for line in (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
        if line[:1] not in "#"
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in lines), lines
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    wanted = {re.match(r"[A-Za-z0-9._-]+", item)[0].lower() for item in requirements}
    assert wanted - pinned == {"triton"}


def test_everything_imported_is_declared() -> None:
    """No module leans on a library that only comes with another one."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {
        re.match(r"[A-Za-z0-9._-]+", item)[0].lower().replace("_", "-")
        for item in project["dependencies"]
    }
    owners = packages_distributions()
    undeclared = {}
    for folder in (*FOLDERS, "memarch"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names:
                    known = {owner.lower().replace("_", "-") for owner in owners.get(top, [top])}
                    if top not in ("memarch", "triton", "pydantic_core") and not known & declared:
                        undeclared[top] = str(path.relative_to(REPOSITORY))
    assert not undeclared


def test_the_torch_range_admits_old_and_new() -> None:
    """Clusters still run 2.11."""
    from packaging.requirements import Requirement

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    torch = next(Requirement(item) for item in project["dependencies"] if item.startswith("torch>"))
    assert all(version in torch.specifier for version in ("2.11.0", "2.13.0"))


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the repository's Makefile in a copy of what it needs."""
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_type_checking_sees_across_the_folders(tmp_path: Path) -> None:
    """A wrong type that crosses from components to arch is found, under the file's real path."""
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    for folder in (*FOLDERS, "memarch"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(f'"""{folder}"""\n', encoding="utf-8")
    (tmp_path / "components/size.py").write_text(
        "def size() -> int:\n    return 1\n", encoding="utf-8"
    )
    user = tmp_path / "arch/user.py"
    user.write_text(
        "from memarch.components.size import size\n\nn: int = size()\n", encoding="utf-8"
    )
    (tmp_path / ".make").mkdir()
    (tmp_path / ".make/python").write_text(f"{sys.executable}\n", encoding="utf-8")

    right = make(tmp_path, "run-types")
    assert right.returncode == 0, right.stdout + right.stderr
    user.write_text(
        "from memarch.components.size import size\n\nn: bytes = size()\n", encoding="utf-8"
    )
    wrong = make(tmp_path, "run-types")
    assert wrong.returncode != 0
    assert "arch/user.py:3: error: Incompatible types in assignment" in wrong.stdout
    assert not wrong.stdout.startswith(".mypy")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_names_what_is_wrong_with_python(tmp_path: Path) -> None:
    """PYTHON= is honoured, and refused with its reason when it cannot be used."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path / "Makefile")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    result = make(tmp_path, "dev", "PYTHON=/nowhere/python")
    assert result.returncode != 0
    assert "PYTHON=/nowhere/python does not run, or is older than 3.11" in result.stderr
    assert not (tmp_path / ".venv").exists()
