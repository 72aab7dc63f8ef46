"""A Ray cluster of several nodes on this machine, whose raylets may be killed.

    with LoopbackCluster([{"num_cpus": 1}, {"num_cpus": 1}]) as cluster:
        subprocess.run([..., cluster.address], env=cluster.environment)
        cluster.kill(1)

It lives in a process of its own: what Ray a test's own process has is not touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from contextlib import AbstractContextManager
from typing import Any

Node = dict[str, Any]


class LoopbackCluster(AbstractContextManager["LoopbackCluster"]):
    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": uuid.uuid4().hex,
            "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray-", dir="/tmp"),  # sockets have short names
        }

    def __enter__(self) -> LoopbackCluster:
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(self.nodes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                started = json.loads(line)
                self.address, self.raylets = started["address"], started["raylets"]
                return self
        raise RuntimeError("the cluster did not start")

    def kill(self, node: int) -> None:
        """The node is gone at once, with the workers on it."""
        os.kill(self.raylets[node], signal.SIGKILL)

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")
        self._process.wait(60)
        shutil.rmtree(self.environment["RAY_TMPDIR"], ignore_errors=True)


def main(nodes: list[Node]) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    common = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
    started = [cluster.add_node(**{**common, **node}) for node in nodes]
    raylets = [node.all_processes["raylet"][0].process.pid for node in started]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
