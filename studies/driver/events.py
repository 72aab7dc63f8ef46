"""What a running study tells its caller: for the progress display, and for users' own callbacks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from memarch.studies.records.store import Json


@dataclass(frozen=True)
class StudyStarted:
    """The driver has the lease and its workers are starting."""

    name: str
    path: str
    objective: dict[str, str]
    design: str
    trials: int | None
    """How many trials the study will have; None when its budget is hours or FLOPs."""
    finished: int
    """How many of them are there already, when a study is resumed."""


@dataclass(frozen=True)
class TrialStarted:
    number: int
    variant: str
    params: dict[str, Any]
    attempt: int = 1


@dataclass(frozen=True)
class TrialProgress:
    number: int
    step: int
    metrics: dict[str, float]
    share: float | None = None
    """How much of its training budget the trial has used."""


@dataclass(frozen=True)
class TrialFinished:
    record: Json
    """A row of `study show`, without its spec."""


@dataclass(frozen=True)
class Notice:
    """Something that people should read: how to go on, what was retried, trouble with MLflow."""

    message: str


@dataclass(frozen=True)
class StudyResult:
    """How a study stands when its driver returns."""

    name: str
    path: str
    state: str
    objective: dict[str, str]
    trials: list[Json] = field(repr=False)
    """Rows of `study show`."""
    best: list[int]
    """Numbers of the best trial, or of the front where there are several objectives."""

    @property
    def best_trial(self) -> Json | None:
        """The best trial with its `variant`, `params`, `metrics` and `spec`; of a front, the first
        in the leaderboard. None where no trial completed."""
        from memarch.studies.results.leaderboard import ranked

        rows = ranked({"objective": self.objective, "trials": self.trials})
        return next((dict(trial) for trial in rows if trial["number"] in self.best), None)

    def frame(self) -> Any:
        """One row a trial: number, variant, state, the drawn parameters, the metrics."""
        import pandas

        rows = [
            {key: trial[key] for key in ("number", "variant", "state", "reason")}
            | {k: v for k, v in trial["params"].items() if k != "variant"}
            | trial["metrics"]
            for trial in self.trials
        ]
        return pandas.DataFrame(rows).set_index("number") if rows else pandas.DataFrame()


@dataclass(frozen=True)
class StudyFinished:
    result: StudyResult


Event = StudyStarted | TrialStarted | TrialProgress | TrialFinished | Notice | StudyFinished
