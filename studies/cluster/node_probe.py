"""What a node of a cluster has, looked at from a task that runs there.

Only the standard library is imported at the top: this module travels to the node by value, for the
node may have no memarch, or another one.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import importlib.util
import os
import platform
import socket
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDERS = ("arch", "components", "kernels", "search_spaces", "studies")
"""They import as `memarch.arch`, …, and may lie beside the folder of `memarch` itself."""

WHOLE = 2**26
"""Of larger files only the first and the last part, and the size, are compared."""
PART = 2**20


def look(request: dict[str, Any], node: str) -> dict[str, Any]:
    """Versions, files and the storage folder of this node, and what is wrong with its plugins."""
    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "packages": {name: version_of(name) for name in request["packages"]},
        "memarch": memarch_digest(),
        "place": place(),
        "files": {path: digest(path) for path in request["files"]},
        "storage": answer(Path(request["token"]), node),
        "artifacts": request["artifacts"] and unreachable(request["artifacts"], node),
        "plugins": None,
    }
    if found["memarch"] == request["memarch"] and request["plugins"]:
        found["plugins"] = trouble_with(request["plugins"])
    return found


def version_of(package: str) -> str | None:
    """Without the part after `+`, which tells a build for CPUs from one for GPUs."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def memarch_files() -> Iterator[tuple[str, Path]]:
    """All files of the package by their names in a wheel; none where there is no memarch."""
    seen = set()
    for package in ("memarch", *(f"memarch.{folder}" for folder in FOLDERS)):
        try:
            spec = importlib.util.find_spec(package)
        except ImportError:
            return
        for root in (spec.submodule_search_locations or ()) if spec else ():
            for folder, names, files in os.walk(root, followlinks=True):
                names[:] = sorted(name for name in names if name != "__pycache__")
                for file in sorted(files):
                    path = Path(folder, file)
                    name = "/".join([*package.split("."), *path.relative_to(root).parts])
                    if name not in seen:
                        seen.add(name)
                        yield name, path


def place() -> str | None:
    """Where memarch is imported from."""
    spec = importlib.util.find_spec("memarch")
    return next(iter(spec.submodule_search_locations or ()), None) if spec else None


def memarch_digest() -> str | None:
    """The same where the code is the same, however it was installed."""
    files = {name: path for name, path in memarch_files() if name.endswith((".py", ".yaml"))}
    if "memarch/studies/training/trial.py" not in files:
        return None
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name} {hashlib.sha256(files[name].read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def digest(path: str) -> str | None:
    """Of a file, of all files of a folder, or of a pattern; None where there is nothing."""
    files: list[Path] = []
    for found in sorted(glob.glob(path, recursive=True)) or [path]:
        at = Path(found)
        files += sorted(p for p in at.rglob("*") if p.is_file()) if at.is_dir() else [at]
    total = hashlib.sha256()
    try:
        for file in files:
            total.update(f"{os.path.relpath(file, path)} {file.stat().st_size}\n".encode())
            with file.open("rb") as content:
                if file.stat().st_size <= WHOLE:
                    total.update(content.read())
                else:
                    total.update(content.read(PART))
                    content.seek(-PART, os.SEEK_END)
                    total.update(content.read(PART))
    except OSError:
        return None
    return total.hexdigest()


def answer(token: Path, node: str) -> dict[str, str | None]:
    """What the token's file says here, and a file beside it in return."""
    try:
        text = token.read_text()
    except OSError as error:
        return {"token": None, "error": error.strerror}
    try:
        token.with_name(f"{token.name}.{node}").write_text(text)
    except OSError as error:
        return {"token": text, "error": error.strerror}
    return {"token": text, "error": None}


def unreachable(url: str, node: str) -> str | None:
    """Why a file cannot be put at this URL and removed again, if it cannot."""
    try:
        import fsspec

        system, root = fsspec.core.url_to_fs(url)
        system.makedirs(root, exist_ok=True)
        system.pipe_file(f"{root}/.node-check-{node}", b"")
        system.rm_file(f"{root}/.node-check-{node}")
    except Exception as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def trouble_with(plugins: dict[str, str]) -> str | None:
    """Why the user's files do not load here, if they do not."""
    from memarch.components.plugins import load_plugins

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in plugins]
        for path, text in zip(paths, plugins.values(), strict=True):
            path.write_text(text, encoding="utf-8")
        try:
            load_plugins(paths)
        except Exception as error:
            return str(error).replace(f"{folder}/", "")
    return None
