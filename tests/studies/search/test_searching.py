"""Search operations through the driver: earlier studies, first points, more of a study, racing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from driver_study import Log, run, write_study

from memarch import studies_commands
from memarch.components.errors import SpecError
from memarch.studies.driver import events
from memarch.studies.driver.sessions import resume_study
from memarch.studies.records.store import StudyFolder, find_study, show_study

pytestmark = pytest.mark.usefixtures("local_ray", "module_without_mlflow")

KV = "eval/kv/exact_match"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def earlier(local_ray, module_without_mlflow, shared, tmp_path_factory) -> events.StudyResult:
    file = write_study(tmp_path_factory.mktemp("files"), name="earlier", budget="{trials: 8}")
    return run(file, shared)


def trials_in_optuna(storage: Path, name: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{storage}/optuna.db").trials


def points(result: events.StudyResult) -> list[tuple[Any, ...]]:
    return [
        (t["variant"], t["params"], t["spec"]["study"]["seeds"]["model"]) for t in result.trials
    ]


def test_a_study_starts_from_what_an_earlier_one_found(earlier, shared, tmp_path):
    file = write_study(
        tmp_path, name="warm", sampler="tpe", budget="{trials: 5}", lr="{float: [1e-3, 1e-1]}"
    )
    sets = [
        "study.warm_start=[{study: earlier, top: 4}]",
        "study.first=[{variant: rmt, segment_length: 64}, {variant: rmt, lr: 0.003}]",
    ]
    log = Log()
    result = run(file, shared, overrides=sets, on_event=log)
    inside = [t["params"]["lr"] for t in earlier.trials if t["params"]["lr"] >= 1e-3]
    taken = min(4, len(inside))
    assert 0 < taken < 8
    assert [trial["number"] for trial in result.trials] == list(range(taken, taken + 5))
    assert result.trials[0]["params"]["segment_length"] == 64
    assert result.trials[1]["params"]["lr"] == 0.003
    assert {t["variant"] for t in result.trials[:2]} == {"rmt"}
    assert f"{taken} trials of study 'earlier' are shown to the sampler" in log.notices()
    if taken < len(earlier.trials):
        assert "its 'lr' lies outside the range here" in log.notices() or taken == 4
    stored = trials_in_optuna(shared, "warm")
    assert len(stored) == taken + 5
    scores = {f"earlier/{t['number']}": t["metrics"][KV] for t in earlier.trials}
    for trial in stored[:taken]:
        assert trial.values == [scores[trial.user_attrs["memarch.warm"]]]
    again = resume_study("warm", storage=shared, overrides=["study.budget.trials=6"])
    assert points(again)[:5] == points(result)
    assert len(again.trials) == 6
    assert len(trials_in_optuna(shared, "warm")) == taken + 6
    shown = show_study("warm", shared)
    assert {row["study"] for row in shown["warm_start"]} == {"earlier"}


def test_an_earlier_study_with_another_objective_is_refused(earlier, shared, tmp_path):
    file = write_study(tmp_path, name="other", sampler="tpe", objective="{eval/kv/loss: minimize}")
    with pytest.raises(SpecError, match="they must agree") as error:
        run(file, shared, overrides=["study.warm_start=[earlier]"])
    assert error.value.path == "study.warm_start.0"
    with pytest.raises(SpecError, match=r"no study 'earlyer'.*did you mean 'earlier'"):
        run(file, shared, overrides=["study.warm_start=[earlyer]"])
    assert not StudyFolder(shared, "other").exists()


def test_a_variant_may_be_the_best_trial_of_another_study(earlier, shared, tmp_path):
    file = write_study(tmp_path, name="winner", design="all", budget="{}")
    text = file.read_text()
    line = next(line for line in text.splitlines() if line.startswith("variants:"))
    variants = json.loads(line.removeprefix("variants: "))
    variants["winner"] = {
        "extends": {"study": "earlier", "trial": "best"},
        "train.budget.steps": 50,
    }
    file.write_text(text.replace(line, "variants: " + json.dumps(variants)))
    result = run(file, shared)
    best = next(t for t in earlier.trials if t["number"] == earlier.best[0])
    row = result.trials[-1]
    assert (row["variant"], row["params"]) == ("winner", {})
    assert row["spec"]["model"] == best["spec"]["model"]
    assert row["spec"]["train"]["lr"] == best["spec"]["train"]["lr"]
    assert row["spec"]["train"]["budget"]["steps"] == 50
    assert row["metrics"][KV] == best["metrics"][KV]
    shown = studies_commands.show_trial(f"winner/{row['number']}", shared)
    origins = {one["key"]: one["origin"] for one in shown["settings"]}
    assert origins["train.lr"] == "study earlier trial best"
    assert origins["train.budget.steps"] == "variant winner"


def test_a_finished_study_is_extended_by_trials_and_seeds(earlier, shared):
    def extended(**more: Any) -> events.StudyResult:
        given = {"trials": None, "hours": None, "seeds": (), "top": None} | more
        overrides = studies_commands.extend("earlier", shared, **given)
        return resume_study("earlier", storage=shared, overrides=overrides)

    larger = extended(trials="+2")
    assert points(larger)[:8] == points(earlier)
    assert len(larger.trials) == 10
    best = larger.best_trial
    assert best is not None
    seeded = extended(seeds=(8, 9), top=2)
    new = points(seeded)[10:]
    assert len(new) == 4
    assert {seed for _, _, seed in new} == {8, 9}
    assert [params for _, params, seed in new].count(best["params"]) == 2
    every = extended(seeds=(5,))
    assert len(every.trials) == 14 + 10
    assert {seed for _, _, seed in points(every)[14:]} == {5}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "say what the study gets more of"),
        ({"trials": "5"}, "is not more than"),
        ({"trials": "many"}, "must be a number"),
        ({"top": 3, "trials": "+1"}, "--top goes with --seeds"),
        ({"seeds": (1,)}, "has seed 1 already"),
        ({"hours": "+1"}, "no such budget"),
    ],
)
def test_what_cannot_be_extended_is_said(earlier, shared, given, said):
    given = {"trials": None, "hours": None, "seeds": (), "top": None} | given
    with pytest.raises(SpecError, match=said):
        studies_commands.extend("earlier", shared, **given)


def test_a_race_cut_off_and_resumed_runs_what_an_uninterrupted_one_would(shared, tmp_path):
    def study(name: str) -> Path:
        return write_study(
            tmp_path,
            name=name,
            design="grid",
            budget="{}",
            seeds="{model: [1, 2, 3, 4, 5]}",
            lr="{choice: [3e-3, 1e-1]}",
            variants={"rmt": {"model.memory.main": {"type": "rmt", "num_tokens": 2},
                              "model.segment_length": 16}},
        )  # fmt: skip

    race = "study.racing=true"
    log = Log()
    whole = run(study("race"), shared, overrides=[race], on_event=log)
    assert [(t["params"]["lr"], t["spec"]["study"]["seeds"]["model"]) for t in whole.trials] == [
        (0.003, 1), (0.1, 1), (0.003, 2), (0.1, 2), (0.003, 3), (0.1, 3), (0.003, 4), (0.003, 5),
    ]  # fmt: skip
    assert "racing: the point of trial 1 gets no more seeds" in log.notices()
    (dropped,) = show_study("race", shared)["racing"]
    assert (dropped["params"], dropped["trials"]) == ({"lr": 0.1}, [1, 3, 5])
    cut = run(study("cut"), shared, overrides=[race, "study.budget.trials=6"])
    assert len(cut.trials) == 6
    resumed = resume_study("cut", storage=shared, overrides=["study.budget.trials=99"])
    assert points(resumed) == points(whole)
    assert [t["metrics"] for t in resumed.trials] == [t["metrics"] for t in whole.trials]


def test_a_trial_stops_that_others_beat_in_every_objective(shared, tmp_path):
    file = write_study(
        tmp_path,
        name="dominated",
        design="grid",
        variants={"rmt": {"model.memory.main": {"type": "rmt", "num_tokens": 2}}},
        objective="{eval/kv/exact_match: maximize, cost/state_bytes: minimize}",
        pruner="{type: domination, after: 20%, by: 1}",
        question={"reports": 6, "seconds": 2.4},
        lr="{choice: [0.003, 0.1]}",
        budget="{}",
    )
    result = run(file, shared, overrides=["vars.segment_length={choice: [64, 32]}"])
    states = {(t["params"]["segment_length"], t["params"]["lr"]): t["state"] for t in result.trials}
    assert states == {
        (64, 0.003): "complete",
        (64, 0.1): "pruned",
        (32, 0.003): "complete",
        (32, 0.1): "pruned",
    }
    last = [trial.last_step for trial in trials_in_optuna(shared, "dominated")]
    assert last == [None] * 4  # Optuna has no report of its own


def test_a_study_ends_with_its_flops_or_its_hours(shared, tmp_path):
    file = write_study(tmp_path, name="spent", budget="{flops: 3e6, trials: 50}")
    assert len(run(file, shared).trials) == 3
    more = ["study.budget.flops=1e12", "study.budget.hours=1s"]
    assert len(resume_study("spent", storage=shared, overrides=more).trials) == 3
    with pytest.raises(SpecError, match="is used up: give --hours"):
        studies_commands.extend("spent", shared, trials="+1", hours=None, seeds=(), top=None)


def test_equal_specs_are_run_again_where_that_is_asked_for(shared, tmp_path):
    same = {"model.memory": {}, "model.segment_length": 16}
    file = write_study(
        tmp_path, name="repeat", design="all", budget="{}", variants={"a": same, "b": same}
    )
    result = run(file, shared, overrides=["study.repeat=true"])
    assert [trial["reason"] for trial in result.trials] == ["", ""]
    folder = find_study(shared, "repeat")
    assert all((folder.trial(n).path / "result.json").exists() for n in (0, 1))


def test_two_studies_and_two_trials_are_compared(earlier, shared, tmp_path):
    file = write_study(
        tmp_path, name="changed", budget="{trials: 4}", lr="{float: [1e-3, 1e-1], log: true}"
    )
    run(file, shared, overrides=["train.clip=0.5"])
    document = studies_commands.diff("earlier", "changed", shared)
    found = {row["path"]: (row["old"], row["new"]) for row in document["settings"]}
    assert found["train.clip"] == (1.0, 0.5)
    assert found["search.lr.float"] == ([1e-4, 1e-1], [1e-3, 1e-1])
    assert found["study.budget.trials"][1] == 4
    assert not [path for path in found if path.startswith(("task", "model", "variants"))]
    assert {row["variant"] for row in document["results"]} == {"none", "rmt", "deltanet"}
    trials = studies_commands.diff("earlier/0", "changed/0", shared)
    changed = {row["path"] for row in trials["settings"]}
    assert {"train.clip", "train.lr", "vars.lr"} <= changed
    assert KV in {row["metric"] for row in trials["results"]}
    with pytest.raises(SpecError, match="give two of one kind"):
        studies_commands.diff("earlier", "changed/0", shared)
