"""Whether an experiment is likely to be what its author means, before money is spent on it.

    for check in examine(experiment, dataset, device): print(check.outcome, check.name, check.found, check.advice)

Nothing is trained, written or kept, and the test set is not read: teachers that are there already, or that are brought
along, are asked about validation images. A bad student is mostly a teacher that sees images normalised otherwise than
it was trained with, or whose classes stand in another order: both are tried.
"""

import importlib.util
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from kdtune.data import Dataset
from kdtune.distill.taps import shapes_of
from kdtune.errors import KdtuneError, TeacherError
from kdtune.experiment import Experiment
from kdtune.experiment.chain import configurations
from kdtune.experiment.networks import INLINE
from kdtune.models import rebuild_model
from kdtune.teacher import Teacher, fit_weights, read_weights
from kdtune.training import autocast, evaluate, free_memory, new_state, precision_of
from kdtune.trial.forecast import Forecast, forecasts
from kdtune.trial.materials import check_networks
from kdtune.trial.teachers import kept_already

Outcome = Literal["ok", "warning", "problem"]
MOST_IMAGES = 2000  # validation images that a teacher is asked about each time
SURE = 3.0  # standard errors by which another reading of the images or classes must do better, and
BETTER = 0.03  # this much
CHANCES = 2.0  # times chance that a teacher has to reach
TOO_FULL = 0.9  # of a disk or of a GPU's memory
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PACKAGES = {"mlflow": ("mlflow",), "wandb": ("wandb",), "tensorboard": ("tensorboardX",)}
OF_OPTUNA = {"cmaes": ("optuna", "cmaes")}


@dataclass(frozen=True)
class Check:
    name: str
    outcome: Outcome
    found: str
    advice: str = ""


def examine(experiment: Experiment, dataset: Dataset, device: torch.device) -> Iterator[Check]:
    """Every check as it is done; `dataset` on the device."""
    yield packages(experiment)
    fits = networks(experiment, dataset)
    yield fits
    if fits.outcome == "problem":
        return
    yield from teachers(experiment, dataset, device)
    yield memory(experiment, dataset, device)
    try:
        for forecast in forecasts(experiment, dataset, device):
            yield from costs(forecast)
    except torch.OutOfMemoryError:
        yield Check("cache and time", "problem", "not measured: a step does not fit on this GPU", "mend that first")
    except KdtuneError as error:
        yield Check("cache and time", "problem", str(error), "mend that first")


def packages(experiment: Experiment) -> Check:
    """What the experiment asks for besides kdtune's own dependencies."""
    wanted = [package for tool in experiment.tracking for package in PACKAGES[tool]]
    if experiment.search.sampler == "optuna":
        wanted += OF_OPTUNA.get(experiment.search.optuna_sampler or "", ("optuna",))
    models = [one.student.model for one in configurations(experiment)]
    models += [teacher.model or "" for teacher in experiment.all_teachers.values()]
    wanted += ["timm"] if any(model.startswith("timm:") for model in models) else []
    missing = [package for package in dict.fromkeys(wanted) if importlib.util.find_spec(package) is None]
    if missing:
        names = ["mlflow-skinny" if package == "mlflow" else package for package in missing]
        return Check("packages", "problem", f"missing: {', '.join(missing)}", f"pip install {' '.join(names)}")
    return Check("packages", "ok", "all there")


def networks(experiment: Experiment, dataset: Dataset) -> Check:
    """Whether the models can be built for the images, and the shapes of what a feature loss would compare."""
    try:
        check_networks(experiment, dataset)
    except KdtuneError as error:
        return Check("networks", "problem", str(error), "change what is named there")
    teacher = experiment.own_teacher
    if teacher.model is None:
        return Check("networks", "ok", f"{experiment.student.model} fits the images")
    shape, classes = dataset.shape, len(dataset.classes)
    mine, theirs = shapes_of(experiment.student, shape, classes), shapes_of(teacher, shape, classes)
    told = "; ".join(
        f"{name}: {', '.join('x'.join(map(str, one)) for one in shapes.values())}"
        for name, shapes in ((experiment.student.model, mine), (teacher.model, theirs))
    )
    return Check("networks", "ok", f"feature maps of {told}")


