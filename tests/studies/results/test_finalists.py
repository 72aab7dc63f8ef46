"""The best settings on the test split: all their seeds, and wherever they are shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from ablation_documents import MATCH, document
from report_study import write_finished_study

from memarch import show
from memarch.studies.records.store import read_json, write_json
from memarch.studies.report import formats, parent_run
from memarch.studies.report.records import Records
from memarch.studies.report.write import write_report
from memarch.studies.results.ablation import conclusions
from memarch.studies.results.finalists import finalists

TEST = "test/kv/exact_match"
SCORES = {"best": [1.0, 1.0, 0.4], "second": [0.7, 0.7, None], "third": [0.5, 0.5, 0.5]}


@pytest.fixture
def tested() -> dict[str, Any]:
    """Three settings over three seeds; the first two were tested, a seed of the second failed."""
    shown = document(SCORES, ablation=None)
    for row in shown["trials"]:
        if row["variant"] != "third" and row["metrics"]:
            row["metrics"][TEST] = round(row["metrics"][MATCH] - 0.1, 6)
    return shown


def test_every_seed_counts_and_the_spread_is_shown(tested: dict[str, Any]) -> None:
    first, second = finalists(tested)
    assert first.row() == {
        "variant": "best",
        "params": {},
        "metric": TEST,
        "validation": pytest.approx(0.8),
        "seeds": [1, 2, 3],
        "scores": [0.9, 0.9, 0.3],
        "mean": pytest.approx(0.7),
        "median": 0.9,
        "range": [0.3, 0.9],
    }
    words = ["best", "-", TEST, "3", "0.7000", "0.9000", "0.3000 to 0.9000", "0.8000"]
    assert first.words() == words
    assert second.words()[3:] == ["2 of 3", "0.6000", "0.6000", "0.6000", "0.7000"]
    assert conclusions(tested)["finalists"] == [first.row(), second.row()]


def test_the_order_is_that_of_validation(tested: dict[str, Any]) -> None:
    for row in tested["trials"]:
        if TEST in row["metrics"]:
            row["metrics"][TEST] = 0.1 if row["variant"] == "best" else 0.9
    assert [one.setting.variant for one in finalists(tested)] == ["best", "second"]


def test_without_test_scores_there_are_none() -> None:
    assert finalists(document(SCORES)) == []


def test_show_has_the_finalists_and_hints_at_seeds_once(
    tested: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    show.study(tested)
    shown = capsys.readouterr().out
    table = shown.partition("test scores of the finalists")[2]
    assert "0.3000 to 0.9000" in table
    assert "2 of 3" in table
    assert "--seeds` shows every trial" in shown
    show.study(tested, seeds=True)
    shown = capsys.readouterr().out
    assert "test scores of the finalists" in shown
    assert "--seeds" not in shown


def test_a_report_has_them_over_their_seeds(tmp_path: Path) -> None:
    folder = write_finished_study(tmp_path, 40, seeds=5)
    best = Records(folder).points[0]
    for place, trial in enumerate(best.trials):
        path = folder / "trials" / f"{trial['number']:03d}" / "record.json"
        record = read_json(path)
        record["metrics"] |= {TEST: place / 10, "test/kv/floor/blind": 0.1}
        write_json(path, record)
    records = Records(folder)
    (row,) = formats.finalists(records).rows
    assert row[2] == TEST
    assert row[3] == f"{len(best.trials)}" + (f" of {len(best.numbers)}" if best.others else "")
    assert row[6] == f"0.0000 to {(len(best.trials) - 1) / 10:.4f}"
    section = write_report(folder).read_text().partition("Test scores of the finalists</h2>")[2]
    assert f">{row[6]}</td>" in section.partition("</section>")[0]
    assert f"| {row[6]} |" in formats.markdown(records)
    assert row[6] in formats.latex(records)
    told = parent_run._metrics(records, {})
    count = len(best.trials)
    for part, value in {"": (count - 1) / 20, "/median": (count - 1) / 20, "/seeds": count}.items():
        assert told[TEST + part] == pytest.approx(value)
    assert "### On the test split\n\n| variant" in parent_run._note(records, "#")
    columns = next(csv.reader(formats.trials_csv(records).splitlines()))
    assert TEST in columns
    assert json.loads(json.dumps(records.finalists[0].row()))["seeds"] == [
        trial["seed"] for trial in best.trials
    ]
