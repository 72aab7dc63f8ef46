"""Where studies are kept, and that servers which go away and come back cost nothing."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from agreement import assert_records_agree
from driver_study import run, write_study

from memarch import cli
from memarch.components.errors import SpecError
from memarch.studies.driver import events
from memarch.studies.driver.sessions import resume_study
from memarch.studies.records.database import chosen_database, open_database, without_password
from memarch.studies.records.store import StudyFolder

QUICK: dict[str, Any] = {"cpus": 1, "budget": "{trials: 8}", "question": {"seconds": 0.4}}


class At:
    """Does something when so many trials are finished; keeps what people would read."""

    def __init__(self, **actions: Any) -> None:
        self.actions = {int(name.removeprefix("after_")): act for name, act in actions.items()}
        self.finished, self.notices = 0, ""

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.Notice):
            self.notices += f"{event.message}\n"
        elif isinstance(event, events.TrialFinished):
            self.finished += 1
            for act in self.actions.pop(self.finished, ()):
                act()


def test_databases_and_servers_may_restart_while_trials_run(
    local_ray, postgres, mlflow_server, tmp_path, monkeypatch
):
    url, storage = postgres.new_database(), tmp_path / "runs"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    file = write_study(tmp_path, name="restarts", **QUICK | {"budget": "{trials: 12}"})
    watch = At(
        after_3=[postgres.stop, mlflow_server.kill],
        after_9=[postgres.start, lambda: mlflow_server.start(wait=False)],
    )
    result = run(file, storage, database=url, on_event=watch)

    # Trials went on while nothing could be written: the servers were away for six of them.
    assert [trial["state"] for trial in result.trials] == ["complete"] * 12
    assert watch.notices.count("Optuna's database does not answer") == 1
    assert watch.notices.count("Optuna's database answers again") == 1
    assert watch.notices.count("is logged when it answers") == 1
    assert watch.notices.count("MLflow answers again") == 1
    agree = {"optuna_url": url, "mlflow_uri": mlflow_server.url}
    assert_records_agree(storage, "restarts", **agree)
    assert not (storage / "optuna.db").exists()

    # The study knows where it is.
    again = resume_study("restarts", storage=storage, overrides=["study.budget.trials=14"])
    assert len(again.trials) == 14
    assert_records_agree(storage, "restarts", **agree)


def test_a_server_that_comes_late_gets_everything(local_ray, mlflow_server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    mlflow_server.kill()
    file = write_study(tmp_path, name="late", **QUICK)
    watch = At(after_2=[lambda: mlflow_server.start(wait=False)])
    run(file, tmp_path / "runs", on_event=watch)
    assert "MLflow answers again" in watch.notices
    assert_records_agree(tmp_path / "runs", "late", mlflow_uri=mlflow_server.url)


def test_without_mlflow_and_in_a_journal(local_ray, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    url = f"journal:///{tmp_path}/record/optuna.journal"
    file = write_study(tmp_path, name="journal", **QUICK | {"question": {}})
    storage = tmp_path / "runs"
    result = run(file, storage, database=url)
    assert {path.name for path in storage.iterdir()} == {"studies"}
    database = open_database(url, storage)
    (study,) = database.get_all_studies()
    told = database.get_all_trials(study._study_id)
    assert [trial.values for trial in told] == [
        [trial["metrics"]["eval/kv/exact_match"]] for trial in result.trials
    ]
    # What was not logged is, by `resume`, where MLflow is on again.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    resume_study("journal", storage=storage)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("journal")
    assert len(client.search_runs([experiment.experiment_id])) == 9


def test_what_the_database_lacks_is_made_from_the_records(local_ray, tmp_path):
    storage = tmp_path / "runs"
    file = write_study(tmp_path, name="behind", **QUICK | {"sampler": "tpe"})

    def keep() -> None:
        """What a driver leaves that is killed before it has written the latest trials."""
        shutil.copytree(storage, tmp_path / "copy", ignore=shutil.ignore_patterns("*lease*", ".*"))

    run(file, storage, on_event=At(after_1=[keep]))
    for database in tmp_path.glob("copy/optuna.db*"):
        shutil.copy(database, storage / database.name)
    for leftover in set(storage.glob("optuna.db-*")):
        if not (tmp_path / "copy" / leftover.name).exists():
            leftover.unlink()
    result = resume_study("behind", storage=storage, overrides=["study.budget.trials=10"])
    assert [trial["state"] for trial in result.trials] == ["complete"] * 10
    assert_records_agree(storage, "behind")


@pytest.mark.parametrize(
    ("option", "url", "message"),
    [
        ("--database", "postgres://127.0.0.1:9/none", "no connection to postgres://127.0.0.1:9"),
        ("--database", "mysql://host/name", "'mysql://host/name' is no database"),
        ("--database", "jurnal:///a", "did you mean 'journal'"),
        ("--database", "journal:////proc/none/a", "cannot be written"),
        ("--artifacts", "nothing://bucket", "nothing://bucket cannot be written to: Protocol not"),
        ("--artifacts", "file:///proc/none", "file:///proc/none cannot be written to"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_line_and_leaves_nothing(
    option, url, message, tmp_path, capsys
):
    file = write_study(tmp_path, name="nowhere")
    storage = tmp_path / "runs"
    code = cli.run(["study", "run", str(file), "--storage", str(storage), option, url])
    error = capsys.readouterr().err
    assert code == 2, error
    assert f"error: {option}: " in error
    assert message in error
    assert not storage.exists()


def test_passwords_are_used_and_not_written(monkeypatch):
    url = "postgresql://ada:secret@db:5432/studies"
    assert without_password(url) == "postgresql://ada@db:5432/studies"
    monkeypatch.setenv("MEMARCH_DATABASE", url)
    assert chosen_database(None, None, began=False) == url
    # A study stays where it began; the environment has the password.
    assert chosen_database(None, "postgresql://ada@db:5432/studies", began=True) == url
    assert chosen_database(None, None, began=True) is None
    assert chosen_database("journal:///a", None, began=False) == "journal:///a"


@pytest.mark.usefixtures("without_mlflow")
def test_a_database_that_is_away_when_a_study_resumes_is_an_error(postgres, local_ray, tmp_path):
    url, storage = postgres.new_database(), tmp_path / "runs"
    run(
        write_study(tmp_path, name="gone", **QUICK | {"budget": "{trials: 2}"}),
        storage,
        database=url,
    )
    before = StudyFolder(storage, "gone").info
    postgres.stop()
    with pytest.raises(SpecError, match="no connection to postgresql://"):
        resume_study("gone", storage=storage, overrides=["study.budget.trials=4"])
    assert StudyFolder(storage, "gone").info == before
    postgres.start()
    assert len(resume_study("gone", storage=storage).trials) == 2


def test_studies_of_one_name_in_one_database_stay_apart(postgres, local_ray, tmp_path):
    url = postgres.new_database()
    for place in ("here", "there"):
        file = write_study(tmp_path / place, name="twin", **QUICK | {"budget": "{trials: 2}"})
        run(file, tmp_path / place / "runs", database=url)
    for place in ("here", "there"):
        assert_records_agree(tmp_path / place / "runs", "twin", optuna_url=url)
