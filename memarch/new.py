"""`memarch new`: templates that work as they are, renamed to what the user calls them."""

from __future__ import annotations

import keyword
from importlib import resources
from pathlib import Path

from memarch.components.errors import SpecError

TEMPLATES = {"study": "study.yaml", "memory": "memory.py", "task": "task.py"}


def write_template(kind: str, path: Path, *, force: bool = False) -> tuple[Path, list[str]]:
    """Write the template under this path; the path and what to do next."""
    template = TEMPLATES[kind]
    suffix = Path(template).suffix
    if not path.suffix:
        path = path.with_suffix(suffix)
    allowed = (".yaml", ".yml") if suffix == ".yaml" else (suffix,)
    if path.suffix not in allowed:
        raise SpecError(f"a {kind} is a {' or '.join(allowed)} file, got {str(path)!r}")
    name = path.stem
    if kind != "study" and (not name.isidentifier() or keyword.iskeyword(name)):
        raise SpecError(
            f"the file's name becomes the {kind}'s name, so it must be a Python name such as "
            f"my_{kind}.py, got {path.name!r}"
        )
    if path.exists() and not force:
        raise SpecError(f"{path} exists; choose another name or give --force")
    text = resources.files("memarch").joinpath("templates", template).read_text(encoding="utf-8")
    text = text.replace(f"my_{kind}.{suffix[1:]}", path.name).replace(f"my_{kind}", name)
    text = text.replace(f"My{kind.capitalize()}", _class_name(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path, _next(kind, path)


def _class_name(name: str) -> str:
    camel = "".join(part[:1].upper() + part[1:] for part in name.split("_") if part)
    return camel if camel.isidentifier() else f"_{camel}"


def _next(kind: str, path: Path) -> list[str]:
    if kind == "study":
        return [f"memarch plan {path}", f"memarch study run {path}"]
    section = "model.memory.main" if kind == "memory" else "task"
    hints = [f"pytest {path}", f"plugins: [{path.name}] and {section}: {{type: {path.stem}}}"]
    return [f"memarch check {path}", *hints] if kind == "memory" else hints
