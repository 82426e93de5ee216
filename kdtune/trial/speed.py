"""How fast this machine's device is at an experiment: seconds of measuring instead of hours of guessing.

speed = measure(experiment, dataset, network, device)      # dataset on the device
print(speed.answered, speed.cached, speed.live)            # images a second

Images are read as they will be, views and decoding included. Nothing is kept: a network's speed does not depend on its
weights, so that a teacher that has yet to be trained can be measured.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor, nn

from kdtune.cache import Answers, Speed
from kdtune.data import Batch, Dataset
from kdtune.distill import Live, TeacherAnswers, logit_student
from kdtune.experiment import Experiment, textbook
from kdtune.models import Tapped, rebuild_model
from kdtune.teacher import Ensemble
from kdtune.training import evaluation_batch, train

LONG_ENOUGH_S = 0.4  # what lasts shorter is measured on more images
PATIENCE_S = 2.0  # what has been measured for so long is not measured once more
REPEATS = 3
FIRST_IMAGES = 64
REMEMBERED = 4096  # images whose answers stand in for those of a whole column


class Remembered:
    """Answers out of a table, as from a cache whose column is at hand."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.table = torch.zeros(REMEMBERED, classes, dtype=torch.float16, device=device)

    def begin_epoch(self, column: int) -> None:
        """There is nothing to prepare."""

    def __call__(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.table[batch.indices % REMEMBERED].float(), ()


def measure(experiment: Experiment, dataset: Dataset, network: nn.Module, device: torch.device) -> Speed:
    """Of the experiment's student with the teacher `network`; `dataset` on the device."""
    answers = Answers(lambda: network, dataset, experiment.data)
    cached = Remembered(len(dataset.classes), device)
    size, unit = experiment.train.batch_size, min(FIRST_IMAGES, evaluation_batch(dataset))
    answered = images_a_second(lambda count: _answering(answers, count, device), unit)
    with _threads(max(1, int(experiment.resources.cpus_per_worker))):
        alone = images_a_second(_training(experiment, dataset, cached, device), size)
        together = images_a_second(_training(experiment, dataset, Live(Tapped(network, ())), device), size)
    # on a busy machine the slower way may have had the better time
    return Speed(answered, cached=alone, live=min(alone, together))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many threads as a trial of a search has, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def untrained(experiment: Experiment, name: str, dataset: Dataset, device: torch.device) -> nn.Module:
    """A network of the architecture of the teacher `name`, in eval mode and frozen."""

    def build(name: str) -> nn.Module:
        config = experiment.all_teachers[name]
        if config.ensemble:
            return Ensemble([build(member) for member in config.ensemble])
        return rebuild_model(str(config.model), dataset.shape, len(dataset.classes), config.options)

    return build(name).to(device).eval().requires_grad_(requires_grad=False)


def images_a_second(work: Callable[[int], float], unit: int) -> float:
    """Of `work(count)`, which works on so many images and gives the seconds; `count` is a multiple of `unit`."""
    count, seconds = unit, work(unit)
    if seconds >= PATIENCE_S:
        return count / seconds
    seconds = work(unit)  # the first time allocated memory, chose kernels, imported what is needed
    while seconds < LONG_ENOUGH_S:
        count *= min(16, max(2, int(LONG_ENOUGH_S / max(seconds, 1e-6))))
        seconds = work(count)
    times = [seconds]
    while len(times) < REPEATS and sum(times) < PATIENCE_S:
        times.append(work(count))
    return count / median(times)


def _answering(answers: Answers, count: int, device: torch.device) -> float:
    """Seconds in which the teacher answers to `count` images, as it does when a column is computed."""
    began = time.perf_counter()
    for _ in answers.to(0, torch.arange(count, device=device) % len(answers.dataset.labels)):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _training(
    experiment: Experiment, dataset: Dataset, answers: TeacherAnswers, device: torch.device
) -> Callable[[int], float]:
    """Trains a student on so many images, measures it on the share of validation images that goes with them."""
    one = experiment if experiment.distill.feature_weight.is_zero else textbook(experiment)
    student = logit_student(one, dataset, answers, 0, device)
    config = one.train.model_copy(update={"epochs": 1})
    share = len(dataset.validation) / len(dataset.fit)

    def work(count: int) -> float:
        student.state.epoch = 0
        some = replace(dataset, validation=_repeated(dataset.validation, max(1, round(count * share))))
        indices = _repeated(dataset.fit, count)
        records = train(
            student.state, student.objective, some, one.data, config, indices, seed=0, views=1, validate=True
        )
        return next(records).seconds

    return work


def _repeated(indices: Tensor, count: int) -> Tensor:
    return indices[torch.arange(count, device=indices.device) % len(indices)]
