"""What the finalists score on the test split: every seed of the best settings, and its spread.

`memarch study show`, the report and the study's run in MLflow show these rows. The order is that of
the validation scores: nothing is chosen by a test score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from memarch.studies.results import leaderboard as board
from memarch.studies.results.leaderboard import Document, seed_of
from memarch.studies.results.replicates import Replicates, replicates

COLUMNS = ("variant", "settings", "metric", "seeds", "mean", "median", "range", "validation")


@dataclass(frozen=True)
class Finalist:
    """One setting, and one metric of the test split over its seeds."""

    setting: Replicates
    metric: str
    seeds: tuple[int | None, ...]
    """Those with a score."""
    scores: tuple[float, ...]

    @property
    def validation(self) -> float | None:
        """The mean of the same metric on validation data."""
        return self.setting.metrics().get(self.metric.replace("test/", "eval/", 1))

    def words(self) -> list[str]:
        """In the columns of `COLUMNS`."""
        ends = dict.fromkeys((min(self.scores), max(self.scores)))
        given, done = len(self.setting.numbers), len(self.scores)
        return [
            self.setting.variant or "-",
            board.settings({"params": self.setting.params}) or "-",
            self.metric,
            str(done) if done == given else f"{done} of {given}",
            self._figure(fmean(self.scores)),
            self._figure(median(self.scores)),
            " to ".join(self._figure(end) for end in ends),
            self._figure(self.validation),
        ]

    def row(self) -> dict[str, Any]:
        """In `memarch study show --json`."""
        return {
            "variant": self.setting.variant,
            "params": dict(self.setting.params),
            "metric": self.metric,
            "validation": self.validation,
            "seeds": list(self.seeds),
            "scores": list(self.scores),
            "mean": fmean(self.scores),
            "median": median(self.scores),
            "range": [min(self.scores), max(self.scores)],
        }

    def _figure(self, value: float | None) -> str:
        return board.figure({"metrics": {self.metric: value}}, self.metric)


def finalists(document: Document, metrics: Sequence[str] = ()) -> list[Finalist]:
    """The settings with test scores, best first; of these metrics, or of the objectives."""
    found = []
    for setting in replicates(document):
        for metric in metrics or board.test_metrics(document):
            scored = [
                (seed_of(trial), score)
                for trial in setting.trials
                if (score := board.score(trial, metric)) is not None
            ]
            if scored:
                seeds, scores = zip(*scored, strict=True)
                found.append(Finalist(setting, metric, seeds, scores))
    return found
