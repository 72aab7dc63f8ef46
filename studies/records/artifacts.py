"""Checkpoints and models beyond this machine: copies at any fsspec URL, `--artifacts URL`.

    gs://bucket/runs   s3://bucket/runs   file:///shared/runs   memory://runs

A trial writes in its own folder and then copies what is new to `URL/STUDY/TRIAL/…`; a trial that
goes on elsewhere fetches what its folder lacks. A copy is there whole or not at all: it is written
under another name and renamed, or, where a store has no renaming, put in one request.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memarch.components.errors import SpecError
from memarch.studies.records.database import without_password

VARIABLE = "MEMARCH_ARTIFACTS"


def chosen_artifacts(given: str | None, remembered: str | None, *, began: bool) -> str | None:
    """The URL to use: what the command says, what the study began with, or `$MEMARCH_ARTIFACTS`."""
    if given or began:
        return given or remembered
    return os.environ.get(VARIABLE) or None


def check_artifacts(url: str | None) -> None:
    """Refuse a place that cannot be written to: a file is put there and removed."""
    if url is None:
        return
    try:
        store = ArtifactStore.at(url)
        probe = f"{store.root}/.memarch-{uuid.uuid4().hex}"
        store.system.makedirs(store.root, exist_ok=True)
        store.system.pipe_file(probe, b"")
        store.system.rm_file(probe)
    except (ImportError, ValueError, OSError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpecError(
            f"{without_password(url)} cannot be written to: {line}", path="--artifacts"
        ) from None


@dataclass(frozen=True)
class ArtifactStore:
    """A folder at a URL."""

    system: Any
    root: str

    @classmethod
    def at(cls, url: str) -> ArtifactStore:
        import fsspec

        system, root = fsspec.core.url_to_fs(url)
        return cls(system, root.rstrip("/"))

    def put(self, path: Path, name: str) -> None:
        """Copy a file there, whole or not at all."""
        target = f"{self.root}/{name}"
        partial = f"{target}.{uuid.uuid4().hex}.partial"
        self.system.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.system.put_file(str(path), partial)
        self.system.mv(partial, target)

    def get(self, name: str, path: Path) -> None:
        """Copy a file from there, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            self.system.get_file(f"{self.root}/{name}", str(partial))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        """Files below a folder there, as paths from it; none where there is no folder."""
        top = f"{self.root}/{folder}"
        self.system.invalidate_cache()
        found = [str(path) for path in self.system.find(top)]
        names = [path[path.index(folder) + len(folder) :].lstrip("/") for path in found]
        return sorted(name for name in names if not name.endswith(".partial"))

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            self.system.rm_file(f"{self.root}/{name}")


@dataclass(frozen=True)
class TrialArtifacts:
    """One trial's files at the URL, beside its folder here."""

    store: ArtifactStore
    name: str
    folder: Path

    @classmethod
    def of(cls, url: str, folder: Path) -> TrialArtifacts:
        """`folder` is STORAGE/studies/STUDY/trials/NUMBER."""
        return cls(ArtifactStore.at(url), f"{folder.parents[1].name}/{folder.name}", folder)

    def send(self, *parts: str) -> None:
        """Copy files and folders; what is gone here is removed there, afterwards."""
        for part in parts:
            here = {
                str(path.relative_to(self.folder))
                for path in [self.folder / part, *(self.folder / part).rglob("*")]
                if path.is_file() and not path.name.startswith(".")
            }
            there = {
                f"{part}/{name}" if name else part
                for name in self.store.names(f"{self.name}/{part}")
            }
            for name in sorted(here):
                self.store.put(self.folder / name, f"{self.name}/{name}")
            self.store.remove(f"{self.name}/{name}" for name in sorted(there - here))

    def fetch(self, *parts: str) -> None:
        """Fetch what this folder lacks."""
        for part in parts:
            for name in self.store.names(f"{self.name}/{part}"):
                relative = f"{part}/{name}" if name else part
                if not (self.folder / relative).exists():
                    self.store.get(f"{self.name}/{relative}", self.folder / relative)


_current: ContextVar[TrialArtifacts | None] = ContextVar("artifacts", default=None)

PROGRESS = ("progress.jsonl", "attempts.jsonl", "checkpoints")
RESULT = ("result.json", "model")


@contextmanager
def kept_at(url: str | None, folder: Path) -> Iterator[None]:
    """While the trial of this folder runs: what it left elsewhere is here, what it leaves there."""
    if url is None:
        yield
        return
    artifacts = TrialArtifacts.of(url, folder)
    artifacts.fetch(*PROGRESS, *RESULT)
    token = _current.set(artifacts)
    try:
        yield
    finally:
        _current.reset(token)
        _try(artifacts, *PROGRESS, *RESULT)


def checkpoint_saved() -> None:
    """A trial has written a checkpoint: copy it, where copies are kept."""
    artifacts = _current.get()
    if artifacts is not None:
        _try(artifacts, *PROGRESS)


def _try(artifacts: TrialArtifacts, *parts: str) -> None:
    """A store that does not answer costs copies, not trainings: the next checkpoint tries again."""
    try:
        artifacts.send(*parts)
    except Exception as error:  # what a store raises is its own
        text = f"{type(error).__name__}: {error}\n"
        (artifacts.folder / "artifacts_error.txt").write_text(text, encoding="utf-8")


def fetch_result(url: str | None, folder: Path) -> None:
    """What a trial left whose worker has another disk: its result, its curves."""
    if url is not None:
        TrialArtifacts.of(url, folder).fetch("progress.jsonl", "result.json")


def fetch_model(url: str | None, folder: Path) -> None:
    """The trained model, to be evaluated where it was not trained."""
    if url is not None:
        TrialArtifacts.of(url, folder).fetch("model")
