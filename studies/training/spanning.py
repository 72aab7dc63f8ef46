"""A trial that spans several GPUs and nodes: Ray Train starts its processes, which train as a team.

The pool's worker stays outside and waits; Ray Train places one process for each share of the size
(`studies.resources`), joins them by torch.distributed (NCCL on GPUs, gloo without), and each calls
the trial function, which asks `Team.here()` who leads. When one of them ends badly all are ended:
an error is the trial's result, a lost process or node is a lost worker, and the trial goes on from
its last checkpoint. Killing the pool's worker ends the processes too, for it owns them.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from memarch.studies.cluster.heartbeat import HaltedError, Heartbeat
from memarch.studies.cluster.jobs import Job, load_function, local_spec
from memarch.studies.cluster.resources import Size
from memarch.studies.records.store import Json, read_json, this_process, write_json, write_text

JOIN_SECONDS = 24 * 3600
"""How long processes wait for each other: the leader evaluates while the others stand by."""

START_SECONDS = "600"
"""How long Ray Train waits for its processes before it asks for them anew."""

HALTED = "halted"
"""A file that says that the processes were told to save and to stop, and did."""

ALONE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""By these accelerate would wrap the model in its own way; the session's team does what is due."""


def run_together(job: Job, size: Size, trial_function: str, mailbox: Any) -> Json:
    """Run the trial function in all processes of the trial; the leader's result."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_SECONDS)
    folder = Path(job.folder)
    own = folder / "train"
    for stale in [*folder.glob("error-rank-*.txt"), folder / HALTED]:
        stale.unlink(missing_ok=True)
    each = {name: amount for name, amount in size.each.items() if name != "GPU"}
    trainer = TorchTrainer(
        _process,
        train_loop_config={
            "job": job,
            "trial_function": trial_function,
            "threads": max(1, int(size.cpus)),
            "mailbox": mailbox,
        },
        torch_config=TorchConfig(backend="nccl" if size.gpus else "gloo", timeout_s=JOIN_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=size.processes, use_gpu=bool(size.gpus), resources_per_worker=each
        ),
        run_config=RunConfig(
            name="run", storage_path=str(own), failure_config=FailureConfig(max_failures=0)
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError:
        pass
    finally:
        shutil.rmtree(own, ignore_errors=True)
    for name in ("result.json", "trained.json"):
        result = read_json(folder / name)
        if result is not None:
            return dict(result)
    if (folder / HALTED).exists():
        raise HaltedError
    for error in sorted(folder.glob("error-rank-*.txt")):
        raise RuntimeError(_last_line(error.read_text(encoding="utf-8")))
    # A process or its node is gone: what a worker's own death means.
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _process(config: Json) -> None:
    """One of the processes; torch.distributed joins them already."""
    import torch

    from memarch.studies.cluster.mailbox import Reporter
    from memarch.studies.training.team import Team

    for name in ALONE:
        os.environ.pop(name, None)
    torch.set_num_threads(config["threads"])
    if torch.cuda.is_available():
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    team, job, folder = Team.here(), config["job"], Path(config["job"].folder)
    report: Any = _unheard
    key = (job.number, job.attempt)
    if team.leads:
        report = Reporter(key, folder, config["mailbox"])
    try:
        if team.leads:
            write_json(folder / "worker.json", this_process() | {"attempt": job.attempt})
        spec = team.ask(lambda: local_spec(job, folder))
        with Heartbeat(key, folder, config["mailbox"], 0) if team.leads else nullcontext():
            result = load_function(config["trial_function"])(spec, folder, report)
    except HaltedError:  # in all of them, after the same step
        if team.leads:
            write_text(folder / HALTED, "")
        return
    except Exception as error:
        if not team.lost_another(error):
            write_text(folder / f"error-rank-{team.rank}.txt", traceback.format_exc())
        sys.stdout.flush()
        raise
    if team.leads:
        report.flush()
        if result["state"] == "failed":  # the others wait in vain: Ray Train ends them
            raise RuntimeError(result["reason"])


def _unheard(step: int, metrics: Json) -> bool:
    raise AssertionError("the leader reports")


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
