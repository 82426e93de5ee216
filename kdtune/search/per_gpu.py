"""How many trials share a GPU: `resources.trials_per_gpu`, and what `auto` finds before a search starts.

slots = share_gpus(folder, experiment, materials, slots, say)       # with Ray running

One GPU is asked for and given to 1, 2, 4, ... processes, each with a piece of the heaviest trial of the experiment.
Small students leave a GPU waiting for the next kernel most of the time; how much of it others can use is measured.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from kdtune.experiment import Experiment
from kdtune.experiment.chain import configurations
from kdtune.models import count_parameters, rebuild_model
from kdtune.records import read_object, write_text
from kdtune.search.crew import ARRIVES_S
from kdtune.search.placing import Slots, place
from kdtune.search.session import nodes
from kdtune.trial import Materials
from kdtune.trial.together import Together, best_of, epochs_of, rates_of

FOUND = "trials_per_gpu.json"  # in the run folder
MOST = 8
PIECE = 64  # batches of a piece
LONG = 1000  # epochs, more than will be asked for


def share_gpus(
    folder: Path, experiment: Experiment, materials: Materials, slots: Slots, say: Callable[[str], None]
) -> Slots:
    """The slots with as many trials a GPU as train fastest together, where that is to be found out.

    What was found stays with the run `folder`: it goes on as it began. Where it cannot be tried, which is said, one
    trial has a GPU.
    """
    if experiment.resources.trials_per_gpu != "auto" or not slots.gpus:
        return slots
    path = folder / FOUND
    if not path.exists():
        say("trying how many trials share a GPU")
        rates = _tried(heaviest_of(experiment, materials), materials, slots, say)
        if not rates:
            return slots
        gains = {str(number): rate / rates[1] for number, rate in rates.items()}
        write_text(path, json.dumps({"trials_per_gpu": best_of(rates), "epochs_over_one": gains}, indent=2))
    found = read_object(path)
    number = found["trials_per_gpu"]
    told = ", ".join(f"{one} give {gain:.2g}x" for one, gain in found["epochs_over_one"].items())
    say(f"{number} to a GPU; of the epochs of one, {told}")
    return place(experiment.resources.model_copy(update={"trials_per_gpu": number}), nodes())


def _tried(experiment: Experiment, materials: Materials, slots: Slots, say: Callable[[str], None]) -> dict[int, float]:
    """What `rates_of` gives on one GPU of the cluster; nothing where that fails, and then it is said why."""
    most = _most(slots)
    probe: Any = ray.remote(num_cpus=most * slots.cpus, num_gpus=1, max_retries=0)(_probe)
    task = probe.remote(experiment, ray.put(materials), slots.device, slots.threads, most)
    try:
        if ray.wait([task], timeout=ARRIVES_S)[0]:
            rates: dict[int, float] = ray.get(task)
            return rates
        ray.cancel(task, force=True)
        reason = f"no GPU was free with {most * slots.cpus:g} cores beside it"
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
    say(f"that could not be tried ({reason}); one trial has a GPU, or as many as resources.trials_per_gpu says")
    return {}


def _most(slots: Slots) -> int:
    """Trials for which a node has cores beside one of its GPUs; of nodes that differ, those with the fewest."""
    fits = [int(node.cpus / node.gpus / slots.cpus + 1e-9) for node in nodes() if node.gpus and node.cpus >= slots.cpus]
    return max(1, min(MOST, *fits))


def heaviest_of(experiment: Experiment, materials: Materials) -> Experiment:
    """A trial that needs a live teacher, if there are any; of those, one of the largest student and batches."""
    dataset = materials.dataset

    def weight(one: Experiment) -> tuple[bool, int, int]:
        network = rebuild_model(one.student.model, dataset.shape, len(dataset.classes), one.student.options)
        return not one.distill.feature_weight.is_zero, count_parameters(network), one.train.batch_size

    return max(configurations(experiment), key=weight)


def _probe(
    experiment: Experiment, materials: Materials, device: torch.device, threads: int, most: int
) -> dict[int, float]:
    """In a process that holds a whole GPU, which those that it starts use."""
    # at a rate of 0 no corner of a search diverges
    still = {"epochs": LONG, "learning_rate": 0.0, "schedule": "constant", "warmup": 0.0}
    train = experiment.train.model_copy(update=still)
    data = experiment.data.model_copy(update={"views": 1})  # column 0, which is there
    whole = materials.dataset
    some = _spread(whole.fit, PIECE * train.batch_size)
    few = _spread(whole.validation, max(1, len(some) * len(whole.validation) // len(whole.fit)))
    piece = replace(materials, dataset=replace(whole, fit=some, validation=few))
    one = experiment.model_copy(update={"train": train, "data": data})
    with Together(partial(epochs_of, one, piece, device, threads=threads)) as trials:
        return rates_of(trials, most)


def _spread(indices: Tensor, count: int) -> Tensor:
    """As many, evenly: data sets are often sorted by class."""
    count = min(count, len(indices))
    return indices[torch.arange(count) * len(indices) // count]
