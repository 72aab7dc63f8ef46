"""Ray: started on this machine, or the cluster that a study joins."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import ray

from memarch.components.errors import SpecError
from memarch.studies.records.store import Json


def _use_token() -> None:
    """Clusters are started with token authentication where the user has a token: join likewise."""
    with contextlib.suppress(ImportError):
        from ray._private.authentication import authentication_token_setup as setup

        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def beside_the_driver() -> Any:
    """Where actors are placed that end with the driver, and not before."""
    here = ray.get_runtime_context().get_node_id()
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)


def start_ray(address: str | None, runtime_env: Json | None = None) -> bool:
    """Join the cluster at this address, or start Ray here; whether this call started it."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray prints a worker's death to stdout, where a command's JSON goes; the driver says it itself.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    quiet: Json = {"logging_level": "error", "log_to_driver": False}
    if address:
        _use_token()
        try:
            ray.init(address=address, runtime_env=runtime_env, **quiet)
        except (ConnectionError, ray.exceptions.RayError) as error:
            raise SpecError(
                f"cannot join a Ray cluster at {address}: {error}; does it run, and do "
                "RAY_AUTH_MODE and the token (~/.ray/auth_token) agree with it?",
                path="--address",
            ) from None
    else:
        ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            object_store_memory=100 * 2**20,  # only specs and scores travel
            **quiet,
        )
    return True
