"""The study's records, Optuna's and MLflow's tell the same, trial by trial.

records_disagree(storage, name)        what they disagree about: an empty list where they agree
assert_records_agree(storage, name)    the same as an assertion
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna

from memarch.studies.records.store import FINISHED, StudyFolder
from memarch.studies.records.tracking import metric_name

OPTUNA_STATES = {
    "complete": ("COMPLETE",),
    "pruned": ("PRUNED",),
    "infeasible": ("PRUNED",),
    "failed": ("FAIL",),
    "waiting": ("RUNNING",),
    "running": ("RUNNING",),
}

MLFLOW_STATES = {
    "complete": ("FINISHED",),
    "pruned": ("FINISHED",),
    "infeasible": ("FINISHED",),
    "failed": ("FAILED",),
    "waiting": ("KILLED",),
    "running": ("RUNNING", "KILLED"),
}


def assert_records_agree(
    storage: str | Path,
    name: str,
    *,
    optuna_url: str | None = None,
    mlflow_uri: str | None = None,
) -> None:
    """Records, Optuna and MLflow hold the same trials, in the same states, with the same numbers.

    The databases are the storage folder's SQLite files unless their URLs are given.
    """
    found = records_disagree(storage, name, optuna_url=optuna_url, mlflow_uri=mlflow_uri)
    assert not found, "\n".join(["the records disagree:", *found])


def records_disagree(
    storage: str | Path,
    name: str,
    *,
    optuna_url: str | None = None,
    mlflow_uri: str | None = None,
) -> list[str]:
    """Each disagreement in a line."""
    folder = StudyFolder(Path(storage), name)
    records, objective = folder.records(), folder.info["objective"]
    trials = optuna_trials(folder, optuna_url or f"sqlite:///{folder.storage / 'optuna.db'}")
    runs = mlflow_runs(folder, mlflow_uri or f"sqlite:///{folder.storage / 'mlflow.db'}")
    lines = list(_numbers(records, trials, runs))
    for number, record in records.items():
        if number in trials:
            lines += _against_optuna(record, trials[number], objective)
        if len(runs.get(number, [])) == 1:
            lines += _against_mlflow(record, runs[number][0])
    return lines


def optuna_trials(folder: StudyFolder, url: str) -> dict[int, optuna.trial.FrozenTrial]:
    """Optuna's trials of the study, by number."""
    storage = optuna.storages.get_storage(url)
    own = [
        summary.study_name
        for summary in optuna.get_all_study_summaries(storage)
        if summary.user_attrs.get("memarch.id") == folder.info["id"]
    ]
    assert len(own) == 1, f"Optuna has {len(own)} studies of this id: {own}"
    study = optuna.load_study(study_name=own[0], storage=storage)
    return {trial.number: trial for trial in study.trials}


def mlflow_runs(folder: StudyFolder, uri: str) -> dict[int, list[Any]]:
    """MLflow's child runs of the study, by trial number: one each, where all is well."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(folder.name)
    assert experiment is not None, f"MLflow has no experiment {folder.name!r}"
    query, token, found = f"tags.`memarch.id` = '{folder.info['id']}'", None, []
    while True:
        page = client.search_runs(
            [experiment.experiment_id], query, max_results=1000, page_token=token
        )
        found += page
        token = page.token
        if not token:
            break
    parents = [run for run in found if run.data.tags.get("memarch.kind") == "study"]
    assert len(parents) == 1, f"MLflow has {len(parents)} parent runs"
    runs: dict[int, list[Any]] = {}
    for run in found:
        if "memarch.trial" in run.data.tags:
            runs.setdefault(int(run.data.tags["memarch.trial"]), []).append(run)
            assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
    return runs


def _numbers(
    records: Mapping[int, Any], trials: Mapping[int, Any], runs: Mapping[int, list[Any]]
) -> Iterator[str]:
    """Every trial is there once, in all three."""
    first = min(records, default=0)
    if sorted(records) != list(range(first, first + len(records))):
        yield f"records are not numbered without gaps: {sorted(records)}"
    # Before the first stand trials of earlier studies, of a warm start.
    if {number for number in trials if number >= first} != set(records):
        yield f"Optuna has trials {sorted(trials)}, the records are {sorted(records)}"
    # What was stopped at once has no run yet: `resume` makes it.
    finished = {n for n, record in records.items() if _finished(record)}
    if not finished <= set(runs) <= set(records):
        yield f"MLflow has runs {sorted(runs)}, the records are {sorted(records)}"
    for number, count in Counter({n: len(found) for n, found in runs.items()}).items():
        if count != 1:
            yield f"trial {number}: MLflow has {count} runs of it"


def _finished(record: Mapping[str, Any]) -> bool:
    return record["state"] in FINISHED


def _against_optuna(
    record: Mapping[str, Any], trial: optuna.trial.FrozenTrial, objective: Mapping[str, str]
) -> Iterator[str]:
    who, state = f"trial {record['number']}", record["state"]
    if trial.state.name not in OPTUNA_STATES[state]:
        yield f"{who}: the record says {state}, Optuna {trial.state.name}"
    if state == "complete":
        scores = [record["metrics"][name] for name in objective]
        if trial.values != scores:
            yield f"{who}: the record has {scores}, Optuna {trial.values}"
    for name, value in record["params"].items():
        told = [
            trial.params[key]
            for key in (name, f"{record['variant']}.{name}")
            if key in trial.params
        ]
        if isinstance(value, int | float) and told and told[0] != value:
            yield f"{who}: {name} is {value} in the record, {told[0]} in Optuna"
    if "variant" in trial.params and trial.params["variant"] != record["variant"]:
        yield f"{who}: variant {record['variant']}, in Optuna {trial.params['variant']}"


def _against_mlflow(record: Mapping[str, Any], run: Any) -> Iterator[str]:
    who, state = f"trial {record['number']}", record["state"]
    if run.info.status not in MLFLOW_STATES[state]:
        yield f"{who}: the record says {state}, MLflow {run.info.status}"
    if _finished(record) and run.data.tags.get("state") != state:
        yield f"{who}: the record says {state}, MLflow's tag {run.data.tags.get('state')}"
    for name, value in record["params"].items():
        logged = run.data.params.get(metric_name(name))
        if value != "" and logged != str(value):
            yield f"{who}: {name} is {value} in the record, {logged} in MLflow"
    if _finished(record):
        for name, value in record["metrics"].items():
            logged = run.data.metrics.get(metric_name(name))
            if value is not None and (logged is None or not math.isclose(logged, value)):
                yield f"{who}: {name} is {value} in the record, {logged} in MLflow"
