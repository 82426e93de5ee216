"""A space as numbers that can be compared: what a Gaussian process and a local search need of it.

    cube = Cube(parameters, base)
    places = cube.places([seen.sample for seen in trials])  # [N, P]
    features = cube.features(places)                        # [N, F]

P parameters and N samples. A place has a column for each parameter: 0 to 1 for a range in its own scale, the index of
its option for a choice, NaN where the label is inactive. Features have a column for each range and one for each option
of a choice, so that any two options are as far from each other as the ends of a range; what is inactive lies in the
middle for all, and makes no difference.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdtune.experiment import Experiment
from kdtune.experiment.space import Parameter, active, encoded
from kdtune.tuning.samplers import clipped
from kdtune.tuning.study import Sample

Floats = NDArray[np.float64]
APART = math.sqrt(0.5)  # of an option's column: two options differ in two columns


class Cube:
    def __init__(self, parameters: Sequence[Parameter], base: Experiment | None) -> None:
        """`base` answers conditions on what is not searched."""
        self.parameters = parameters
        self.base = base
        conditions = {path for parameter in parameters for path in parameter.when}
        owners = {parameter.option_of for parameter in parameters}
        self.deciding = [k for k, p in enumerate(parameters) if p.path in conditions or p.label in owners]

    def places(self, samples: Sequence[Sample]) -> Floats:
        """[N, P]"""
        nothing = math.nan
        rows = [
            [_place(p, sample[p.label]) if p.label in sample else nothing for p in self.parameters]
            for sample in samples
        ]
        return np.array(rows, dtype=np.float64).reshape(len(samples), len(self.parameters))

    def random_places(self, count: int, generator: np.random.Generator) -> Floats:
        """[count, P], evenly over the cube, each label with a value."""
        places = generator.random((count, len(self.parameters)))
        for k, parameter in enumerate(self.parameters):
            if parameter.kind == "choice":
                places[:, k] = generator.integers(len(parameter.options), size=count)
        return places

    def settled(self, places: Floats) -> Floats:
        """Whole numbers rounded to themselves, and NaN where a label is inactive, decided by the other columns."""
        places = places.copy()
        for k, parameter in enumerate(self.parameters):
            if parameter.kind == "integer":
                width = parameter.high - parameter.low
                places[:, k] = np.round(places[:, k] * width) / width
        if self.deciding:
            kinds, which = np.unique(places[:, self.deciding], axis=0, return_inverse=True)
            inactive = np.zeros((len(kinds), len(self.parameters)), dtype=bool)
            for row in range(len(kinds)):
                example = self.sample(places[np.flatnonzero(which.ravel() == row)[0]])
                labels = encoded(self.parameters, active(self.parameters, example, self.base))
                inactive[row] = [parameter.label not in labels for parameter in self.parameters]
            places[inactive[which.ravel()]] = math.nan
        return places

    def sample(self, place: Floats) -> dict[str, float]:
        """A value for every label; the middle where the place has none."""
        return {
            parameter.label: parameter.middle() if math.isnan(at) else _value(parameter, at)
            for parameter, at in zip(self.parameters, place.tolist(), strict=True)
        }

    def features(self, places: Floats) -> Floats:
        """[N, F]"""
        columns: list[Floats] = []
        for k, parameter in enumerate(self.parameters):
            column = places[:, k]
            if parameter.kind == "choice":
                middle = np.where(np.isnan(column), 1 / len(parameter.options), 0.0)
                columns += [APART * (middle + (column == option)) for option in range(len(parameter.options))]
            else:
                columns.append(np.where(np.isnan(column), 0.5, column))
        return np.column_stack(columns)


def _place(parameter: Parameter, value: float) -> float:
    if parameter.kind == "choice":
        return value
    low, high = parameter.low, parameter.high
    if parameter.kind == "loguniform":
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _value(parameter: Parameter, at: float) -> float:
    low, high = parameter.low, parameter.high
    if parameter.kind == "choice":
        return int(at)
    if parameter.kind == "loguniform":
        return clipped(parameter, low * (high / low) ** at)
    return clipped(parameter, low + at * (high - low))
