"""`memarch ui`: MLflow's server on a storage folder, one worker, this machine only."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path

from memarch.components.errors import SpecError
from memarch.output import WorkFailedError, log
from memarch.studies.records.mlflow_ui import saved_views
from memarch.studies.records.tracking import own_database, tracking_uri

HOST = "127.0.0.1"
PATIENCE = 180.0
"""Seconds that the server may take to answer."""
MOST_VIEWS = 10
"""Studies whose addresses are told."""
ENDINGS = (signal.SIGTERM, signal.SIGHUP)
"""What ends us besides Ctrl-C: `kill`, and a terminal that is closed."""


def command(storage: Path, port: int) -> list[str]:
    """MLflow's server on the store where the studies are."""
    arguments = {
        "--backend-store-uri": _store(storage),
        "--default-artifact-root": (storage / "mlartifacts").as_uri(),
        "--host": HOST,
        "--port": str(port),
        "--workers": "1",
    }
    flat = [part for pair in arguments.items() for part in pair]
    return [sys.executable, "-m", "mlflow", "server", *flat]


def serve(storage: Path, port: int, *, open_page: bool) -> None:
    """Run the server until Ctrl-C or a request to end; print its address when it answers.

    Where `$MLFLOW_TRACKING_URI` names a server that runs, that is the one to look at.
    """
    running = _store(storage)
    if running.startswith("http"):
        _announce(running, open_page=open_page)
        return
    if running == own_database(storage) and not (storage / "mlflow.db").is_file():
        raise SpecError(f"no MLflow data in {storage}; `memarch study run FILE` makes it")
    if _taken(port):
        raise SpecError(f"port {port} is in use; choose another with --port")
    url = f"http://{HOST}:{port}"
    log(f"starting MLflow on {storage} (takes a while)")
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    for ending in ENDINGS:
        signal.signal(ending, signal.default_int_handler)  # as Ctrl-C does
    server = subprocess.Popen(
        command(storage, port),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches us first, and we end the server and its worker
        text=True,
    )
    try:
        _wait(server, url)
        _announce(url, open_page=open_page)
        log("Ctrl-C stops it")
        server.communicate()
        raise WorkFailedError("MLflow's server ended by itself")
    except KeyboardInterrupt:
        log("stopped")
    finally:
        for ending in (signal.SIGINT, *ENDINGS):
            signal.signal(ending, signal.SIG_IGN)  # a second one must not leave workers behind
        _end(server)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for ending in ENDINGS:
            signal.signal(ending, signal.SIG_DFL)


def _store(storage: Path) -> str:
    """Where the studies' runs are: the storage folder's, also where logging is off now."""
    return tracking_uri(storage) or own_database(storage)


def _announce(url: str, *, open_page: bool) -> None:
    """Say where the server is, and where the trials of its studies are: MLflow's own first page
    knows nothing of them. The newest study's is opened."""
    print(url, flush=True)
    pages = views(url)
    for name, page in pages:
        log(f"{name}: {page}")
    if open_page:
        webbrowser.open(pages[0][1] if pages else url)


def views(url: str) -> list[tuple[str, str]]:
    """Names and addresses of the views that studies left in a server, newest first."""
    query = json.dumps({"max_results": MOST_VIEWS, "order_by": ["last_update_time DESC"]})
    request = urllib.request.Request(
        f"{url}/api/2.0/mlflow/experiments/search",
        data=query.encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            experiments = json.load(answer).get("experiments", [])
    except (OSError, ValueError):  # the server has other ways to say what is wrong with it
        return []
    return [
        (experiment["name"], f"{url}/{page}")
        for experiment in experiments
        for page in saved_views(experiment["experiment_id"], experiment.get("tags", []))
    ]


def _wait(server: subprocess.Popen[str], url: str) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if server.poll() is not None:
            tail = (server.stderr.read() if server.stderr else "").strip().splitlines()[-3:]
            raise WorkFailedError(f"MLflow's server did not start: {' '.join(tail)}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise WorkFailedError(f"MLflow's server did not answer within {PATIENCE:.0f} s")


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def _end(server: subprocess.Popen[str]) -> None:
    """End the server's whole group, workers included."""
    for stop in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, stop)
        except ProcessLookupError:
            return
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            continue
