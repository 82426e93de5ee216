"""Who proposes configurations: HyperOpt's tree-structured Parzen estimator over a flat space, or random search.

Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization". Textbook KD is the first point wherever the space
holds it, then the experiment's own points. Labels are unique and points are full, or HyperOpt hangs.
"""

import math
from collections.abc import Sequence
from typing import Any

from hyperopt import hp
from ray.tune.search.hyperopt import HyperOptSearch

from kdtune.experiment import Experiment
from kdtune.experiment.objective import TEXTBOOK
from kdtune.experiment.space import Parameter, full_point, parse

METRIC, MODE = "val_accuracy", "max"


def make_searcher(experiment: Experiment) -> HyperOptSearch:
    """A fresh, seeded searcher; `random` is one whose start-up never ends."""
    parameters, _ = parse(experiment.search.space)
    trials = experiment.search.trials
    dimensions = len(parameters)
    # Ray's own default of 20 random points would be most of a short search
    startup = min(max(10, 2 * dimensions), max(1, trials // 3))
    return HyperOptSearch(
        space={parameter.label: _dimension(parameter) for parameter in parameters},
        metric=METRIC,
        mode=MODE,
        points_to_evaluate=first_points(parameters, experiment)[:trials],
        n_initial_points=trials + 1 if experiment.search.sampler == "random" else startup,
        random_state_seed=experiment.search.seed,
    )


def first_points(parameters: Sequence[Parameter], experiment: Experiment) -> list[dict[str, float]]:
    """Textbook KD where the space holds it, then the experiment's points, without repeats."""
    points: list[dict[str, float]] = []
    for point in (textbook_point(parameters), *experiment.search.points):
        try:
            full = full_point(parameters, point, experiment)
        except ValueError:  # only textbook KD can lie outside: the experiment's points were checked on loading
            continue
        if full not in points:
            points.append(full)
    return points


def textbook_point(parameters: Sequence[Parameter]) -> dict[str, object]:
    """Textbook KD in the space's own paths: a schedule may be searched whole or field by field."""
    point: dict[str, object] = {}
    for parameter in parameters:
        section, _, rest = parameter.path.partition(".")
        name, _, part = rest.partition(".")
        if section != "distill" or name not in TEXTBOOK:
            continue
        if part == "":
            point[parameter.path] = TEXTBOOK[name]
        elif part == "kind":
            point[parameter.path] = "fixed"
        elif part == "start":
            point[parameter.path] = TEXTBOOK[name]
    return point


def _dimension(parameter: Parameter) -> Any:  # hyperopt is untyped
    if parameter.kind == "choice":
        return hp.choice(parameter.label, list(range(len(parameter.options))))
    if parameter.kind == "loguniform":
        return hp.loguniform(parameter.label, math.log(parameter.low), math.log(parameter.high))
    if parameter.kind == "integer":
        return hp.uniformint(parameter.label, parameter.low, parameter.high)
    return hp.uniform(parameter.label, parameter.low, parameter.high)
