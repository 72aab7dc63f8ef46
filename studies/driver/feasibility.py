"""Points that break a constraint are found before they cost anything: by what the model is.

Constraints on `cost/…` that follow from the spec (parameters, state, operations, activations) are
measured in a small process of its own, which is started for the first such point and remembers
specs that cost the same. Studies without such constraints never start it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from memarch.studies.cluster.cluster import beside_the_driver
from memarch.studies.cluster.jobs import Job, load_function, local_spec
from memarch.studies.driver.judging import Judge, Verdict
from memarch.studies.records.store import Json

RUN_COSTS = (
    "cost/wall_seconds",
    "cost/tokens_per_second",
    "cost/peak_memory_bytes",
    "cost/train_flops",
)
"""Costs that only a run can tell."""

_COUNTED = ("task", "model", "train", "eval")


def costs_of(spec: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """These costs of a spec, by shapes alone where that is enough."""
    from memarch.components.plugins import load_plugins
    from memarch.studies.search import costs

    load_plugins(spec.get("plugins") or [])
    if set(names) <= set(costs.SIZES):
        return {name: costs.size(spec, name) for name in names}
    found = costs.of_spec(spec)
    return {name: found[name] for name in names if name in found}


class Scales:
    """The process that measures."""

    def __init__(self, function: str, plugins: Mapping[str, str]) -> None:
        self._function, self._plugins = function, dict(plugins)
        self._folder = tempfile.TemporaryDirectory(prefix="memarch-scales-")

    def weigh(self, spec: Json, names: Sequence[str]) -> Json:
        """The costs that could be measured; none where the model cannot be built."""
        folder = self._folder.name
        try:
            local = local_spec(Job(0, 0, spec, folder, self._plugins), Path(folder))
            return dict(load_function(self._function)(local, names))
        except Exception:  # what is wrong with a spec is told by the trial, with its traceback
            return {}


class Feasibility:
    """The driver's side."""

    def __init__(self, judge: Judge, function: str, plugins: Mapping[str, str]) -> None:
        self._judge, self._settings = judge, (function, plugins)
        self.names = [
            name for name in judge.constraints if name.startswith("cost/") and name not in RUN_COSTS
        ]
        self._scales: Any = None
        self._known: dict[str, Json] = {}

    def ask(self, spec: Json) -> Any:
        """A reference to the costs of this spec, or None where they are known."""
        if self._key(spec) in self._known:
            return None
        if self._scales is None:
            scales = ray.remote(Scales).options(num_cpus=0, scheduling_strategy=beside_the_driver())
            self._scales = scales.remote(*self._settings)
        return self._scales.weigh.remote(spec, self.names)

    def verdict(self, spec: Json, answer: Any) -> tuple[Verdict | None, Json]:
        """Whether the spec is infeasible, and its costs. `answer` is what `ask` referred to."""
        if answer is not None:
            try:
                self._known[self._key(spec)] = ray.get(answer)
            except ray.exceptions.RayError:  # a model too large for its process: a worker will say
                self._scales = None
        costs = self._known.get(self._key(spec), {})
        return self._judge.infeasible(costs), costs

    def close(self) -> None:
        """End the process."""
        if self._scales is not None:
            ray.kill(self._scales)

    def _key(self, spec: Json) -> str:
        train = {k: v for k, v in (spec.get("train") or {}).items() if k != "lr"}
        counted = {name: spec.get(name) for name in _COUNTED} | {"train": train}
        return json.dumps(counted, sort_keys=True)
