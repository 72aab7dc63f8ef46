"""What `import memarch` gives: build a model, load one, run a study, read its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memarch.arch.build import build_model
from memarch.arch.model import MemarchModel
from memarch.arch.spec import ModelSpec
from memarch.components.errors import SpecError
from memarch.components.plugins import load_plugins
from memarch.inputs import find_trial, open_study, resolve_one
from memarch.search_spaces.study_file import StudyFile
from memarch.studies.driver.events import Event, StudyResult


def build(
    spec: str | Path | Mapping[str, Any] | ModelSpec,
    *,
    variant: str | None = None,
    overrides: Sequence[str] = (),
    vocab_size: int | None = None,
    seed: int | None = None,
) -> MemarchModel:
    """The model that a YAML file, the map under its `model:`, or a ModelSpec describes.

    From a file, its task gives the vocabulary's size and its seeds the weights, unless given here.
    Raises SpecError.
    """
    if not isinstance(spec, str | Path):
        return build_model(spec, vocab_size=vocab_size, seed=seed)
    from memarch.studies.training.points import make_task
    from memarch.studies.training.session import seed_of

    resolved = resolve_one(load_study(spec, overrides), variant).spec
    if vocab_size is None and resolved.get("task") is not None:
        vocab_size = make_task(resolved["task"], resolved["model"]).vocab_size
    seed = seed_of(resolved, "model") if seed is None else seed
    return build_model(resolved["model"], vocab_size=vocab_size, seed=seed)


def load(
    model: str | Path, *, storage: str | Path | None = None, plugins: Sequence[str | Path] = ()
) -> MemarchModel:
    """A saved model: its folder, or `STUDY/NUMBER`. `plugins`: the files that its memory is in.

    Raises SpecError where there is neither.
    """
    load_plugins(plugins)
    path = Path(model)
    if not path.exists():
        from memarch.studies.records.store import storage_folder

        trial = find_trial(str(model), storage_folder(storage))
        if trial is None:
            raise SpecError(f"there is no folder {str(model)!r}; a trial is written STUDY/NUMBER")
        load_plugins((trial.spec or {}).get("plugins") or [])
        path = trial.path
    inside = path / "model"
    return MemarchModel.from_pretrained(inside if inside.is_dir() else path)


def load_study(
    file: str | Path, overrides: Sequence[str] = (), *, storage: str | Path | None = None
) -> StudyFile:
    """A study file, read and not yet checked: `.variants`, `.space(variant)`, `.validate()`."""
    return open_study(file, overrides, storage)


def run_study(
    file: str | Path,
    *,
    storage: str | Path | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
    address: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> StudyResult:
    """Run a study to its end, as `memarch study run` does. Raises SpecError.

    The result has `.best_trial` (a map with `variant`, `params`, `metrics`), `.best` (the numbers
    of the best trials), `.trials` and `.frame()`.
    """
    from memarch.studies.driver import sessions

    return sessions.run_study(
        file, storage=storage, name=name, overrides=overrides, address=address, on_event=on_event
    )


def study_results(name: str, *, storage: str | Path | None = None) -> StudyResult:
    """What is known of a study that ran, or runs: `.best_trial`, `.best`, `.trials`, `.frame()`."""
    from memarch.studies.records.store import find_study, show_study

    shown = show_study(name, storage)
    return StudyResult(
        name=name,
        path=str(find_study(storage, name).path),
        state=shown["state"],
        objective=shown["objective"],
        trials=shown["trials"],
        best=shown["best"],
    )
