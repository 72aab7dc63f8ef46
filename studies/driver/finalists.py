"""Scores on the test split, computed once, for the finalists, after the search is over."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import ray

from memarch.studies.cluster.jobs import Job
from memarch.studies.cluster.mailbox import Key
from memarch.studies.cluster.pool import Pool
from memarch.studies.cluster.resources import Size
from memarch.studies.driver.stopping import GO_ON, Stopping
from memarch.studies.records.store import StudyFolder


class Finalists:
    """The tests of one study's finalists: jobs of their own, within their own time limit."""

    def __init__(
        self,
        pool: Callable[[], Pool],
        folder: StudyFolder,
        plugins: Mapping[str, str],
        limit: float | None,
    ) -> None:
        self._pool, self._folder, self._plugins, self._limit = pool, folder, dict(plugins), limit
        self._begun: dict[Key, float] = {}

    def run(self, numbers: Sequence[int], stopping: Stopping) -> Iterator[str]:
        """Write `test.json` of these trials, where it is not there; yield what went wrong."""
        left = deque(number for number in numbers if self._folder.trial(number).test is None)
        while (left or self._begun) and stopping.level == GO_ON:
            self._deal(left)
            yield from self._end_late()
            ready, _ = ray.wait(self._pool().refs, num_returns=1, timeout=1.0)
            for ref in ready:
                key, answer = self._pool().finished(ref)
                del self._begun[key]
                reason = (answer.get("result") or answer)["reason"]
                if reason:
                    yield f"trial {key[0]}: no test scores: {reason}"

    def _deal(self, left: deque[int]) -> None:
        while left:
            trial = self._folder.trial(left[0])
            spec = trial.spec or {}
            size = Size.of_evaluation(spec)
            if not self._pool().fits(size):
                return
            job = Job(left.popleft(), 0, spec, str(trial.path), self._plugins)
            self._pool().start(job, size, method="test")
            self._begun[job.number, job.attempt] = time.monotonic()

    def _end_late(self) -> Iterator[str]:
        limit, now = self._limit, time.monotonic()
        for key in [k for k, begun in self._begun.items() if limit and now - begun > limit]:
            self._pool().kill(key)
            del self._begun[key]
            yield f"trial {key[0]}: no test scores: longer than eval_time_limit, {limit:g} s"