def teachers(experiment: Experiment, dataset: Dataset, device: torch.device) -> Iterator[Check]:
    """Accuracy, normalisation and class order of every teacher that is there."""
    kept: dict[str, Teacher] = {}
    with suppress(TeacherError):  # of a checkpoint that does not fit, which is told below
        kept = kept_already(experiment, dataset)
    for name, section in experiment.all_teachers.items():
        if section.model is None:
            continue
        titled = "teacher" if name == INLINE else f"teacher {name}"
        if section.weights is not None:
            try:
                network = rebuild_model(section.model, dataset.shape, len(dataset.classes), section.options)
                fit_weights(network, read_weights(Path(section.weights)), section.weights)
            except TeacherError as error:
                yield Check(titled, "problem", str(error), "give the checkpoint of this model")
                continue
        elif name in kept:
            network = kept[name].load(device)
        else:
            yield Check(titled, "ok", f"{section.model} is trained first, {section.train.epochs} epochs")
            continue
        yield from of_teacher(titled, network.to(device).eval(), dataset)


def of_teacher(name: str, network: nn.Module, dataset: Dataset) -> Iterator[Check]:
    """The three checks of one network, in eval mode, on the device of the data."""
    some = dataset.validation[:: math.ceil(len(dataset.validation) / MOST_IMAGES)]
    labels, chance = dataset.labels[some], 1 / len(dataset.classes)

    def answers(one: nn.Module, data: Dataset) -> Tensor:
        with torch.no_grad():
            return evaluate(one, data, data.images, data.labels, some).predictions

    predicted = answers(network, dataset)
    accuracy = _share(predicted == labels)
    others = {how: answers(one, data) for how, (one, data) in _readings(network, dataset).items()}
    best = max(others, key=lambda how: _share(others[how] == labels))
    reached = _share(others[best] == labels)
    misread = _clearly(reached, accuracy, len(some))
    order = _class_order(others[best] if misread else predicted, labels, dataset)
    learned = accuracy > CHANCES * chance
    yield Check(
        name,
        "ok" if learned else "problem",
        f"{accuracy:.2%} of {len(some)} validation images; chance is {chance:.2%}",
        "" if learned else "see the checks that follow; or these are other weights than those of a trained teacher",
    )
    yield Check(
        "  normalisation",
        "problem" if misread else "ok",
        f"{reached:.2%} with {best}, {accuracy:.2%} with data.mean and data.std as they are"
        if misread
        else "no other common one does better",
        "give data.mean and data.std those that the teacher was trained with" if misread else "",
    )
    yield order


def _readings(network: nn.Module, dataset: Dataset) -> Mapping[str, tuple[nn.Module, Dataset]]:
    """The network and the data as other common ways of feeding images would have them."""
    channels = len(dataset.mean)
    constants: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
        "pixels from 0 to 1 (mean 0, std 1)": ((0.0,) * channels, (1.0,) * channels),
        "pixels from -1 to 1 (mean 0.5, std 0.5)": ((0.5,) * channels, (0.5,) * channels),
        "pixels from 0 to 255 (mean 0, std 1/255)": ((0.0,) * channels, (1 / 255,) * channels),
        "mean and std swapped": (dataset.std, dataset.mean),
    }
    if channels == 3:
        constants["ImageNet's mean and std"] = IMAGENET
    found: dict[str, tuple[nn.Module, Dataset]] = {
        how: (network, replace(dataset, mean=mean, std=std))
        for how, (mean, std) in constants.items()
        if all(value > 0 for value in std)
    }
    if channels == 3:
        turned = replace(dataset, mean=dataset.mean[::-1], std=dataset.std[::-1])
        found["blue, green, red instead of red, green, blue"] = nn.Sequential(_Reversed(), network), dataset
        found["the constants of blue, green, red"] = network, turned
    return found


