"""The servers that other tests ask are real, and come back with what they held."""

from __future__ import annotations


def test_postgres_keeps_what_it_holds_over_a_restart(postgres):
    name = postgres.new_database().rpartition("/")[2]
    postgres.execute("CREATE TABLE seen (what text)", name)
    postgres.execute("INSERT INTO seen VALUES ('before')", name)
    before = postgres.pid
    postgres.restart()
    assert postgres.pid != before
    assert postgres.execute("SELECT what FROM seen", name) == [("before",)]


def test_mlflow_keeps_what_it_holds_over_a_kill(mlflow_server):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_server.url)
    experiment = client.create_experiment("kept")
    run = client.create_run(experiment).info.run_id
    client.log_metric(run, "score", 0.5)
    mlflow_server.restart()
    assert client.get_run(run).data.metrics == {"score": 0.5}
