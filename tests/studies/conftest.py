"""One local Ray for all tests that run studies in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    import ray

    from memarch.studies.workers import start_ray

    started = start_ray(None)
    yield
    if started:
        ray.shutdown()
