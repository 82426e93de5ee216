"""Ray on this machine: started for one search, and gone afterwards.

with session(experiment.resources) as slots: ...     # slots.concurrent trials fit at once
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from kdtune.errors import RunError
from kdtune.experiment import Resources
from kdtune.search.placing import Node, Slots, place
from kdtune.training import usable_gpus

NODES = "KDTUNE_NODES"  # [{"cpus": 8, "gpus": 1, "count": 4}, ...]: all nodes, as many as there may come to be
LOCAL = "local"  # an address: Ray started here for one search; any other is a cluster that is running

# Ours to set before Ray starts; a value that the user has set stays.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # a local tool does not phone home unasked
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials.jsonl is the record; CSV, JSON and TensorBoard cost time
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
# On a cluster its workers get all of it from here: they were not started by this process.
ON_CLUSTER = {
    "OMP_WAIT_POLICY": "PASSIVE",  # as `kdtune.cli` sets it here
}


@contextmanager
def session(resources: Resources, address: str = LOCAL) -> Iterator[Slots]:
    """Starts Ray here, or joins the cluster at `address`, unless this process is connected already; leaves it again."""
    settings = ENVIRONMENT if address == LOCAL else ENVIRONMENT | ON_CLUSTER
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    started = not ray.is_initialized()
    if started:
        # a group whose trial is killed is cleared away by Ray Train, which asks the dashboard whether it is alive
        groups = resources.workers_per_trial > 1
        own: dict[str, Any] = {"num_gpus": usable_gpus(), "include_dashboard": groups}
        if address != LOCAL:
            os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")  # a job may set the same ones: they are here
            own = {"runtime_env": {"env_vars": {name: os.environ[name] for name in settings}}}
        _connect(address, own)
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are told by the recorder, once
    try:
        yield place(resources, nodes())
    finally:
        if started:
            ray.shutdown()


def _connect(address: str, own: dict[str, Any]) -> None:
    """Raises RunError where no cluster answers at the address."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **own)
    except ray.exceptions.AuthenticationError as error:
        raise RunError(
            f"the Ray cluster at {address!r} asks for a token: {error}\nSet RAY_AUTH_MODE=token and put the cluster's "
            f"token in ~/.ray/auth_token"
        ) from error
    except ConnectionError as error:
        raise RunError(
            f"no Ray cluster answers at {address!r}: {error}. Start one (`ray start --head`, `ray up cluster.yaml`), "
            f"or search on this machine (--local)"
        ) from error


def nodes() -> list[Node]:
    """The machines that are there, and those that KDTUNE_NODES says the cluster may grow to instead of them."""
    growing = os.environ.get(NODES)
    if growing:
        try:
            return [Node(**node) for node in json.loads(growing)]
        except (ValueError, TypeError) as error:
            raise RunError(
                f"{NODES} is {growing!r}: expected all nodes that there may be, as "
                '[{"cpus": 8, "gpus": 1, "count": 4}]'
            ) from error
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return [Node(there.get("CPU", 0.0), there.get("GPU", 0.0)) for there in alive]
