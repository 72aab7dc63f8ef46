"""The study's own run in MLflow, against a real MLflow on SQLite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_study import METRIC, RANGES, write_finished_study

from memarch.studies.records.mlflow_ui import (
    introduce,
    saved_views,
    tags_of,
    view_address,
    view_key,
)
from memarch.studies.records.store import StudyFolder
from memarch.studies.report.parent_run import describe
from memarch.studies.report.records import Records
from memarch.studies.report.write import write_report

ID = "0123456789abcdef"


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, StudyFolder]:
    """A study of 60 trials, described; the client, its parent run as MLflow has it, the folder."""
    from mlflow import MlflowClient

    storage = tmp_path_factory.mktemp("storage")
    path = write_finished_study(storage, 60)
    write_report(path)
    folder = StudyFolder(storage, path.name)
    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    experiment = client.create_experiment(path.name, (storage / "artifacts").as_uri())
    run = client.create_run(experiment, run_name=path.name).info.run_id
    introduce(client, experiment, folder, ID)
    describe(client, experiment, run, folder)
    describe(client, experiment, run, folder)  # a resumed study does it again
    return client, client.get_run(run), folder


def test_it_carries_page_pictures_and_tables(described: Any) -> None:
    client, run, folder = described
    own = run.info.run_id

    def names(place: str | None = None) -> set[str]:
        return {Path(file.path).name for file in client.list_artifacts(own, place)}

    assert names() == {"report.html", "front.png", "pictures", "tables"}
    assert {"importance_all_variants.png", "slice_num_tokens.png"} <= names("pictures")
    tables = names("tables")
    assert {"front.json", "best_of_each_variant.json", "importances.json", "trials.csv"} <= tables
    page = Path(client.download_artifacts(own, "report.html")).read_text()
    assert page == (folder.path / "report.html").read_text()
    front = json.loads(Path(client.download_artifacts(own, "tables/front.json")).read_text())
    scores = [row["metrics"][METRIC] for row in front]
    sizes = [row["metrics"]["cost/state_bytes"] for row in front]
    assert scores == sorted(scores)
    assert sizes == sorted(sizes)


def test_it_says_what_is_best_and_what_mattered(described: Any) -> None:
    _, run, folder = described
    records = Records(folder.path)
    metrics = run.data.metrics
    for trial in records.best_of_variants:
        assert metrics[f"best/{trial['variant']}/{METRIC}"] == trial["metrics"][METRIC]
    assert metrics[METRIC] == records.ranked[0]["metrics"][METRIC]
    shares = [value for name, value in metrics.items() if name.startswith("importance/")]
    assert sum(shares) == pytest.approx(1.0)
    failed = sum(trial["state"] == "failed" for trial in records.trials)
    assert (metrics["trials/complete"], metrics["trials/failed"]) == (60 - failed, failed)
    assert f"{records.ranked[0]['number']:03d}" in run.data.tags["best"]


def test_its_note_has_question_answer_and_leaderboard(described: Any) -> None:
    _, run, folder = described
    note = run.data.tags["mlflow.note.content"]
    best = Records(folder.path).ranked[0]
    assert note.startswith("**Which memory recalls most?**")
    assert f"| 1 | {best['number']:03d} | {best['variant']} |" in note
    assert view_address(run.info.experiment_id, ID) in note
    assert "<" not in note


def test_the_experiment_has_a_view_of_what_was_searched(described: Any) -> None:
    client, run, _ = described
    tags = client.get_experiment(run.info.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(tags[f"mlflow.sharedViewState.{view_key(ID)}"])
    state = json.loads(view["state"])
    searched = dict.fromkeys(name for space in RANGES.values() for name in space)
    for name in ("variant", *searched):
        assert f"params.`{name}`" in state["selectedColumns"]
    assert f"metrics.`{METRIC}`" in state["selectedColumns"]
    assert (state["orderByKey"], state["orderByAsc"]) == (f"metrics.`{METRIC}`", False)
    kinds = [chart["type"] for chart in state["compareRunCharts"]]
    assert kinds == ["PARALLEL"] * 3 + ["SCATTER"] * 2 + ["LINE"] * 3
    parallel = state["compareRunCharts"][1]["selectedParams"]  # of rmt and gradmem
    assert parallel == ["variant", *RANGES["rmt"]]
    found = client.search_runs([run.info.experiment_id], state["searchFilter"])
    assert list(found) == []  # the parent is none of the trials


def test_trials_are_told_by_mechanism() -> None:
    record = {"copy_of": None, "mechanism": "rmt+armt"}
    assert tags_of(record) == {"memarch.kind": "trial", "mechanism": "rmt+armt"}
    assert tags_of(record | {"copy_of": 3})["memarch.kind"] == "copy"


def test_the_view_is_found_by_its_tag(described: Any) -> None:
    client, run, _ = described
    experiment = client.get_experiment(run.info.experiment_id)
    tags = [{"key": key, "value": value} for key, value in experiment.tags.items()]
    assert saved_views(experiment.experiment_id, tags) == [view_address("1", ID)]
    assert experiment.tags["mlflow.note.content"] == "Which memory recalls most?"
