"""The process that mirrors a study in MLflow: `python -m memarch.studies.records.mirror FOLDER`.

Standard input has the numbers of trials that changed, one a line, and `close` at the end; the end
of input without it means that the driver is gone. Standard output has what people should read.

A trial is brought up to date from its files: its run is made, reports are sent in batches from
where the last batch ended, a final record ends it. Doing it twice changes nothing: times come from
the files, and MLflow keeps equal points once. So after a failure the trial is just still to do:
when the server answers again the runs are looked up and all that waits is sent.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from memarch.studies.driver.zombies import without_zombies
from memarch.studies.records.mlflow_ui import introduce, tags_of
from memarch.studies.records.patience import FIRST_PAUSE, LONGEST_PAUSE, server_wait
from memarch.studies.records.store import FINISHED, Json, StudyFolder, create_database
from memarch.studies.records.tracking import CLOSE, metric_name, own_database, tracking_uri
from memarch.studies.results.leaderboard import is_copy

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

PASS_INTERVAL = 1.0
BATCH = 900
"""MLflow takes at most 1000 metrics a batch."""
LONGEST_PARAMETER = 6000
MOST_PARAMETERS = 100
"""In one batch."""
CHUNK = 1 << 20
"""Bytes of reports that are read at once."""

STATUS = {
    "complete": "FINISHED",
    "infeasible": "FINISHED",
    "pruned": "FINISHED",
    "failed": "FAILED",
    "waiting": "KILLED",
}
REFUSALS = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "INVALID_STATE",
    "RESOURCE_DOES_NOT_EXIST",
)
"""MLflow's answers to what it will never take, however often it is sent."""


@dataclass
class ChildRun:
    """A trial's run as MLflow has it."""

    id: str
    artifacts: str
    started: int
    state: str
    has_params: bool = False
    offset: int = 0
    """Up to where its reports are sent."""
    step: int = -1
    last: Json = field(default_factory=dict)
    """Metrics at the last step that was sent."""
    time: int = 0


