"""What a study does about each kind of failure: `study.on_failure`.

    on_failure:
      out_of_memory: {retry: halve_batch, times: 3, then: fail}
      not_finite: infeasible
      worker_lost: {retry: resume, times: 3}
      error: {then: fail, stop_after: 5}

A policy tries again for so many times, and then gives the trial its final state: failed, which
samplers do not learn from, or infeasible, which they do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from memarch.studies.cluster.resources import Size
from memarch.studies.settings.strict import Strict

Json = dict[str, Any]
Times = Annotated[int, Field(ge=1)]
Ending = Literal["fail", "infeasible"]

STATES = {"fail": "failed", "infeasible": "infeasible"}


class _Ended(Strict):
    then: Ending = "fail"
    """What the trial is in the end: `fail`, or `infeasible`, which the sampler learns from."""
    stop_after: Times | None = None
    """The study stops after so many such failures of one kind and place; null for never."""


class _Resumed(_Ended):
    retry: Literal["resume", "none"] = "resume"
    """`resume` goes on from the last checkpoint, `none` does not try again."""
    times: Times = 3
    """How often a trial is tried again."""


class OutOfMemory(_Ended):
    """The GPU, the process or the machine had no more memory."""

    retry: Literal["halve_batch", "resume", "none"] = "halve_batch"
    """`halve_batch` halves `batch_size` and doubles `accumulate`: an equal step in less memory."""
    times: Times = 3
    """How often a trial is tried again."""


class NotFinite(_Ended):
    """The loss, or a score, is NaN or infinite."""

    then: Ending = "infeasible"
    """What the trial is: `infeasible`, which the sampler learns from, or `fail`."""


class TimeLimit(_Ended):
    """It ran longer than `trial_time_limit`."""


class WorkerLost(_Resumed):
    """Its process or its machine died."""


class Stalled(_Resumed):
    """It made no step and no evaluation for longer than `stall_limit`."""

    times: Times = 1
    """How often a trial is tried again."""


class CodeError(_Ended):
    """The code raised an exception."""

    retry: Literal["resume", "none"] = "none"
    """`resume` goes on from the last checkpoint, `none` does not try again."""
    times: Times = 1
    """How often a trial is tried again."""
    stop_after: Times | None = 5
    """The study stops after so many errors of one type and place; null for never."""


def _as_map(value: object) -> object:
    """`fail` -> no further attempts, and failed."""
    return {"retry": "none", "then": value} if isinstance(value, str) else value


def _as_ending(value: object) -> object:
    return {"then": value} if isinstance(value, str) else value


_Short = BeforeValidator(_as_map)
_ShortEnding = BeforeValidator(_as_ending)


class OnFailure(Strict):
    """What is done about each kind of failure: `fail`, `infeasible`, or a map."""

    out_of_memory: Annotated[OutOfMemory, _Short] = OutOfMemory()
    """The GPU, the process or the machine had no more memory."""
    not_finite: Annotated[NotFinite, _ShortEnding] = NotFinite()
    """The loss, or a score, is NaN or infinite."""
    time_limit: Annotated[TimeLimit, _ShortEnding] = TimeLimit()
    """It ran longer than `trial_time_limit`."""
    worker_lost: Annotated[WorkerLost, _Short] = WorkerLost()
    """Its process or its machine died."""
    stalled: Annotated[Stalled, _Short] = Stalled()
    """It made no step and no evaluation for longer than `stall_limit`."""
    error: Annotated[CodeError, _Short] = CodeError()
    """The code raised an exception."""


class Policies:
    """The policies of one study, and what has failed in this session of it."""

    def __init__(self, settings: Json) -> None:
        self._of: dict[str, Json] = settings["on_failure"]
        self._ended: Counter[tuple[str, str]] = Counter()

    def another_attempt(self, failure: str, record: Mapping[str, Any], spec: Json) -> Json | None:
        """The spec to try again with, or None where the trial has had its attempts."""
        policy = self._of[failure]
        retry = policy.get("retry", "none")
        if retry == "none" or record["failures"].get(failure, 0) > policy["times"]:
            return None
        return with_half_batches(spec) if retry == "halve_batch" else spec

    def ending(self, failure: str) -> str:
        """The state of a trial that is not tried again."""
        return STATES[self._of[failure]["then"]]

    def stops(self, failure: str, place: str) -> int | None:
        """Count one more trial that ended so; how many there were if the study is to stop."""
        self._ended[failure, place] += 1
        limit, count = self._of[failure]["stop_after"], self._ended[failure, place]
        return count if limit is not None and count >= limit else None


def with_half_batches(spec: Json) -> Json | None:
    """Smaller batches and as many more of them in a step; None where a batch has one sample.

    Stages have batch sizes of their own, `accumulate` is one for the whole run: all are divided by
    the smallest number that divides them all, and every process's share of them.
    """
    stages = spec["train"].get("stages") or []
    sizes = [spec["train"]["batch_size"]]
    sizes += [train["batch_size"] for train in map(_train_of, stages) if "batch_size" in train]
    shares = [size // Size.of(spec).processes for size in sizes]
    parts = next((n for n in range(2, min(shares) + 1) if not any(s % n for s in shares)), None)
    if parts is None:
        return None
    changed = {**spec, "train": _divided(spec["train"], parts)}
    changed["train"]["accumulate"] = spec["train"].get("accumulate", 1) * parts
    if stages:
        changed["train"]["stages"] = [_divided_stage(stage, parts) for stage in stages]
    changed["eval"] = {
        name: {**settings, "batch_size": max(1, settings.get("batch_size", 64) // parts)}
        for name, settings in (spec.get("eval") or {}).items()
    }
    return changed


def _train_of(stage: Mapping[str, Any]) -> Json:
    """What a stage says about training: resolved, or as it was written."""
    if "spec" in stage:
        return dict(stage["spec"].get("train") or {})
    key = "train.batch_size"
    return {"batch_size": stage["set"][key]} if key in stage["set"] else {}


def _divided(train: Mapping[str, Any], parts: int) -> Json:
    return {**train, "batch_size": train["batch_size"] // parts}


def _divided_stage(stage: Json, parts: int) -> Json:
    changed = {**stage}
    if "batch_size" in _train_of(stage):
        if "train.batch_size" in stage["set"]:
            size = stage["set"]["train.batch_size"] // parts
            changed["set"] = {**stage["set"], "train.batch_size": size}
        if "spec" in stage:
            accumulate = stage["spec"]["train"].get("accumulate", 1) * parts
            train = {**_divided(stage["spec"]["train"], parts), "accumulate": accumulate}
            changed["spec"] = {**stage["spec"], "train": train}
    return changed
