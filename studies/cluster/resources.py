"""What a trial needs: the section `resources`, and what it comes to on a cluster.

A trial is one process, or several that train one model together: with `nodes: 2, gpus_per_node: 8`
sixteen, one a GPU; with `nodes: 2, cpus_per_node: 4` two, of four cores each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, model_validator

from memarch.components.errors import SpecError
from memarch.studies.settings.strict import Strict

Above0 = Annotated[float, Field(gt=0)]
Positive = Annotated[int, Field(ge=1)]


class OneProcess(Strict):
    """What a single process needs."""

    cpus: Above0 = 1.0
    """CPU cores."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs; a fraction shares one."""
    memory: Positive | None = None
    """Bytes of main memory, such as `4GiB`."""
    custom: dict[str, Above0] = Field(default_factory=dict)
    """Ray's own custom resources by name."""


class ResourceSettings(OneProcess):
    """What one trial needs; as many run at once as fit."""

    nodes: Positive | None = None
    """Nodes that one trial spans, with `gpus_per_node` or `cpus_per_node` in place of `gpus` and
    `cpus`: its processes share every batch. `memory` and `custom` are then of each node."""
    gpus_per_node: Positive | None = None
    """GPUs on each of these nodes; a process runs on each GPU."""
    cpus_per_node: Positive | None = None
    """CPU cores on each of these nodes; without GPUs one process uses them all."""
    eval: OneProcess | None = None
    """Runs the final evaluation with its sweeps, and finalists' tests, as jobs of their own of this
    size. By default a trial evaluates itself, where it trained."""

    @model_validator(mode="after")
    def _consistent(self) -> ResourceSettings:
        given = self.model_fields_set
        per_node = [name for name in ("gpus_per_node", "cpus_per_node") if getattr(self, name)]
        if self.nodes is None and per_node:
            raise SpecError("needs `nodes` beside it", path=per_node[0])
        if self.nodes is not None and not per_node:
            raise SpecError("needs `gpus_per_node` or `cpus_per_node` beside it", path="nodes")
        changed = [n for n in ("cpus", "gpus") if n in given and self.nodes is not None]
        for name in changed:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise SpecError(f"with `nodes`, write `{name}_per_node`", path=name)
        gpus = self.gpus_per_node or 0
        if self.nodes is not None and 0 < (self.cpus_per_node or gpus) < gpus:
            raise SpecError(
                f"{gpus} processes run on each node, one a GPU: they need a core each",
                path="cpus_per_node",
            )
        return self

    @property
    def processes(self) -> int:
        """How many train one model together."""
        return (self.nodes or 1) * (self.gpus_per_node or 1)


@dataclass(frozen=True)
class Size:
    """What a job needs, in Ray's terms: so many processes, each of so much."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: float = 0.0
    custom: tuple[tuple[str, float], ...] = ()
    processes: int = 1

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Size:
        """Of training."""
        given = spec.get("resources") or {}
        nodes = given.get("nodes")
        if not nodes:
            return cls._one(given)
        gpus = given.get("gpus_per_node") or 0
        share = max(1, gpus)
        custom = {name: amount / share for name, amount in (given.get("custom") or {}).items()}
        each = {
            "cpus": (given.get("cpus_per_node") or gpus) / share,
            "gpus": min(1, gpus),
            "memory": (given.get("memory") or 0) // share,
            "custom": custom,
        }
        return cls._one(each, nodes * share)

    @classmethod
    def of_evaluation(cls, spec: Mapping[str, Any]) -> Size:
        """Of evaluation as a job of its own: one process."""
        given = (spec.get("resources") or {}).get("eval")
        if given:
            return cls._one(given)
        size = cls.of(spec)
        return cls(size.cpus, size.gpus, size.memory, size.custom)

    @classmethod
    def _one(cls, given: Mapping[str, Any], processes: int = 1) -> Size:
        custom = tuple(sorted((given.get("custom") or {}).items()))
        memory = given.get("memory") or 0
        return cls(given.get("cpus") or 1, given.get("gpus") or 0, memory, custom, processes)

    @property
    def each(self) -> dict[str, float]:
        """Of one process, by the names that Ray gives to resources."""
        fixed = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {name: amount for name, amount in [*fixed.items(), *self.custom] if amount}

    def needs(self) -> dict[str, float]:
        """Of all processes together."""
        return {name: amount * self.processes for name, amount in self.each.items()}
