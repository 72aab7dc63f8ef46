"""What every test shares: one thread, no network, fixed seeds, a storage of its own."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch, transformers, ray and mlflow are imported anywhere: they read these once.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="1",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    COLUMNS="120",
    NO_COLOR="1",
)
# Kernels run in Triton's interpreter; TRITON_INTERPRET=0 runs their tests on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Orders of execution measured here are forgotten afterwards; all workers share them.
os.environ.setdefault("MEMARCH_CACHE", tempfile.mkdtemp(prefix="memarch-cache-"))
for name in ("MEMARCH_STORAGE", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS"):
    os.environ.pop(name, None)

REPOSITORY = Path(__file__).resolve().parent.parent

try:
    from hypothesis import settings
except ImportError:  # only some tests draw examples
    pass
else:
    settings.register_profile("memarch", deadline=None, derandomize=True, database=None)
    settings.load_profile("memarch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that run studies, which take long, come first: then no core is idle at the end."""
    long = {item.path for item in items if "local_ray" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu`, with the reason, where there is no CUDA device."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The same random numbers in a test whichever tests ran before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.manual_seed(0)
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    """A plugin that a test loads is unknown again in the next one."""

    def loaded() -> set[str]:
        plugins = sys.modules.get("memarch.components.plugins")
        return set(plugins._registered) if plugins else set()

    before = loaded()
    yield
    for name in loaded() - before:
        sys.modules["memarch.components.plugins"]._forget(name)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds arch/, components/, ..."""
    return REPOSITORY


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty storage folder, which the command line takes by default."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("MEMARCH_STORAGE", str(folder))
    return folder