class Mirror:
    """One study in MLflow."""

    def __init__(self, folder: StudyFolder) -> None:
        self._folder = folder
        self._client: MlflowClient | None = None
        self._experiment = self._parent = self._id = ""
        self._runs: dict[int, ChildRun] = {}

    def connect(self) -> list[str]:
        """Make or find the parent run, learn which runs there are; what was mended among them."""
        client, info = _client(self._folder.storage), self._folder.info
        self._id = info["id"]
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self._folder.name
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            self._experiment = client.create_experiment(name, artifact_location=self._place(name))
        else:
            self._experiment = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(self._experiment)
        introduce(client, self._experiment, self._folder, self._id)
        self._parent, children = "", []
        for run in self._search(client):
            if run.data.tags.get("memarch.kind") == "study":
                self._parent = run.info.run_id
            else:
                children.append(run)
        records = self._folder.records()
        runs, told = without_zombies(client, children, records)
        self._runs = {number: _known(run) for number, run in runs.items()}
        late = [n for n, run in self._runs.items() if run.state != records[n]["state"]]
        if late:
            numbers = ", ".join(map(str, sorted(late)))
            told.append(f"MLflow was behind the records of trials {numbers}: brought up to date")
        if not self._parent:
            tags = {
                "memarch.id": self._id,
                "memarch.path": str(self._folder.path),
                "memarch.kind": "study",
                "design": info["design"],
            }
            run = client.create_run(self._experiment, run_name=self._folder.name, tags=tags)
            self._parent = run.info.run_id
            for file in ("study.yaml", "resolved.json"):
                client.log_artifact(self._parent, str(self._folder.path / file))
        client.update_run(self._parent, status="RUNNING")
        self._client = client
        return told

    def behind(self) -> list[int]:
        """Trials of earlier sessions whose runs are not as their records are."""
        return [
            number
            for number, record in self._folder.records().items()
            if number not in self._runs or self._runs[number].state != record["state"]
        ]

    def sync(self, number: int) -> None:
        """Bring one trial's run up to date."""
        record = self._folder.trial(number).record
        run = self._runs.get(number)
        if not record or (run is None and record["state"] == "waiting"):
            return
        run = run or self._create(record)
        state, ends = record["state"], record["state"] in FINISHED
        if ends and run.state == state:  # again, for its test scores
            run.offset, run.step, run.last = 0, -1, {}
        for metrics in self._unsent(run, number):
            self._log(run, record, metrics)
        if ends:
            self._log(run, record, self._final(run, record), _final_tags(record))
            if run.state != state:
                for name in ("spec.json", "result.json"):
                    self._attach(run, self._folder.trial(number).path / name)
                self._end(run, number, state)
            run.last = {}
        elif state == "waiting" and run.state != state:
            self._log(run, record, [], {"state": state})
            self._end(run, number, state)
        elif state == "running" and run.state != state:
            self._api.update_run(run.id, status="RUNNING")
            self._log(run, record, [], {"state": state})
        elif not run.has_params:
            self._log(run, record, [])
        run.state = state

    def describe(self) -> None:
        """What the study came to, with its report."""
        from memarch.studies.report.parent_run import describe

        describe(self._api, self._experiment, self._parent, self._folder)

    def close(self) -> None:
        """End the parent run."""
        client, info = self._api, self._folder.info
        client.set_tag(self._parent, "state", info["state"])
        status = {"complete": "FINISHED", "interrupted": "KILLED"}.get(info["state"], "FAILED")
        client.set_terminated(self._parent, status=status)

    @property
    def _api(self) -> MlflowClient:
        assert self._client is not None
        return self._client

    def _place(self, name: str) -> str | None:
        """Of artifacts: with our own SQLite file in the storage folder, else where MLflow says."""
        storage = self._folder.storage
        ours = tracking_uri(storage) == own_database(storage)
        return (storage / "mlartifacts" / name).as_uri() if ours else None

    def _search(self, client: MlflowClient) -> Iterator[Run]:
        query, token = f"tags.`memarch.id` = '{self._id}'", None
        while True:
            page = client.search_runs([self._experiment], query, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _create(self, record: Json) -> ChildRun:
        number, folder = record["number"], self._folder.trial(record["number"]).path
        tags = {
            "mlflow.parentRunId": self._parent,
            "memarch.id": self._id,
            "memarch.trial": str(number),
            **tags_of(record),
            "variant": record["variant"],
            "state": "running",
            "seed": str(record["seed"]),
            "hash": str(record["hash"]),
        }
        if is_copy(record):
            tags["copy_of"] = str(record["copy_of"])
        run = self._api.create_run(
            self._experiment,
            start_time=_modified(folder / "worker.json"),
            run_name=record["run_name"],
            tags=tags,
        )
        made = ChildRun(run.info.run_id, run.info.artifact_uri, run.info.start_time, "running")
        self._runs[number] = made
        return made

    def _unsent(self, run: ChildRun, number: int) -> Iterator[list[Metric]]:
        """Batches of what was reported since; a step that an attempt repeats is skipped."""
        from mlflow.entities import Metric

        path = self._folder.trial(number).path / "progress.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            while True:
                file.seek(run.offset)
                lines = _whole_lines(file)
                if not lines:
                    return
                metrics: list[Metric] = []
                for line in lines:
                    run.offset += len(line)
                    metrics += [
                        Metric(name, value, run.time, run.step)
                        for name, value in _new_values(run, line).items()
                    ]
                for start in range(0, len(metrics), BATCH):
                    yield metrics[start : start + BATCH]

    def _final(self, run: ChildRun, record: Json) -> list[Metric]:
        """Scores and costs of a trial that is over, as far as they were not reported."""
        from mlflow.entities import Metric

        at, step = run.time or run.started, max(run.step, 0)
        values = {metric_name(name): value for name, value in record["metrics"].items()}
        return [
            Metric(name, value, at, step)
            for name, value in values.items()
            if value is not None and run.last.get(name) != value
        ]

    def _log(
        self, run: ChildRun, record: Json, metrics: list[Metric], tags: Json | None = None
    ) -> None:
        """One request: the metrics, the tags, and the parameters where it is the first."""
        from mlflow.entities import Param, RunTag

        params = {}
        if not run.has_params:
            solved = record.get("solved") or {}
            values = {"variant": record["variant"]} | record["params"] | solved
            params = {metric_name(name): value for name, value in values.items() if value != ""}
        shown = [Param(name, str(value)[:LONGEST_PARAMETER]) for name, value in params.items()]
        named = [RunTag(name, value) for name, value in (tags or {}).items()]
        for start in range(MOST_PARAMETERS, len(shown), MOST_PARAMETERS):
            self._api.log_batch(run.id, params=shown[start : start + MOST_PARAMETERS])
        if metrics or shown or named:
            self._api.log_batch(run.id, metrics=metrics, params=shown[:MOST_PARAMETERS], tags=named)
        run.has_params = True

    def _attach(self, run: ChildRun, path: Path) -> None:
        if not path.exists():
            return
        place = urlsplit(run.artifacts)
        if place.scheme == "file":
            Path(unquote(place.path)).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, Path(unquote(place.path)) / path.name)
        else:
            self._api.log_artifact(run.id, str(path))

    def _end(self, run: ChildRun, number: int, state: str) -> None:
        at = _modified(self._folder.trial(number).path / "result.json")
        self._api.set_terminated(run.id, status=STATUS[state], end_time=at)


def _known(run: Run) -> ChildRun:
    """What an earlier process left. Without its end in MLflow, a run was not finished there."""
    state = run.data.tags.get("state", "running")
    if state in FINISHED and run.info.status not in ("FINISHED", "FAILED"):
        state = "running"
    return ChildRun(
        run.info.run_id,
        run.info.artifact_uri,
        run.info.start_time,
        state if run.info.status != "RUNNING" else "running",
        bool(run.data.params),
    )


