"""MLflow's view of a study: one parent run, one child run a trial, written by the driver alone.

MLflow is a view, not the record: it can be rebuilt from the study's folder, trouble with it is
noted and never stops a study. A thread of its own does all of it, in order, so that neither its
slow start nor a slow server holds up a trial; metrics are sent in batches.
"""

from __future__ import annotations

import copy
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memarch.components.errors import SpecError
from memarch.studies.mlflow_ui import introduce, tags_of
from memarch.studies.store import FINISHED, Json, StudyFolder, create_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

FLUSH_INTERVAL = 2.0
BATCH = 900
"""MLflow takes at most 1000 metrics a batch."""

LONGEST_PARAMETER = 6000

MOST_FAILURES = 3
"""After so many failures in a row the server counts as gone; `resume` mends what is missing."""

STATUS = {
    "complete": "FINISHED",
    "infeasible": "FINISHED",
    "pruned": "FINISHED",
    "failed": "FAILED",
    "waiting": "KILLED",
}


def tracking_uri(storage: Path) -> str:
    """`$MLFLOW_TRACKING_URI`, else the SQLite file of the storage folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage / 'mlflow.db'}"


def check_tracking_uri(storage: Path) -> None:
    """Refuse what MLflow would refuse, before anything starts."""
    uri = tracking_uri(storage)
    local = "://" not in uri or uri.startswith("file:")
    allowed = os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() == "true"
    if local and not allowed and uri not in ("databricks", "uc"):
        raise SpecError(
            f"MLFLOW_TRACKING_URI={uri} is a folder, which MLflow no longer writes to; give a "
            "database such as sqlite:///mlflow.db or a server, or unset it"
        )


def run_name(number: int, variant: str, variables: Mapping[str, Any]) -> str:
    """A name for people: `007 gradmem nt8 ws2`, the vars by the initials of their words."""
    shown = [f"{_initials(name)}{_short(value)}" for name, value in variables.items()]
    return " ".join([f"{number:03d}", *([variant] if variant else []), *shown])


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.replace("-", "_").split("_") if word)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2g}"
    if isinstance(value, (list, tuple)):
        return "+".join(_short(item) for item in value)
    return str(value)


class Tracking:
    """One study in MLflow. Calls return at once, and are safe to repeat."""

    def __init__(self, folder: StudyFolder) -> None:
        self._folder = folder
        self._problems: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._calls: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._failures = 0
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._parent = ""
        self._id = ""
        self._runs: dict[int, str] = {}
        self._ended: set[int] = set()
        self._logged: dict[int, dict[tuple[str, int], float]] = {}
        self._waiting: dict[int, list[tuple[str, int, float, int]]] = {}
        self._last_step: dict[int, int] = {}
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def open(self, info: Json, records: Mapping[int, Json]) -> None:
        """Connect, make or find the parent run, and mend what a killed driver left behind."""
        self._call(self._open, info, records)

    def start(self, record: Json) -> None:
        """A trial starts, or goes on."""
        self._call(self._start, record)

    def report(self, number: int, step: int, at: float, metrics: Mapping[str, Any]) -> None:
        """Metrics on the way."""
        self._call(self._report, number, step, at, metrics)

    def finish(self, record: Json) -> None:
        """A trial has its final state."""
        self._call(self._finish, record)

    def interrupt(self, number: int) -> None:
        """A trial was cut off, and waits for the study to be resumed."""
        self._call(self._set, number, "waiting")

    def tested(self, record: Json) -> None:
        """Scores on the test split."""
        self._call(self._log_final, record)

    def close(self, info: Json) -> None:
        """Attach the report, end the parent run, and wait until all is written."""
        self._call(self._close, info)
        self._calls.put(None)
        self._thread.join()

    def problems(self) -> Iterator[str]:
        """What went wrong since the last call."""
        while not self._problems.empty():
            yield self._problems.get()

    # In the thread

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        self._calls.put((method, *copy.deepcopy(arguments)))

    def _work(self) -> None:
        flushed = time.monotonic()
        while True:
            try:
                call = self._calls.get(timeout=FLUSH_INTERVAL if self._waiting else None)
            except queue.Empty:
                call = (self._flush,)
            if call is None:
                return
            if time.monotonic() - flushed > FLUSH_INTERVAL:
                self._try(self._flush)
                flushed = time.monotonic()
            self._try(*call)

    def _try(self, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
            self._failures = 0
        except Exception as error:
            self._failures += 1
            self._problems.put(f"MLflow: {type(error).__name__}: {error}")
            if self._failures == MOST_FAILURES and self._client is not None:
                self._client = None
                self._problems.put("MLflow is left alone from here; resuming the study mends it")

    def _open(self, info: Json, records: Mapping[int, Json]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        for chatty in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(chatty).setLevel(logging.WARNING)

        storage = self._folder.storage
        uri = tracking_uri(storage)
        local = uri == f"sqlite:///{storage / 'mlflow.db'}"
        if local:
            _prepare_database(storage)
        client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self._folder.name
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            artifacts = (storage / "mlartifacts" / name).as_uri() if local else None
            self._experiment = client.create_experiment(name, artifact_location=artifacts)
        else:
            self._experiment = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(self._experiment)
        self._client = client
        self._id = info["id"]
        self._find_runs()
        if not self._parent:
            tags = {
                "memarch.id": self._id,
                "memarch.path": str(self._folder.path),
                "memarch.kind": "study",
                "design": info["design"],
            }
            run = client.create_run(self._experiment, run_name=self._folder.name, tags=tags)
            self._parent = run.info.run_id
            for name in ("study.yaml", "resolved.json"):
                client.log_artifact(self._parent, str(self._folder.path / name))
        client.update_run(self._parent, status="RUNNING")
        introduce(client, self._experiment, self._folder, self._id)
        self._mend(records)

    def _find_runs(self) -> None:
        assert self._client is not None
        query = f"tags.`memarch.id` = '{self._id}'"
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], query, max_results=1000, page_token=token
            )
            for run in page:
                if run.data.tags.get("memarch.kind") == "study":
                    self._parent = run.info.run_id
                else:
                    number = int(run.data.tags["memarch.trial"])
                    self._runs[number] = run.info.run_id
                    self._mended(number, run)
            token = page.token
            if not token:
                return

    def _mended(self, number: int, run: Any) -> None:
        """What was logged of a run that did not end, so that nothing is logged twice."""
        if run.info.status in ("RUNNING", "KILLED"):
            assert self._client is not None
            self._logged[number] = {
                (metric.key, metric.step): metric.value
                for key in run.data.metrics
                for metric in self._client.get_metric_history(run.info.run_id, key)
            }
        else:
            self._logged[number] = {}
            self._ended.add(number)

    def _mend(self, records: Mapping[int, Json]) -> None:
        for number, record in records.items():
            if record["state"] in FINISHED and number not in self._ended:
                self._finish(record)
            elif record["state"] not in FINISHED and number in self._runs:
                self._set(number, "waiting")

    def _close(self, info: Json) -> None:
        self._flush()
        if self._client is None:
            return
        from memarch.studies.parent_run import describe

        describe(self._client, self._experiment, self._parent, self._folder)
        self._client.set_tag(self._parent, "state", info["state"])
        status = {"complete": "FINISHED", "interrupted": "KILLED"}.get(info["state"], "FAILED")
        self._client.set_terminated(self._parent, status=status)

    def _start(self, record: Json) -> None:
        client, number = self._client, record["number"]
        if client is None:
            return
        if number in self._runs:
            client.update_run(self._runs[number], status="RUNNING")
            client.set_tag(self._runs[number], "state", "running")
            return
        from mlflow.entities import Param

        tags = {
            "mlflow.parentRunId": self._parent,
            "memarch.id": self._id,
            "memarch.trial": str(number),
            "variant": record["variant"],
            "state": "running",
            "seed": str(record["seed"]),
            "hash": str(record["hash"]),
            **tags_of(record, self._folder.trial(number).spec),
        }
        if record.get("copy_of") is not None:
            tags["copy_of"] = str(record["copy_of"])
        run = client.create_run(self._experiment, run_name=record["run_name"], tags=tags)
        self._runs[number] = run.info.run_id
        values = {"variant": record["variant"]} | record["params"]
        client.log_batch(
            run.info.run_id,
            params=[
                Param(_key(k), str(v)[:LONGEST_PARAMETER]) for k, v in values.items() if v != ""
            ],
        )

    def _finish(self, record: Json) -> None:
        number = record["number"]
        if self._client is None:
            return
        if number not in self._runs:
            self._start(record)
        for report in self._folder.trial(number).progress():
            self._report(number, report["step"], report["time"], report["metrics"])
        self._log_final(record)
        folder = self._folder.trial(number).path
        for name in ("spec.json", "result.json"):
            if (folder / name).exists():
                self._client.log_artifact(self._runs[number], str(folder / name))
        self._set(number, record["state"], record["reason"])

    def _report(self, number: int, step: int, at: float, metrics: Mapping[str, Any]) -> None:
        self._collect(number, step, at, metrics)
        self._last_step[number] = max(step, self._last_step.get(number, 0))

    def _log_final(self, record: Json) -> None:
        number = record["number"]
        step = self._last_step.get(number, 0)
        logged = self._logged.get(number, {})
        new = {n: v for n, v in record["metrics"].items() if logged.get((_key(n), step)) != v}
        for name in new:
            logged.pop((_key(name), step), None)
        self._collect(number, step, time.time(), new)
        self._flush_trial(number)

    def _collect(self, number: int, step: int, at: float, metrics: Mapping[str, Any]) -> None:
        """Keep for the next batch what was not logged before: attempts repeat steps."""
        logged = self._logged.setdefault(number, {})
        for name, value in metrics.items():
            key = (_key(name), step)
            if value is not None and key not in logged:
                logged[key] = value
                self._waiting.setdefault(number, []).append((*key, value, int(at * 1000)))

    def _set(self, number: int, state: str, reason: str | None = None) -> None:
        if self._client is None or number not in self._runs:
            return
        from mlflow.entities import RunTag

        tags = [RunTag("state", state)] + ([RunTag("reason", reason)] if reason else [])
        self._client.log_batch(self._runs[number], tags=tags)
        self._client.set_terminated(self._runs[number], status=STATUS[state])

    def _flush(self) -> None:
        for number in list(self._waiting):
            self._flush_trial(number)

    def _flush_trial(self, number: int) -> None:
        waiting = self._waiting.pop(number, [])
        if self._client is None or number not in self._runs:
            return
        from mlflow.entities import Metric

        metrics = [Metric(name, value, at, step) for name, step, value, at in waiting]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._runs[number], metrics=metrics[start : start + BATCH])


def _prepare_database(storage: Path) -> None:
    """Create the SQLite file, or bring an older MLflow's up to date, with a copy kept beside it."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.utils import _upgrade_db
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def connect(path: Path) -> Any:
        return SqlAlchemyStore(f"sqlite:///{path}", (storage / "mlartifacts").as_uri())

    path = storage / "mlflow.db"
    create_database(path, lambda new: connect(new).engine.dispose())
    try:
        connect(path).engine.dispose()
    except MlflowException as error:
        if "out-of-date" not in str(error):
            raise
        import sqlalchemy

        shutil.copyfile(path, path.with_name(f"mlflow.db.before-{version('mlflow')}"))
        _upgrade_db(sqlalchemy.create_engine(f"sqlite:///{path}"))


def _key(name: str) -> str:
    """MLflow's names have letters, digits, `_ - . : /` and spaces."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "-" for c in name)
