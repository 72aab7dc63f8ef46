"""`memarch ui`: whatever ends it, the server's workers end too."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from memarch.ui import HOST

# A server with a worker of its own, which answers /health, in place of MLflow's that takes long.
SERVE = """
import sys
from pathlib import Path
from memarch import ui

def command(storage, port):
    worker = f"{sys.executable} -m http.server {port} --bind {ui.HOST} --directory {storage}"
    return ["sh", "-c", f"{worker} & wait"]

ui.command = command
ui.serve(Path(sys.argv[1]), int(sys.argv[2]), open_page=False)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_workers_end_with_it(ending: signal.Signals, tmp_path: Path) -> None:
    for name in ("mlflow.db", "health"):
        (tmp_path / name).touch()
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    started = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path), str(port)], stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline().strip() == f"http://{HOST}:{port}"
    started.send_signal(ending)
    assert started.wait(20) == 0
    with socket.socket() as probe:
        assert probe.connect_ex((HOST, port)) != 0, "the worker still listens"