def _final_tags(record: Json) -> Json:
    reason = {"reason": record["reason"]} if record["reason"] else {}
    failure = {"failure": record["failure"]} if record.get("failure") else {}
    return {"state": record["state"], **reason, **failure}


def _whole_lines(file: IO[bytes]) -> list[bytes]:
    """The next lines that a worker has written to their ends."""
    text = file.read(CHUNK)
    while text and b"\n" not in text:
        more = file.read(CHUNK)
        if not more:
            return []
        text += more
    return [line + b"\n" for line in text.split(b"\n")[:-1]]


def _new_values(run: ChildRun, line: bytes) -> Json:
    """The metrics of one report by MLflow's names, without those that the run has at its step."""
    try:
        report = json.loads(line)
    except json.JSONDecodeError:  # of a worker that was killed
        return {}
    if report["step"] < run.step:
        return {}
    if report["step"] > run.step:
        run.step, run.last = report["step"], {}
        run.time = int(report["time"] * 1000)
    values = {metric_name(name): value for name, value in report["metrics"].items()}
    new = {n: v for n, v in values.items() if v is not None and n not in run.last}
    run.last |= new
    return new


def _modified(path: Path) -> int | None:
    """In MLflow's milliseconds; None, which is now to MLflow, where the file is not there."""
    return int(path.stat().st_mtime * 1000) if path.exists() else None


def _client(storage: Path) -> MlflowClient:
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # we try again ourselves
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for chatty in ("alembic", "mlflow.store.db.utils", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    uri = tracking_uri(storage)
    if uri == own_database(storage):
        _prepare_database(storage)
    return MlflowClient(tracking_uri=uri)


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


class Inbox:
    """Trials still to do, as the driver names them."""

    def __init__(self, lines: IO[str]) -> None:
        self._numbers: set[int] = set()
        self._changed = threading.Condition()
        self.closing = False
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            with self._changed:
                if line.strip() == CLOSE:
                    self.closing = True
                else:
                    self._numbers.add(int(line))
                self._changed.notify()
        if not self.closing:
            os._exit(0)  # nobody is left to mirror for

    def wait(self) -> None:
        """Until there is something to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._numbers or self.closing)

    def rest(self, seconds: float) -> None:
        """Unless the study has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self.closing, seconds)

    def add(self, numbers: list[int]) -> None:
        with self._changed:
            self._numbers.update(numbers)

    def take(self) -> list[int]:
        with self._changed:
            numbers, self._numbers = sorted(self._numbers), set()
        return numbers


def serve(mirror: Mirror, inbox: Inbox, say: Any) -> int:
    """Mirror until the study is closed; the exit code."""
    connected, lost_at, pause = False, 0.0, FIRST_PAUSE
    deadline = None
    while True:
        if connected:
            inbox.wait()
        closing = inbox.closing
        if closing and deadline is None:
            deadline = time.monotonic() + server_wait()
        try:
            if not connected:
                mended = mirror.connect()
                for line in [] if lost_at else mended:
                    say(line)
                inbox.add(mirror.behind())
            _pass(mirror, inbox, say)
            if closing:
                _close(mirror, say)
        except Exception as error:
            if not lost_at:
                lost_at = time.monotonic()
                say(f"MLflow: {_one_line(error)}; the study goes on, and is logged when it answers")
            connected = False
            if deadline is not None and time.monotonic() + pause > deadline:
                say("MLflow does not answer; resuming the study logs what is missing there")
                return 1
            time.sleep(pause) if closing else inbox.rest(pause)
            pause = min(2 * pause, 2.0 if closing else LONGEST_PAUSE)
            continue
        if lost_at:
            say(f"MLflow answers again, after {time.monotonic() - lost_at:.0f} s")
        connected, lost_at, pause = True, 0.0, FIRST_PAUSE
        if closing:
            return 0
        inbox.rest(PASS_INTERVAL)


def _pass(mirror: Mirror, inbox: Inbox, say: Any) -> None:
    """Bring up to date what has changed. What could not be done now stays to do."""
    numbers = inbox.take()
    for index, number in enumerate(numbers):
        try:
            mirror.sync(number)
        except Exception as error:
            if _is_refusal(error):
                say(f"MLflow refuses trial {number}: {_one_line(error)}")
                continue
            inbox.add(numbers[index:])
            raise


def _close(mirror: Mirror, say: Any) -> None:
    try:
        mirror.describe()
    except Exception as error:
        if not _is_refusal(error):
            raise
        say(f"MLflow: the study's run lacks its results: {_one_line(error)}")
    mirror.close()


def _is_refusal(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in REFUSALS
    return isinstance(error, (LookupError, TypeError, ValueError, AttributeError))


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A process of a driver that was killed may be at its last request still."""
    with (folder / ".mirror.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    say_to = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # MLflow prints
    path = Path(sys.argv[1])
    inbox = Inbox(sys.stdin)
    with _alone(path):
        mirror = Mirror(StudyFolder(path.parent.parent, path.name))
        return serve(mirror, inbox, lambda text: print(text, file=say_to, flush=True))


if __name__ == "__main__":
    sys.exit(main())
