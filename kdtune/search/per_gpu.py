"""How many trials share a GPU: `resources.trials_per_gpu`, and what `auto` finds before a search starts.

slots = share_gpus(experiment, materials, slots, say)       # with Ray running

One GPU is asked for and given to 1, 2, 4, ... processes, each with a piece of the heaviest trial of the experiment.
Small students leave a GPU waiting for the next kernel most of the time; how much of it others can use is measured.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import torch

from kdtune.errors import RunError
from kdtune.experiment import Experiment
from kdtune.experiment.chain import configurations
from kdtune.models import count_parameters, rebuild_model
from kdtune.search.placing import Slots, place
from kdtune.search.session import nodes
from kdtune.trial import Materials
from kdtune.trial.together import Together, best_number, epochs_of

MOST = 8
PIECE = 64  # batches of a piece
LONG = 1000  # epochs, more than will be asked for


def share_gpus(experiment: Experiment, materials: Materials, slots: Slots, say: Callable[[str], None]) -> Slots:
    """The slots with as many trials a GPU as train fastest together, where that is to be found out."""
    if experiment.resources.trials_per_gpu != "auto" or not slots.gpus:
        return slots
    most = _most(slots)
    probe: Any = ray.remote(num_cpus=most * slots.cpus, num_gpus=1, max_retries=0)(_probe)
    heaviest = heaviest_of(experiment, materials)
    try:
        rates = ray.get(probe.remote(heaviest, ray.put(materials), slots.device, slots.threads, most))
    except ray.exceptions.RayError as error:
        raise RunError(
            f"trying how many trials share a GPU failed: {error}\nGive their number (resources.trials_per_gpu: 1)"
        ) from error
    number = max(rates, key=lambda one: rates[one])
    told = ", ".join(f"{one} give {rate / rates[1]:.2g}x" for one, rate in rates.items())
    say(f"{number} trials share a GPU, tried with {told} the epochs of one")
    return place(experiment.resources.model_copy(update={"trials_per_gpu": number}), nodes())


def _most(slots: Slots) -> int:
    """Trials for which a node has cores beside one of its GPUs; of nodes that differ, those with the fewest."""
    fits = [int(node.cpus / node.gpus / slots.cpus + 1e-9) for node in nodes() if node.gpus]
    return max(1, min(MOST, *fits))


def heaviest_of(experiment: Experiment, materials: Materials) -> Experiment:
    """A trial that needs a live teacher, if there are any; among those, the one with the largest student."""
    dataset = materials.dataset

    def weight(one: Experiment) -> tuple[bool, int]:
        network = rebuild_model(one.student.model, dataset.shape, len(dataset.classes), one.student.options)
        return not one.distill.feature_weight.is_zero, count_parameters(network)

    return max(configurations(experiment), key=weight)


def _probe(
    experiment: Experiment, materials: Materials, device: torch.device, threads: int, most: int
) -> dict[int, float]:
    """In a process that holds a whole GPU, which those that it starts use."""
    train = experiment.train.model_copy(update={"epochs": LONG})
    data = experiment.data.model_copy(update={"views": 1})  # column 0, which is there
    whole = materials.dataset
    some = whole.fit[: PIECE * train.batch_size]
    few = whole.validation[: max(1, len(some) * len(whole.validation) // len(whole.fit))]
    piece = replace(materials, dataset=replace(whole, fit=some, validation=few))
    one = experiment.model_copy(update={"train": train, "data": data})
    with Together(partial(epochs_of, one, piece, device, threads=threads)) as trials:
        return best_number(trials, most)
