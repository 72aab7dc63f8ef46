"""What a report is made from: the JSON files in a study's folder, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from memarch.search_spaces.ranges import Range, parse_range
from memarch.studies.records.store import StudyFolder, read_json, show_study
from memarch.studies.results import leaderboard as board
from memarch.studies.results.ablation import Comparison, comparisons
from memarch.studies.results.finalists import Finalist, finalists
from memarch.studies.results.replicates import Replicates, replicates

Trial = Mapping[str, Any]
Curve = list[tuple[float, float]]

AXES = {
    "steps": "train/steps",
    "tokens": "train/tokens",
    "FLOPs": "train/flops",
    "seconds": "train/seconds",
}
"""What learning curves may be drawn over, and where a report of a trial has it."""


@dataclass(frozen=True)
class Records:
    """A study's trials, settings and floors; nothing is read before it is needed."""

    folder: Path

    @cached_property
    def document(self) -> dict[str, Any]:
        return show_study(self.folder.name, self.folder.parent.parent)

    @cached_property
    def study(self) -> StudyFolder:
        return StudyFolder(self.folder.parent.parent, self.folder.name)

    @cached_property
    def info(self) -> dict[str, Any]:
        return self.study.info

    @cached_property
    def _resolved(self) -> dict[str, Any]:
        return dict(read_json(self.folder / "resolved.json") or {})

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The section `study`, with defaults."""
        return dict(self._resolved.get("study") or {})

    @cached_property
    def ranges(self) -> dict[str, dict[str, Range]]:
        """What was searched, by variant and parameter."""
        return {
            variant: {name: parse_range(raw) for name, raw in space.items()}
            for variant, space in (self._resolved.get("ranges") or {}).items()
        }

    @cached_property
    def trials(self) -> list[Trial]:
        return list(self.document["trials"])

    @cached_property
    def ranked(self) -> list[Trial]:
        """Finished trials, best first."""
        return board.ranked(self.document)

    @cached_property
    def complete(self) -> list[Trial]:
        """Trials that ran to their end and have a score, by number."""
        rows = [trial for trial in board.finished(self.document) if trial["state"] == "complete"]
        return sorted(rows, key=lambda trial: int(trial["number"]))

    @cached_property
    def points(self) -> list[Replicates]:
        """The complete trials, best first; those that differ in their seed only together."""
        return replicates(self.document)

    @cached_property
    def replicated(self) -> bool:
        """Whether a setting was run with several seeds."""
        return any(len(one.trials) + len(one.others) > 1 for one in self.points)

    @cached_property
    def finalists(self) -> list[Finalist]:
        """Settings with scores on the test split, in every metric but sweeps' and floors."""
        names = {name for trial in self.trials for name in trial["metrics"]}
        main = [n for n in names if n.startswith("test/") and n.count("/") == 2]
        return finalists(self.document, sorted(main)) if main else []

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Of an ablation, each setting against the baseline."""
        return comparisons(self.document)

    @property
    def baseline(self) -> str:
        return str((self.document.get("ablation") or {}).get("baseline") or "")

    @property
    def equivalence(self) -> float | None:
        """Differences up to here count as equal, where an ablation asks that."""
        margin = (self.document.get("ablation") or {}).get("equivalence")
        return None if margin is None else float(margin)

    @cached_property
    def goals(self) -> dict[str, str]:
        return board.objectives(self.document)

    @cached_property
    def metric(self) -> str:
        return board.main_objective(self.document)[0]

    @cached_property
    def maximize(self) -> bool:
        return board.main_objective(self.document)[1]

    @cached_property
    def floors(self) -> dict[str, float]:
        return board.floors(self.trials, self.metric)

    @cached_property
    def source(self) -> str:
        path = self.folder / "study.yaml"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    @cached_property
    def question(self) -> str:
        """`study.question`, else the comment that opens the file, up to its first empty line."""
        if self.settings.get("question"):
            return str(self.settings["question"])
        words = []
        for line in self.source.splitlines():
            if not line.startswith("#") or not line.strip("# "):
                break
            words.append(line.strip("# "))
        return " ".join(words)

    @cached_property
    def variants(self) -> list[str]:
        """In the order of the first trial of each; baselines last."""
        names = dict.fromkeys(trial["variant"] or "" for trial in self.trials)
        return sorted(names, key=lambda name: name in board.BASELINES)

    def of(self, variant: str) -> list[Trial]:
        """The complete trials of a variant."""
        return [trial for trial in self.complete if (trial["variant"] or "") == variant]

    def parameters(self, trials: Sequence[Trial]) -> list[str]:
        """What differs between these trials of all that was drawn for them."""
        seen: dict[str, set[str]] = {}
        for trial in trials:
            for name, value in trial["params"].items():
                if name != "variant":
                    seen.setdefault(name, set()).add(str(value))
        return [name for name, values in seen.items() if len(values) > 1]

    def colour(self, variant: str) -> str:
        """The colour's class suffix: `x` for baselines."""
        if variant in board.BASELINES:
            return "x"
        return str([v for v in self.variants if v not in board.BASELINES].index(variant) % 8)

    def shape(self, variant: str) -> int:
        return self.variants.index(variant)

    def group(self, variant: str) -> str:
        """The class of all that belongs to a variant, by which the page shows and hides it."""
        return f"v{self.variants.index(variant)}"

    @cached_property
    def progress(self) -> dict[int, list[tuple[float, Mapping[str, Any]]]]:
        """(step, metrics) of each trial; of several attempts the last word on each step."""
        found = {}
        for trial in self.trials:
            lines = self.study.trial(trial["number"]).progress()
            points = {float(line["step"]): line.get("metrics") or {} for line in lines}
            found[int(trial["number"])] = sorted(points.items(), key=lambda item: item[0])
        return found

    def curve(self, trial: Trial, axis: str = "steps") -> Curve:
        """(position on the axis, objective) over training."""
        points = []
        for step, metrics in self.progress[trial["number"]]:
            at = step if axis == "steps" else metrics.get(AXES[axis])
            if at is not None and metrics.get(self.metric) is not None:
                points.append((float(at), float(metrics[self.metric])))
        return points

    @cached_property
    def best_of_variants(self) -> list[Trial]:
        """The best setting of each variant, best first: its first trial with its seeds' means."""
        rows: dict[str, Trial] = {}
        for one in self.points:
            rows.setdefault(one.variant or "", {**one.trials[0], "metrics": one.metrics()})
        return list(rows.values())

    def result(self, trial: Trial) -> dict[str, Any]:
        """What the worker wrote as its last act."""
        return self.study.trial(trial["number"]).result or {}


def score_of(records: Records, trial: Trial) -> float:
    """The main objective of a trial that has one."""
    value = board.score(trial, records.metric)
    return float("nan") if value is None else value


def label(trial: Trial) -> str:
    """A trial in one line: number, variant, what was drawn."""
    drawn = board.settings(trial)
    name = f"{trial['number']:03d} {trial['variant'] or ''}".strip()
    return name + (f" ({drawn})" if drawn else "")
