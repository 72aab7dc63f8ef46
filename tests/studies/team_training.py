"""One training by two processes that is cut off and goes on, and the same by one: in a folder.

    python team_training.py FOLDER

A process of its own, for it forks, which must happen before torch has computed a gradient.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from memarch.studies.training.team import Team
from memarch.studies.training.training import train

CUT_AT = 8


def spec() -> dict[str, Any]:
    path = Path(__file__).with_name("training_spec.py")
    found = importlib.util.spec_from_file_location("training_specs", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    made: dict[str, Any] = module.make_spec(
        {"main": {"type": "gradmem", "num_tokens": 2}},
        budget={"steps": 12},
        eval_every=4,
        checkpoint_every=4,
        accumulate=2,
        clip=0.5,
    )
    return made


class Cut(Exception):  # noqa: N818
    """The power goes."""


def member(rank: int, folder: Path, settings: dict[str, Any], die_at: int) -> None:
    dist.init_process_group("gloo", f"file://{folder}/join-{die_at}", rank=rank, world_size=2)

    def report(step: int, metrics: dict[str, float]) -> bool:
        assert rank == 0
        if step == die_at:
            raise Cut
        return False

    try:
        outcome = train(settings, folder / "team", report)
    except Exception as error:
        end = "cut" if isinstance(error, Cut) else f"lost={Team.here().lost_another(error)}"
        (folder / f"end-{rank}").write_text(end)
        return
    if rank == 0:
        torch.save(outcome, folder / "team.pt")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    settings = spec()
    for die_at in (CUT_AT, -1):
        arguments = (folder, settings, die_at)
        processes.start_processes(member, arguments, nprocs=2, start_method="fork")
        kept = sorted((folder / "team" / "checkpoints").glob("*.pt"))
        (folder / f"kept-{die_at}").write_text(" ".join(path.stem for path in kept))
    torch.save(train(settings, folder / "alone", lambda step, metrics: False), folder / "alone.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
