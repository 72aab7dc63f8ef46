"""How the folders may import each other, and what the model's side must not need."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "components", "arch", "search_spaces", "studies", "memarch")
MAY_IMPORT = {
    "kernels": {"kernels"},
    "components": {"kernels", "components"},
    "arch": {"kernels", "components", "arch"},
    "search_spaces": {"components", "arch", "search_spaces"},
    "studies": {"kernels", "components", "arch", "search_spaces", "studies"},
    "memarch": set(FOLDERS),
}
MODEL_SIDE = ("kernels", "components", "arch")
STUDY_SIDE = (
    "ray",
    "optuna",
    "mlflow",
    "datasets",
    "peft",
    "accelerate",
    "plotly",
    "typer",
    "rich",
)


def modules(folder: str) -> Iterator[Path]:
    """Every Python file of a folder, templates (text for the user to edit) left out."""
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        if "templates" not in path.parts:
            yield path


def imported(tree: ast.AST) -> Iterator[str]:
    """Full dotted names of everything that a file imports, at its top and inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level + (node.module or "")
            elif node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(folder: str, source: str) -> list[str]:
    """The imports in `source`, a file of `folder`, that the direction of imports forbids."""
    wrong = []
    for name in imported(ast.parse(source)):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if name.startswith(".") or top in FOLDERS[:-1]:
            wrong.append(name)
        elif top == "memarch" and target:
            owner = target if target in FOLDERS else "memarch"
            if owner not in MAY_IMPORT[folder]:
                wrong.append(name)
        elif name == "memarch" and folder != "memarch":
            # `import memarch` and the first half of `from memarch import arch`.
            continue
    return wrong


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(folder: str) -> None:
    """kernels <- components <- arch <- studies <- memarch, by full names only."""
    wrong = {
        str(path.relative_to(REPOSITORY)): found
        for path in modules(folder)
        if (found := wrong_imports(folder, path.read_text("utf-8")))
    }
    assert not wrong, f"{folder} may import {sorted(MAY_IMPORT[folder])} as memarch.*: {wrong}"


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("components", "from memarch.arch.spec import ModelSpec"),
        ("kernels", "def f():\n    import memarch.components.memory"),
        ("arch", "from memarch import studies"),
        ("studies", "from memarch import cli"),
        ("studies", "from studies.spec import StudySettings"),
        ("arch", "import kernels"),
        ("arch", "from . import spec"),
    ],
)
def test_a_wrong_import_is_seen(folder: str, source: str) -> None:
    """The test above can fail."""
    assert wrong_imports(folder, source)


def is_docstring_only(source: str) -> bool:
    """Whether a module has a docstring and nothing else."""
    body = ast.parse(source).body
    return (
        len(body) == 1
        and isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    )


def test_every_folder_says_what_it_is_for_and_nothing_else() -> None:
    """`__init__.py` is a docstring. Exceptions: the facade, and the API of each kernel."""
    missing = []
    for folder in FOLDERS:
        for place in {path.parent for path in modules(folder)}:
            relative = place.relative_to(REPOSITORY)
            init = place / "__init__.py"
            if not init.exists():
                missing.append(f"{relative} has no __init__.py")
            elif relative == Path("memarch") or (
                relative.parts[0] == "kernels" and len(relative.parts) > 1
            ):
                assert ast.get_docstring(ast.parse(init.read_text("utf-8"))), (
                    f"{relative}: no docstring"
                )
            elif not is_docstring_only(init.read_text("utf-8")):
                missing.append(f"{relative}/__init__.py holds more than a docstring")
    assert not missing


def test_tests_are_no_package() -> None:
    """Importlib mode: two test files may have one name, and no folder of tests hides a package."""
    assert not list((REPOSITORY / "tests").rglob("__init__.py"))


def run_python(code: str, *, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, outside the repository, with `path` first on sys.path."""
    prelude = f"import sys; sys.path.insert(0, {str(path)!r})\n" if path else ""
    return subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=Path(sys.prefix),
        timeout=240,
        check=False,
    )


def test_the_model_side_needs_no_study_libraries() -> None:
    """Every module of kernels, components and arch imports where Ray, Optuna … are absent."""
    names = [
        ".".join(("memarch", *path.relative_to(REPOSITORY).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for folder in MODEL_SIDE
        for path in modules(folder)
        if path.name != "triton.py"  # imported only where a Triton kernel is asked for
    ]
    result = run_python(
        f"""
        import importlib, sys
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {STUDY_SIDE!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Absent())
        # transformers asks find_spec which optional libraries there are, then imports them.
        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, package=None: (
            None if name.partition(".")[0] in {STUDY_SIDE!r} else find(name, package))
        for name in {names!r}:
            importlib.import_module(name)
        print("imported")
        """
    )
    assert result.returncode == 0, result.stderr
    assert "imported" in result.stdout


def test_what_runs_beside_training_holds_no_torch() -> None:
    """A process for each study and node: the time and memory of torch would be wasted there."""
    names = ("cluster.mailbox", "cluster.node_probe", "records.mirror", "report.parent_run")
    result = run_python(
        f"""
        import importlib, sys
        for name in {names!r}:
            importlib.import_module(f"memarch.studies.{{name}}")
        print("torch" in sys.modules)
        """
    )
    assert result.stdout == "False\n", result.stderr


def test_our_kernels_never_stand_in_for_another_package_of_that_name(tmp_path: Path) -> None:
    """transformers imports whatever is called `kernels`: it must find the other package."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("STAND_IN = True\n", encoding="utf-8")
    result = run_python(
        """
        import transformers, transformers.models.llama.modeling_llama
        import kernels, memarch.kernels
        assert kernels.STAND_IN
        assert memarch.kernels is not kernels and not hasattr(memarch.kernels, "STAND_IN")
        print("both")
        """,
        path=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "both" in result.stdout


def test_no_bare_kernels_is_importable_from_our_installation() -> None:
    """The repository root is not on the path, so `import kernels` cannot find our folder."""
    result = run_python(
        """
        import importlib.util, memarch.kernels
        found = importlib.util.find_spec("kernels")
        print("none" if found is None else found.origin)
        """
    )
    assert result.returncode == 0, result.stderr
    assert str(REPOSITORY) not in result.stdout


def test_the_linter_refuses_bare_imports_of_our_folders(tmp_path: Path) -> None:
    """ruff, with our settings, names each of them."""
    file = tmp_path / "wrong.py"
    folders = FOLDERS[:-1]
    file.write_text("".join(f"import {name}\n" for name in folders), encoding="utf-8")
    ruff = Path(sys.executable).parent / "ruff"
    result = subprocess.run(
        [
            ruff,
            "check",
            "--no-cache",
            "--select",
            "TID251",
            "--config",
            REPOSITORY / "pyproject.toml",
            file,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    for name in folders:
        assert f"`{name}` is banned: import it as memarch.{name}" in result.stdout
