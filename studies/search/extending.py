"""More of a study: further trials, hours, or seeds, for one that is finished or was cut off.

What is asked for becomes values that override the study's file, as `study resume --set` takes them;
seeds for some points only stand in `study.json` as `more_seeds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from memarch.arch.units import parse_duration
from memarch.components.errors import SpecError
from memarch.studies.records.snapshot import read_snapshot
from memarch.studies.records.store import Json, StudyFolder, lease
from memarch.studies.results.leaderboard import Trial, is_copy
from memarch.studies.results.ranking import ranking
from memarch.studies.search.sampling import Point


def extend(
    folder: StudyFolder,
    *,
    trials: str | None = None,
    hours: str | None = None,
    seeds: Sequence[int] = (),
    top: int | None = None,
) -> list[str]:
    """Overrides that make the study larger. `+20` adds, `60` is the new whole."""
    if not (trials or hours or seeds):
        raise SpecError("say what the study gets more of: --trials +20, --hours +1 or --seeds 3,4")
    if top is not None and not seeds:
        raise SpecError("--top goes with --seeds: the best points get more of them")
    with lease(folder.path):
        settings = read_snapshot(folder.path, folder.info["overrides"]).study
        records = folder.records()
        budget = dict(settings["budget"])
        overrides = []
        if hours:
            budget["hours"] = _more(hours, budget.get("hours"), "--hours", _hours)
        if trials:
            _refuse_fixed(settings)
            trained = sum(not is_copy(record) for record in records.values())
            budget["trials"] = int(_more(trials, budget.get("trials") or trained, "--trials", int))
        if seeds:
            points = _points(folder, records, settings, top)
            known = _seeds(settings)
            _refuse_known(seeds, known)
            if top is None:
                overrides.append(f"study.seeds.model={[*known, *seeds]}")
            else:
                _keep(folder, points, seeds)
            if budget.get("trials"):
                budget["trials"] += len(points) * len(seeds)
        _refuse_spent(folder.info, settings["budget"], budget)
        for unit, amount in budget.items():
            if amount != settings["budget"].get(unit):
                overrides.append(f"study.budget.{unit}={amount}")
        return overrides


def _more(text: str, now: float | None, option: str, read: Any) -> float:
    adds = text.startswith("+")
    try:
        amount = read(text.removeprefix("+"))
    except ValueError:
        raise SpecError(f"{option} must be a number, or +NUMBER to add, got {text!r}") from None
    if adds and now is None:
        raise SpecError(f"the study has no such budget that {option} {text} could add to")
    whole = (now or 0) + amount if adds else amount
    if now is not None and whole <= now:
        raise SpecError(f"{option} {text} is not more than the {now:g} that the study has")
    return float(whole)


def _hours(text: str) -> float:
    seconds = parse_duration(text)
    return float(text) if seconds is None else seconds / 3600


def _refuse_fixed(settings: Json) -> None:
    fixed = settings["design"] != "search" or settings["sampler"]["type"] == "grid"
    if fixed and not settings["budget"].get("trials"):
        raise SpecError(
            f"`design: {settings['design']}` has its points, and no budget of trials to extend; "
            "more seeds are possible: --seeds 3,4,5"
        )


def _refuse_spent(info: Json, before: Json, budget: Json) -> None:
    hours = budget.get("hours")
    if hours and info.get("elapsed", 0) / 3600 >= hours:
        raise SpecError(f"its budget of {before['hours']:g} h is used up: give --hours +1 too")


def _seeds(settings: Json) -> list[int]:
    model = settings["seeds"]["model"]
    return list(model) if isinstance(model, list) else [model]


def _refuse_known(seeds: Iterable[int], known: Sequence[int]) -> None:
    twice = [seed for seed in seeds if seed in known]
    if twice:
        raise SpecError(f"--seeds: the study has seed {twice[0]} already; it has {known}")


def _points(
    folder: StudyFolder, records: dict[int, Json], settings: Json, top: int | None
) -> list[Point]:
    """The points that get the seeds, the best first where only the top is asked for."""
    rows: Iterable[Trial] = records.values()
    if top is not None:
        leaders, others = ranking(records.values(), settings["objective"])
        rows = [record for setting in (*leaders, *others) for record in setting]
    points: dict[str, Point] = {}
    for record in rows:
        if not is_copy(record):
            point = Point(record["variant"], record["params"])
            points.setdefault(point.key, point)
    found = list(points.values())[:top]
    if not found:
        raise SpecError(f"study {folder.name!r} has no trial yet that could get more seeds")
    return found


def _keep(folder: StudyFolder, points: Sequence[Point], seeds: Sequence[int]) -> None:
    info = folder.info
    rows = [
        {"variant": point.variant, "params": point.draws, "seeds": list(seeds)} for point in points
    ]
    folder.write_info(info | {"more_seeds": [*info.get("more_seeds", []), *rows]})
