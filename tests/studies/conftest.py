"""One local Ray for all tests that run studies in this process, and the servers that they ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import mlflow_server, mlflow_server_of_session, postgres, postgres_server

__all__ = ["mlflow_server", "mlflow_server_of_session", "postgres", "postgres_server"]


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    import ray

    from memarch.studies.cluster.cluster import start_ray

    started = start_ray(None)
    yield
    if started:
        ray.shutdown()


@pytest.fixture
def without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look elsewhere: no process mirrors their studies, which takes seconds each."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")


@pytest.fixture(scope="module")
def module_without_mlflow() -> Iterator[None]:
    """The same for a module with the studies that its tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "off")
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order: the same numbers from one run to the next."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
