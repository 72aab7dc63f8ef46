"""Runs in MLflow that are nobody's: a second one of a trial, or one of a trial without a record.

A driver that was killed in the middle of making a run may leave them. They are ended and moved to
MLflow's deleted runs, from where they can be restored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def without_zombies(
    client: MlflowClient, runs: Iterable[Run], numbers: Collection[int]
) -> tuple[dict[int, Run], list[str]]:
    """One run a trial, of these that have a record; and what was done about the others."""
    kept: dict[int, Run] = {}
    told = []
    for run in sorted(runs, key=lambda one: (one.info.status != "FINISHED", one.info.start_time)):
        number = int(run.data.tags["memarch.trial"])
        if number in numbers and number not in kept:
            kept[number] = run
            continue
        why = "a second run of it" if number in kept else "a run of it without a record"
        told.append(f"MLflow had {why}: trial {number}, run {run.info.run_id}, deleted there")
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, status="KILLED")
        client.delete_run(run.info.run_id)
    return kept, told