class _Reversed(nn.Module):
    """Channels the other way round: [B, 3, H, W] in and out."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flip(1)


def _class_order(predicted: Tensor, labels: Tensor, dataset: Dataset) -> Check:
    """Whether renaming the teacher's classes explains its answers: matched on one half of the images, told of the
    other, since the best of so many orders does better by chance alone."""
    count = len(dataset.classes)
    first, second = slice(0, None, 2), slice(1, None, 2)
    table = torch.bincount(labels[first] * count + predicted[first], minlength=count * count).view(count, count)
    rows, columns = linear_sum_assignment(-table.cpu().numpy())
    meant = torch.empty(count, dtype=labels.dtype)
    meant[torch.from_numpy(np.asarray(columns))] = torch.from_numpy(np.asarray(rows))
    plain = _share(predicted[second] == labels[second])
    renamed = _share(meant.to(labels.device)[predicted[second]] == labels[second])
    if not _clearly(renamed, plain, len(labels[second])):
        return Check("  class order", "ok", "no other order explains the answers better")
    moved = [f"{k} is {dataset.classes[int(meant[k])]}" for k in range(count) if int(meant[k]) != k]
    return Check(
        "  class order",
        "problem",
        f"{renamed:.2%} instead of {plain:.2%} with the teacher's classes in another order: its output "
        f"{', '.join(moved[:4])}{', ...' if len(moved) > 4 else ''}",
        "name the data set's folders so that their order is the teacher's, or reorder the rows of its last layer",
    )


def _share(right: Tensor) -> float:
    return right.double().mean().item()


def _clearly(better: float, worse: float, images: int) -> bool:
    error = math.sqrt(max(better * (1 - better), 1 / images) / images)
    return better - worse > max(BETTER, SURE * error)


def memory(experiment: Experiment, dataset: Dataset, device: torch.device) -> Check:
    """Of a step of the largest student that the experiment may train: measured on a GPU, on a CPU only estimated."""
    workers, share = experiment.resources.workers_per_trial, experiment.resources.share_of_a_gpu
    students = {(one.student.model, str(one.student.options)): one for one in configurations(experiment)}
    images = max(2, max(one.train.batch_size for one in students.values()) // workers)
    try:
        needed = max(_step_bytes(one, dataset, images, device) for one in students.values())
    except torch.OutOfMemoryError:
        return Check(
            "GPU memory",
            "problem",
            f"a student's step of {images} images does not fit on this GPU",
            "lower train.batch_size, or choose a smaller student",
        )
    told = f"about {_in_words(needed)} for a student's step of {images} images, without a live teacher"
    if device.type != "cuda":
        return Check("GPU memory", "ok", f"{told}; estimated, since this machine has no GPU to measure it on")
    free_memory()  # what was taken to measure is not taken by others
    free, total = torch.cuda.mem_get_info(device)
    at_once = round(1 / share) if share else 1
    fits = needed * at_once < TOO_FULL * free
    return Check(
        "GPU memory",
        "ok" if fits else "warning",
        f"{told}, {at_once} at a time on a GPU; {_in_words(free)} of {_in_words(total)} are free",
        "" if fits else f"lower train.batch_size, or {_fewer_on_a_gpu(experiment)}",
    )


def _fewer_on_a_gpu(experiment: Experiment) -> str:
    shared = experiment.resources.trials_per_gpu != 1
    return "lower resources.trials_per_gpu" if shared else "raise resources.gpus_per_worker"


def _in_words(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _step_bytes(experiment: Experiment, dataset: Dataset, images: int, device: torch.device) -> float:
    student, config = experiment.student, experiment.train
    network = rebuild_model(student.model, dataset.shape, len(dataset.classes), student.options)
    if device.type != "cuda":
        return _estimated_bytes(network, dataset, images, moments=2 if config.optimizer == "adamw" else 1)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    state = new_state(network, config, device)
    network.train()
    with autocast(precision_of(config, device), device):
        logits = network(torch.zeros(images, *dataset.shape, device=device))
    logits.float().logsumexp(1).sum().backward()
    state.optimizer.step()
    return float(torch.cuda.max_memory_allocated(device) - before)


def _estimated_bytes(network: nn.Module, dataset: Dataset, images: int, *, moments: int) -> float:
    """Weights, gradients, the optimiser's moments, and what a step keeps of each module's output, in float32."""
    kept = 0

    def count(module: nn.Module, given: object, output: object) -> None:
        nonlocal kept
        kept += output.numel() if isinstance(output, Tensor) else 0

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.zeros(1, *dataset.shape))
    return 4.0 * ((2 + moments) * sum(p.numel() for p in network.parameters()) + kept * images)


def costs(forecast: Forecast) -> Iterator[Check]:
    """Cache, disk and time of one search."""
    for name, planned in forecast.caches.items():
        one = planned.estimate
        yield Check(
            "cache" if name == INLINE else f"cache of {name}",
            "ok",
            f"{one.there} of {one.views} view columns are there already",
        )
    missing = sum(planned.estimate.bytes_missing for planned in forecast.caches.values())
    if forecast.problem:
        yield Check("disk", "problem", forecast.problem, "give cache.storage another disk, or fewer data.views")
    else:
        tight = forecast.free is not None and missing > TOO_FULL * forecast.free
        free = "no limit known" if forecast.free is None else f"{_in_words(forecast.free)} free"
        advice = "give cache.storage another disk, or fewer data.views" if tight else ""
        told = f"{_in_words(missing)} of answers still to come, {free}"
        yield Check("disk", "warning" if tight else "ok", told, advice)
    if forecast.caches:
        hours = forecast.seconds(cached=True) / 3600
        told = f"at most {hours:.2g} hours on this machine, {forecast.slots} trials at a time, none stopped early"
        yield Check("time", "ok", told)
