"""`init_from`: start a run from the weights of another model or trial."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from memarch.components.errors import SpecError

WEIGHTS = "model.safetensors"


def find_model(name: str, folder: Path) -> Path:
    """The folder of a saved model: a path, or `STUDY/NUMBER` in the storage around `folder`."""
    study, _, number = name.rpartition("/")
    candidates = [Path(name), Path(name) / "model"]
    if study and number.isdigit():
        storages = [
            parent.parent for parent in folder.resolve().parents if parent.name == "studies"
        ]
        storages.append(Path(os.environ.get("MEMARCH_STORAGE", "runs")))
        for storage in storages:
            candidates.append(storage / "studies" / study / "trials" / f"{int(number):03d}/model")
    for candidate in candidates:
        if (candidate / WEIGHTS).is_file():
            return candidate
    raise SpecError(
        f"no saved model at {name!r}; looked for {WEIGHTS} in "
        + ", ".join(str(candidate) for candidate in candidates),
        path="train.init_from",
    )


def load_weights(model: nn.Module, folder: Path) -> list[str]:
    """Copy every saved weight that the model has too; the names copied. Shapes must agree.

    What the model has and the saved one has not keeps its initial value: a new memory in a trained
    backbone. What only the saved one has is left out.
    """
    saved = load_file(str(folder / WEIGHTS))
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    common = [name for name in saved if name in own]
    misfits = [
        f"{name}: {list(saved[name].shape)} there, {list(own[name].shape)} here"
        for name in common
        if saved[name].shape != own[name].shape
    ]
    if misfits:
        raise SpecError(
            f"{len(misfits)} of the weights in {folder} do not fit this model: "
            + "; ".join(misfits[:8])
            + (" ..." if len(misfits) > 8 else ""),
            path="train.init_from",
        )
    if not common:
        raise SpecError(
            f"the model in {folder} shares no weight with this one", path="train.init_from"
        )
    with torch.no_grad():
        for name in common:
            own[name].copy_(saved[name])
    return common
