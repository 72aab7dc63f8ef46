"""Warm start: finished trials of earlier studies, for the sampler to learn from.

They stand in Optuna before the study's own trials, whose numbers begin after them, and nowhere
else: not in the budget, not in tables or reports, not in MLflow. `warm_start.json` says which were
taken, and why others were not. A trial fits when its variant is in this study, and its parameters
are exactly those that the variant searches, inside their ranges. What the two studies hold fixed
(task, training) is the user's to compare: `memarch study diff` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna

from memarch.components.errors import SpecError
from memarch.studies.driver.judging import Judge
from memarch.studies.records.store import Json, StudyFolder, find_study, read_json, write_json
from memarch.studies.results.leaderboard import is_copy
from memarch.studies.results.ranking import ranking
from memarch.studies.search.sampling import Coder, Point

ATTRIBUTE = "memarch.warm"
"""Of a trial in Optuna: where it comes from, such as `earlier/7`."""

FILE = "warm_start.json"


def is_warm(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial in Optuna is an earlier study's."""
    return ATTRIBUTE in trial.user_attrs


def choose(folder: StudyFolder, sources: Sequence[Json], coder: Coder, judge: Judge) -> Json:
    """Which trials are taken: `{"trials": [{study, number, …}], "notes": [...]}`, once a study."""
    path = folder.path / FILE
    known: Json | None = read_json(path)
    if known is not None:
        return known
    chosen: Json = {"trials": [], "notes": []}
    for index, source in enumerate(sources):
        trials, note = _from_study(folder.storage, source, coder, judge, index)
        chosen["trials"] += trials
        chosen["notes"].append(note)
    if sources:
        write_json(path, chosen)
    return chosen


def add(study: optuna.Study, chosen: Json, coder: Coder, judge: Judge) -> None:
    """Add what is not there yet; called before the study's first own trial."""
    there = sum(map(is_warm, study.get_trials(deepcopy=False)))
    for row in chosen["trials"][there:]:
        study.add_trial(_frozen(row, coder, judge))


def _from_study(
    storage: Path, source: Json, coder: Coder, judge: Judge, index: int
) -> tuple[list[Json], str]:
    path = f"study.warm_start.{index}"
    name = source["study"]
    try:
        earlier = find_study(storage, name)
    except SpecError as error:
        raise SpecError(error.message, path=path) from None
    if earlier.info["objective"] != judge.objective:
        raise SpecError(
            f"study {name!r} has the objective {_told(earlier.info['objective'])}, and this one "
            f"{_told(judge.objective)}: they must agree",
            path=path,
        )
    records = earlier.records()
    numbers = _best_first(records, judge) if source.get("top") else sorted(records)
    taken: list[Json] = []
    misfits: Counter[str] = Counter()
    for number in numbers:
        record = records[number]
        if record["state"] != "complete" or is_copy(record):
            continue
        why = _misfit(record, coder)
        if why:
            misfits[why] += 1
            continue
        taken.append(
            {"study": name, "number": number}
            | {key: record[key] for key in ("variant", "params", "metrics")}
        )
        if len(taken) == source.get("top"):
            break
    note = f"warm start: {len(taken)} trials of study {name!r} are shown to the sampler"
    skipped = "; ".join(f"{count} not, for {why}" for why, count in misfits.items())
    return taken, f"{note}; {skipped}" if skipped else note


def _best_first(records: Mapping[int, Json], judge: Judge) -> list[int]:
    leaders, others = ranking(records.values(), judge.objective)
    first = [record["number"] for setting in (*leaders, *others) for record in setting]
    return [*first, *(number for number in sorted(records) if number not in first)]


def _misfit(record: Json, coder: Coder) -> str:
    """Why the trial is no point of this space; empty where it is one."""
    space = coder.spaces.get(record["variant"])
    if space is None:
        return f"variant {record['variant']!r} is not in this study"
    for name in record["params"]:
        if name not in space:
            return f"{name!r} is not searched here"
    for name, range_ in space.items():
        if name not in record["params"]:
            return f"{name!r} was not searched there"
        if not range_.contains(record["params"][name]):
            return f"its {name!r} lies outside the range here"
    return ""


def _frozen(row: Json, coder: Coder, judge: Judge) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.COMPLETE,
        values=[row["metrics"][name] for name in judge.objective],
        params=coder.encode(Point(row["variant"], row["params"])),
        distributions=coder.kinds(row["variant"]),
        user_attrs={ATTRIBUTE: f"{row['study']}/{row['number']}"},
        constraints=judge.violations(row["metrics"]),
    )


def _told(objective: Mapping[str, str]) -> str:
    return ", ".join(f"{direction} {name}" for name, direction in objective.items())
