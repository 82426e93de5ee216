"""The epochs at which a search judges its trials, from its experiment alone."""

from collections.abc import Sequence

from kdtune.experiment import Experiment
from kdtune.experiment.space import NESTED, Parameter, parse
from kdtune.tuning.brackets import shares


def rungs_of_search(experiment: Experiment) -> list[int]:
    """Epochs at which the search's stopper judges; quarters of the run where it has no rungs."""
    epochs = experiment.train.epochs
    rungs = experiment.search.stopper.rungs(longest_grace(experiment), epochs)
    return rungs or sorted({epoch for k in (1, 2, 3) if (epoch := epochs * k // 4) > 0})


def brackets_of_search(experiment: Experiment) -> tuple[list[list[int]], list[float]]:
    """Rungs of each bracket, and each one's share of the trials; a stopper without rungs has one bracket, empty."""
    stopper = experiment.search.stopper
    rungs = stopper.rungs(longest_grace(experiment), experiment.train.epochs)
    dealt = shares(len(rungs), stopper.reduction_factor, None if stopper.kind == "hyperband" else stopper.brackets)
    return [rungs[later:] for later in range(len(dealt))], dealt


def expected_share(experiment: Experiment) -> float:
    """Share of all epochs that successive halving runs where a rung lets exactly one in `reduction_factor` go on."""
    epochs, factor = experiment.train.epochs, experiment.search.stopper.reduction_factor
    run = 0.0
    for rungs, share in zip(*brackets_of_search(experiment), strict=True):
        marks = [0, *rungs, epochs]
        run += share * sum((marks[k + 1] - marks[k]) / factor**k for k in range(len(marks) - 1))
    return run / epochs


def longest_grace(experiment: Experiment) -> int:
    """The grace period of the search: it covers the warm-up of every trial, whose share and length may be searched."""
    parameters, _ = parse(experiment.search.space)
    train = experiment.train
    lengths = [train.epochs, *map(int, _ends(parameters, "train.epochs"))]
    warmups = [train.warmup, *_ends(parameters, "train.warmup")]
    graces = [
        experiment.model_copy(
            update={"train": train.model_copy(update={"epochs": length, "warmup": warmup})}
        ).grace_epochs
        for length in lengths
        for warmup in warmups
    ]
    return min(max(graces), train.epochs)


def _ends(parameters: Sequence[Parameter], path: str) -> list[float]:
    """Numbers between which a searched one lies, and those that it is chosen from."""
    ends: list[float] = []
    for parameter in parameters:
        if parameter.path == path and parameter.kind == "choice":
            ends += [float(str(option)) for option in parameter.options if option is not NESTED]  # YAML: 1e-2 is text
        elif parameter.path == path:
            ends += [parameter.low, parameter.high]
    return ends
