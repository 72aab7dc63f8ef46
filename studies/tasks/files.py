"""Data that settings name: local files, folders and archives, or a data set on the hub.

`hf://owner/name` or `hf://owner/name/config` is a data set on the Hugging Face hub; everything else
is a local path, relative to the study's file or to the current folder, and must exist.
"""

from __future__ import annotations

import glob
import gzip
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator
from pydantic_core.core_schema import ValidationInfo

from memarch.components.errors import SpecError

if TYPE_CHECKING:
    import datasets

HUB = "hf://"


def _checked(text: str, info: ValidationInfo) -> str:
    """The same name, or the absolute path of what it names."""
    if text.startswith(HUB):
        if not 2 <= len(_hub_parts(text)) <= 3:
            raise SpecError(f"a data set on the hub is {HUB}owner/name, got {text!r}")
        return text
    folders: Sequence[Path] = (info.context or {}).get("folders", ()) or (Path.cwd(),)
    for folder in folders:
        candidate = (folder / Path(text).expanduser()).absolute()
        if candidate.exists() or ("*" in text and glob.glob(str(candidate), recursive=True)):
            return str(candidate)
    places = " or ".join(dict.fromkeys(str(folder) for folder in folders))
    raise SpecError(
        f"there is no file or folder {text!r} (looked in {places}); a data set on the Hugging Face "
        f"hub is written {HUB}owner/name"
    )


DataPath = Annotated[str, AfterValidator(_checked)]
"""A local file, folder, zip or glob pattern that exists, or `hf://owner/name`."""


def is_hub(name: str) -> bool:
    """Whether the name is one on the Hugging Face hub."""
    return name.startswith(HUB)


@lru_cache(maxsize=4)
def load_hub(name: str) -> datasets.DatasetDict:
    """All splits of a data set on the hub, downloaded on first use."""
    from datasets import DatasetDict, load_dataset

    owner, repository, *config = _hub_parts(name)
    try:
        found = load_dataset(f"{owner}/{repository}", *config)
    except Exception as error:  # the library raises a dozen kinds
        reason = str(error).strip().split("\n")[0]
        raise SpecError(f"cannot load {name!r} from the hub: {reason}", path="task.data") from error
    if not isinstance(found, DatasetDict):
        raise SpecError(f"{name!r} has no splits", path="task.data")
    return found


def _hub_parts(name: str) -> list[str]:
    return name.removeprefix(HUB).removeprefix("datasets/").strip("/").split("/")


class Files:
    """Names and contents of the files in a folder or in a zip archive."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.names = _listing(path, self.path.stat().st_mtime_ns)

    def read(self, name: str) -> str:
        """The text of one file."""
        if self.path.is_dir():
            return (self.path / name).read_text(encoding="utf-8")
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(name).decode("utf-8")


@lru_cache(maxsize=32)
def _listing(path: str, _modified: int) -> tuple[str, ...]:
    root = Path(path)
    if root.is_dir():
        found = (file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
        return tuple(sorted(found))
    try:
        with zipfile.ZipFile(root) as archive:
            return tuple(sorted(archive.namelist()))
    except (zipfile.BadZipFile, OSError) as error:
        raise SpecError(f"{path} is neither a folder nor a zip archive: {error}") from None


def text_files(path: str) -> list[Path]:
    """The files that a path means: itself, the text files of a folder, the matches of a pattern."""
    root = Path(path)
    if root.is_file():
        return [root]
    if root.is_dir():
        return sorted(file for file in root.rglob("*") if file.is_file() and is_text(file))
    return sorted(file for file in map(Path, glob.glob(path, recursive=True)) if file.is_file())


def is_text(file: Path) -> bool:
    """Whether a file of a folder belongs to a corpus, by its name."""
    return file.name.removesuffix(".gz").endswith((".txt", ".md"))


def read_bytes(file: Path) -> bytes:
    """The content of a file, unpacked where it is .gz."""
    content = file.read_bytes()
    return gzip.decompress(content) if file.suffix == ".gz" else content
