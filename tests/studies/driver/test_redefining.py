"""A study resumed under a changed file: what it keeps, shows and refuses."""

from __future__ import annotations

from pathlib import Path

import driver_study as helpers
import pytest
from agreement import assert_records_agree

from memarch.components.errors import SpecError
from memarch.studies.driver import events
from memarch.studies.driver.redefining import hash_of, redefine
from memarch.studies.driver.sessions import resume_study
from memarch.studies.records.store import StudyFolder, read_json

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def study(local_ray, tmp_path_factory) -> StudyFolder:
    place = tmp_path_factory.mktemp("changing")
    file = helpers.write_study(place, name="changing", budget="{trials: 3}", sampler="tpe")
    helpers.run(file, place / "runs")
    return StudyFolder(place / "runs", "changing")


def changed(folder: StudyFolder, path: Path, **settings) -> list[str]:
    given = {"name": "changing", "budget": "{trials: 3}", "sampler": "tpe"} | settings
    file = helpers.write_study(path, **given)
    return redefine(folder, folder.info, file, ())[1]


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({}, []),
        ({"budget": "{trials: 9}"}, ["changed: study.budget.trials: 3 -> 9"]),
        ({"seeds": "{model: [1, 2], search: 3}"}, ["changed: study.seeds.model: 1 -> [1, 2]"]),
        (
            {"lr": "{float: [1e-5, 1e-1], log: true}"},
            ["changed: search.lr.float: [0.0001, 0.1] -> [1e-05, 0.1]"],
        ),
        ({"trial_time_limit": "5m"}, ["changed: study.trial_time_limit: null -> 300.0"]),
        ({"cpus": 1}, ["changed: resources.cpus: 2.0 -> 1.0"]),
    ],
)
def test_what_leaves_finished_trials_as_they_are_is_shown(study, tmp_path, settings, shown):
    assert changed(study, tmp_path, **settings) == shown


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"objective": "{eval/kv/exact_match: minimize}"}, r"objective.*maximize -> minimize"),
        ({"lr": "{float: [1e-3, 1e-1], log: true}"}, "a range may only become wider"),
        ({"lr": "{choice: [0.001, 0.01]}"}, "kinds of ranges stay as they began"),
        ({"lr": "0.003"}, "kinds of ranges stay as they began"),
        ({"seeds": "{model: [2, 1], search: 3}"}, "only more seeds may follow"),
        ({"seeds": "{model: 1, search: 3, data: 7}"}, "saw other data"),
        ({"constraints": "{cost/state_bytes: {max: 9}}"}, "judged by the old ones"),
        ({"variants": {"rmt": {"model.memory.main": {"type": "rmt"}}}}, "one categorical choice"),
        ({"design": "grid", "lr": "{choice: [0.1]}"}, "decides what a trial's number means"),
    ],
)
def test_what_would_change_finished_trials_is_refused(study, tmp_path, settings, what):
    with pytest.raises(SpecError, match=f"cannot go on with this.*{what}.*--as NAME2"):
        changed(study, tmp_path, **settings)


def test_choices_of_a_var_are_refused(study, tmp_path):
    file = helpers.write_study(tmp_path, name="changing", budget="{trials: 3}", sampler="tpe")
    file.write_text(file.read_text().replace("[16, 32, 64]", "[16, 32, 64, 128]"))
    with pytest.raises(SpecError, match=r"search.segment_length.choice.*stay as they began"):
        redefine(study, study.info, file, ())
    with pytest.raises(SpecError, match=r"train.weight_decay: 0.0 -> 0.1 \(the trials so far ran"):
        redefine(study, study.info, None, ["train.weight_decay=0.1"])


def test_a_changed_study_goes_on_where_it_stopped(study, tmp_path):
    before = read_json(study.path / "resolved.json")
    definition = {name: before[name] for name in ("study", "ranges", "variants")}
    assert before["hash"] == hash_of(definition)
    file = helpers.write_study(
        tmp_path,
        name="changing",
        budget="{trials: 6}",
        sampler="tpe",
        lr="{float: [1e-5, 1e-1], log: true}",
    )
    records = study.records()
    notices: list[str] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.Notice):
            notices.append(event.message)

    result = resume_study("changing", file=file, storage=study.storage, on_event=listen)
    assert [trial["number"] for trial in result.trials] == list(range(6))
    assert [study.records()[n] for n in range(3)] == [records[n] for n in range(3)]
    assert "changed: study.budget.trials: 3 -> 6" in notices
    assert (study.path / "study.1.yaml").exists()
    after = read_json(study.path / "resolved.json")
    assert after["hash"] != before["hash"]
    assert after["ranges"]["rmt"]["lr"]["float"] == [1e-5, 1e-1]
    assert_records_agree(study.storage, "changing")
    assert redefine(study, study.info, None, ())[1] == []
