"""Every node of a cluster is looked at before the first trial: code, plugins, data, storage.

A node without memarch, or with another one than the driver's, gets the driver's as a wheel, by
Ray's runtime environment. Anything else that is wrong is one error that names the node.
"""

from __future__ import annotations

import glob
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from memarch.components.errors import SpecError
from memarch.studies.cluster import node_probe
from memarch.studies.cluster.cluster import start_ray
from memarch.studies.cluster.wheel import build_wheel
from memarch.studies.records.store import Json, write_text
from memarch.studies.search.sampling import one_of_each

if TYPE_CHECKING:
    from memarch.search_spaces.study_file import StudyFile

PACKAGES = ("torch", "transformers", "numpy", "safetensors", "pydantic")
"""They must be there, in the driver's versions."""
NEEDED = ("accelerate", "datasets", "peft", "ruamel.yaml")
"""They must be there."""

ANSWER_SECONDS = 180.0
"""How long a node may take; a new runtime environment is made in this time too."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, by what Ray and people call it."""

    id: str
    name: str


def join(address: str, look: Look, note: Callable[[str], None]) -> bool:
    """Join the cluster and look at its nodes; whether this call started the connection."""
    ours = start_ray(address)
    answers = look.at_all()
    lacking = [node.name for node, found in answers.items() if look.lacks_memarch(found)]
    if lacking and ours:
        note(f"{', '.join(lacking)}: no memarch, or another; the driver's is sent there as a wheel")
        wheel = build_wheel(look.storage / "wheels")
        ray.shutdown()
        start_ray(address, runtime_env={"py_modules": [str(wheel)]})
        answers = look.at_all()
    for node, found in answers.items():
        problem = look.problem(found)
        if problem:
            if ours:
                ray.shutdown()
            raise SpecError(f"node {node.name}: {problem}", path="--address")
    return ours


def data_of(study: StudyFile) -> list[str]:
    """Files and folders of this machine that the study's specs name."""
    found: set[str] = set()
    spaces = {variant: study.space(variant) for variant in study.variants}
    for asked in one_of_each(spaces, 0):
        spec = study.resolve(asked.variant, asked.draws).spec
        for section in ("task", "model", "train", "eval"):
            found |= set(_paths(spec.get(section)))
    return sorted(found)


def _paths(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [path for item in value.values() for path in _paths(item)]
    if isinstance(value, list):
        return [path for item in value for path in _paths(item)]
    there = isinstance(value, str) and value.startswith("/") and glob.glob(value, recursive=True)
    return [value] if there else []


class Look:
    """What the driver has, and how nodes differ from it."""

    def __init__(
        self,
        storage: Path,
        plugins: Mapping[str, str],
        files: Sequence[str],
        artifacts: str | None = None,
    ) -> None:
        self.storage = storage
        self.request: Json = {
            "packages": [*PACKAGES, *NEEDED],
            "files": list(files),
            "plugins": dict(plugins),
            "memarch": node_probe.memarch_digest(),
            "token": "",
            "artifacts": artifacts,
        }
        self.mine: Json = {}

    def at_all(self) -> dict[Node, Json]:
        """What each node answers, all at once."""
        token = self.storage / f".node-check-{uuid.uuid4().hex}"
        write_text(token, token.name)
        self.request["token"] = str(token)
        self.mine = node_probe.look(self.request, "driver")
        try:
            return self._answers()
        finally:
            for file in self.storage.glob(f"{token.name}*"):
                file.unlink(missing_ok=True)

    def _answers(self) -> dict[Node, Json]:
        cloudpickle.register_pickle_by_value(node_probe)
        try:
            probe = ray.remote(node_probe.look)
            refs = {}
            for row in ray.nodes():
                if row["Alive"]:
                    node = Node(row["NodeID"], f"{row['NodeName']} ({row['NodeID'][:6]})")
                    where = NodeAffinitySchedulingStrategy(node.id, soft=False)
                    options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": where}
                    refs[node] = probe.options(**options).remote(self.request, node.id)
            ray.wait(list(refs.values()), num_returns=len(refs), timeout=ANSWER_SECONDS)
            return {node: self._answer(node, ref) for node, ref in refs.items()}
        finally:
            cloudpickle.unregister_pickle_by_value(node_probe)

    def _answer(self, node: Node, ref: Any) -> Json:
        try:
            found: Json = ray.get(ref, timeout=1)
        except ray.exceptions.GetTimeoutError:
            why = f"has not answered within {ANSWER_SECONDS:g} s"
        except ray.exceptions.RayError as error:
            why = f"cannot run a task: {str(error).strip().splitlines()[-1]}"
        else:
            beside = Path(f"{self.request['token']}.{node.id}")
            return found | {"answered": beside.exists()}
        raise SpecError(f"node {node.name} {why}", path="--address")

    def lacks_memarch(self, found: Json) -> bool:
        return bool(found["memarch"] != self.request["memarch"])

    def problem(self, found: Json) -> str | None:
        """What is wrong with a node, and what to do about it."""
        mine = self.mine
        if found["python"] != mine["python"]:
            return f"has Python {found['python']}, the driver {mine['python']}; use one of them"
        missing = [name for name, version in found["packages"].items() if version is None]
        if missing:
            return (
                f"has no {', '.join(missing)}; install what memarch needs there, or start the "
                "node from memarch's image (deploy/Dockerfile)"
            )
        for name in PACKAGES:
            theirs, ours = found["packages"][name], mine["packages"][name]
            if theirs != ours:
                return f"has {name} {theirs}, the driver {ours}; install the same"
        if self.lacks_memarch(found):
            return (
                f"imports another memarch than the driver's, from {found['place']}; install the "
                "same one, or none: then the driver's is sent there"
            )
        if found["plugins"]:
            return f"cannot load the plugins: {found['plugins']}"
        for path, mark in found["files"].items():
            if mark is None:
                return f"has no {path}, which the study reads; copy it there, or share the folder"
            if mark != mine["files"][path]:
                return f"has another {path} than the driver; copy the driver's there"
        return self._storage_problem(found)

    def _storage_problem(self, found: Json) -> str | None:
        storage = found["storage"]
        if self.request["artifacts"]:
            why = found["artifacts"]
            return why and f"cannot use --artifacts {self.request['artifacts']}: {why}"
        shared = (
            "put it on a file system that all nodes share (--storage /shared/runs, or "
            "$MEMARCH_STORAGE), or give a URL that they all reach: --artifacts s3://bucket/runs"
        )
        if storage["token"] != Path(self.request["token"]).name:
            return f"does not see the storage folder {self.storage}; {shared}"
        if storage["error"]:
            return f"cannot write to the storage folder {self.storage}: {storage['error']}"
        if not found["answered"]:
            return f"has a folder {self.storage} of its own; {shared}"
        return None
