"""What the study's own run in MLflow carries: enough to read it without opening its trials.

Comparing hundreds of runs in MLflow is slow, so the parent run has the report's page, its pictures,
its tables as files, what is best as metrics and tags, and a note in words.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from memarch.studies.records.mlflow_ui import view_address
from memarch.studies.records.store import StudyFolder, write_json
from memarch.studies.records.tracking import metric_name
from memarch.studies.report import formats as formats
from memarch.studies.report import pictures
from memarch.studies.report.ablation import ablation_table
from memarch.studies.report.png import write_png
from memarch.studies.report.records import Records, Trial, label
from memarch.studies.report.text import Table, plain_answer
from memarch.studies.report.write import overview
from memarch.studies.results import leaderboard as board
from memarch.studies.results.importance import importances

if TYPE_CHECKING:
    from mlflow import MlflowClient

BEST_ROWS = 10
"""Of the leaderboard in the note."""
LONGEST_TAG = 5000


def describe(client: MlflowClient, experiment: str, run: str, folder: StudyFolder) -> None:
    """Bring the parent run up to date with the study's folder."""
    from mlflow.entities import Metric, RunTag

    records = Records(folder.path)
    shares = {goal: importances(records, goal) for goal in records.goals}
    with tempfile.TemporaryDirectory() as place:
        for path in _files(records, shares, Path(place)):
            client.log_artifact(run, str(path), _shelf(path))
    metrics = [Metric(name, value, 0, 0) for name, value in _metrics(records, shares).items()]
    note = _note(records, view_address(experiment, folder.info["id"]))
    tags = {"mlflow.note.content": note, "answer": plain_answer(records), **_tags(records)}
    client.log_batch(
        run,
        metrics=metrics,
        tags=[RunTag(name, value[:LONGEST_TAG]) for name, value in tags.items()],
    )


def _shelf(path: Path) -> str | None:
    """The folder of an artifact: pictures, tables; the page and the front at the top."""
    if path.name in ("report.html", "front.png"):
        return None
    return "pictures" if path.suffix == ".png" else "tables"


def _files(
    records: Records, shares: Mapping[str, Mapping[str, Any]], place: Path
) -> Iterator[Path]:
    page = records.folder / "report.html"
    if page.exists():
        yield page
    for name, chart in overview(records):
        path = place / f"{name}.png"
        write_png(path, chart)
        yield path
    for name, content in {
        "front.json": [_row(records, mark.trial) for mark in pictures.front(records)],
        "best_of_each_variant.json": [_row(records, trial) for trial in records.best_of_variants],
        "importances.json": shares,
    }.items():
        write_json(place / name, content)
        yield place / name
    if records.finalists:
        write_json(place / "finalists.json", [one.row() for one in records.finalists])
        yield place / "finalists.json"
    if records.comparisons:
        write_json(place / "ablation.json", [asdict(one) for one in records.comparisons])
        yield place / "ablation.json"
    for name, text in {
        "trials.csv": formats.trials_csv(records),
        "leaderboard.md": formats.markdown(records),
        "leaderboard.tex": formats.latex(records),
    }.items():
        (place / name).write_text(text, encoding="utf-8")
        yield place / name


def _row(records: Records, trial: Trial) -> dict[str, Any]:
    costs = {name: board.score(trial, name) for name in board.COSTS}
    scores = {name: board.score(trial, name) for name in records.goals}
    drawn = {name: value for name, value in trial["params"].items() if name != "variant"}
    return {
        "trial": trial["number"],
        "variant": trial["variant"],
        "params": drawn,
        "metrics": scores | costs,
    }


def _metrics(records: Records, shares: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The best objectives, the best of each variant and finalist, importances, trials by state."""
    found: dict[str, float] = {}
    for trial in reversed(records.best_of_variants):
        for name in records.goals:
            value = board.score(trial, name)
            if value is not None and trial["state"] == "complete":
                found[f"best/{trial['variant'] or 'model'}/{name}"] = value
    for name, value in (records.info.get("best_values") or {}).items():
        if value is not None:
            found[name] = value
    for one in reversed(records.finalists):
        spread = {"": fmean(one.scores), "/median": median(one.scores), "/seeds": len(one.scores)}
        found |= {f"{one.metric}{part}": value for part, value in spread.items()}
    for goal, groups in shares.items():
        for name, share in next(iter(groups.values()), {}).items():
            found[f"importance/{goal}/{name}" if len(shares) > 1 else f"importance/{name}"] = share
    for trial in records.trials:
        kind = "drawn_again" if board.is_copy(trial) else trial["state"]
        found[f"trials/{kind}"] = found.get(f"trials/{kind}", 0.0) + 1
    return {metric_name(name): float(value) for name, value in found.items()}


def _tags(records: Records) -> dict[str, str]:
    best = records.document["best"]
    rows = [trial for trial in records.ranked if trial["number"] in best]
    front = [f"{mark.trial['number']:03d}" for mark in pictures.front(records)]
    return {
        "question": records.question or "-",
        "best": "; ".join(label(trial) for trial in rows) or "-",
        "front": ", ".join(front) or "-",
        "objective": json.dumps(records.goals),
    }


def _note(records: Records, address: str) -> str:
    """The run's description: question, answer, leaderboard, best of each variant."""
    parts = [f"**{records.question}**" if records.question else "", plain_answer(records)]
    parts.append(
        f"[All trials as a table, with charts]({address}) · the report is `report.html` under "
        "Artifacts, with `pictures/` and `tables/`"
    )
    if records.comparisons:
        parts += [f"### Against {records.baseline}", ablation_table(records).markdown()]
    if records.ranked:
        board_rows = formats.leaderboard(records, BEST_ROWS)
        parts += [f"### The best {len(board_rows.rows)}", board_rows.markdown()]
    if records.finalists:
        parts += ["### On the test split", formats.finalists(records).markdown()]
    if len(records.best_of_variants) > 1:
        parts += ["### The best of each variant", _of_variants(records).markdown()]
    return "\n\n".join(part for part in parts if part)


def _of_variants(records: Records) -> Table:
    rows = records.best_of_variants
    goals, costs = board.columns(records.document, rows)
    body = [
        [
            trial["variant"] or "model",
            board.settings(trial) or "-",
            *(board.figure(trial, goal) for goal in goals),
            *(board.cost(trial, name) for name in costs),
        ]
        for trial in rows
    ]
    scores = board.headings(goals, costs.values()).values()
    return Table("", ["variant", "settings", *scores, *costs.values()], body, numbers=2)
