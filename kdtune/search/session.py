"""Ray on this machine: started for one search, and gone afterwards.

with session(experiment.resources) as slots: ...     # slots.concurrent trials fit at once
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
import torch

from kdtune.errors import RunError
from kdtune.experiment import Resources

# Ours to set before Ray starts; a value that the user has set stays.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # a local tool does not phone home unasked
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials.jsonl is the record; CSV, JSON and TensorBoard cost time
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Slots:
    """What one trial holds, and how many fit at once."""

    cpus: float
    gpus: float
    concurrent: int

    @property
    def request(self) -> dict[str, float]:
        return {"cpu": self.cpus, "gpu": self.gpus}

    @property
    def device(self) -> torch.device:
        """Asked for, not found: a trial without a GPU must not creep onto one that others have asked for."""
        return torch.device("cuda" if self.gpus else "cpu")

    @property
    def threads(self) -> int:
        """Threads for one trial's share of the cores: two trials on two cores must not fight over four."""
        return max(1, int(self.cpus))


@contextmanager
def session(resources: Resources) -> Iterator[Slots]:
    """Starts Ray here unless this process is connected already; stops what it started."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    started = not ray.is_initialized()
    if started:
        ray.init(
            address="local",
            num_gpus=torch.cuda.device_count(),  # what this torch can use, not what the machine has
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are told by the recorder, once
    try:
        yield place(resources, ray.cluster_resources())  # type: ignore[no-untyped-call]
    finally:
        if started:
            ray.shutdown()


def place(resources: Resources, available: dict[str, float]) -> Slots:
    """How trials fit. Raises RunError where not even one does, saying what is asked and what there is."""
    cpus, all_cpus, all_gpus = resources.cpus_per_worker, available.get("CPU", 0.0), available.get("GPU", 0.0)
    gpus = (1.0 if all_gpus else 0.0) if resources.gpus_per_worker == "auto" else resources.gpus_per_worker
    if cpus > all_cpus or gpus > all_gpus:
        raise RunError(
            f"a trial asks for {cpus:g} CPUs and {gpus:g} GPUs; there are {all_cpus:g} CPUs and "
            f"{all_gpus:g} GPUs. Lower resources.cpus_per_worker or resources.gpus_per_worker"
        )
    fits = [int(all_cpus / cpus + 1e-9)]
    if gpus:
        fits.append(int(1 / gpus + 1e-9) * int(all_gpus))  # a trial's fraction lies within one GPU
    return Slots(cpus, gpus, max(1, min(fits)))
