"""A Gaussian process over what trials would reach in full, and the configuration that it holds most promising.

Where TPE takes each dimension by itself and learns from the order of trials alone, this learns from their values and
from how sure these are: a trial that was stopped early counts as what its curve foretells, with the spread of that
forecast as noise (`merit.py`). Matérn 5/2 kernel with a length for each feature, of highest marginal likelihood among a
few (Rasmussen & Williams 2006, "Gaussian Processes for Machine Learning"); upper confidence bound (Srinivas et al.
2010, "Gaussian Process Optimization in the Bandit Setting") over random places and such near the best.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from kdtune.tuning.cube import Cube
from kdtune.tuning.curves import within_memory
from kdtune.tuning.merit import merit
from kdtune.tuning.samplers import Learning
from kdtune.tuning.study import Sample, Seen

Floats = NDArray[np.float64]

OPTIMISM = 3.0  # standard deviations above the mean
FLOOR = -2.0  # what is worse counts as this: how bad a bad trial is tells nothing of the best
PLACES = 600  # that are compared for a proposal, half of them near the best
NEAR = 5  # the best, around which to look
STEPS = (0.02, 0.3)  # shortest and longest step from them, as a share of a range
MOVED = 0.6  # probability that a label moves in such a step
LENGTHS = (0.35, 0.7, 1.4, 2.8)
NOISES = (0.05, 0.2)  # of one trial against its repetition, in standard deviations of the trials
FITTED = 80  # observations that tell them, at most
STRETCHES = (0.4, 3.0)  # of a single feature's length


@dataclass(frozen=True)
class Process:
    """N observations of F features, centred and scaled to about 1."""

    features: Floats  # [N, F]
    values: Floats  # [N]
    noise: Floats  # [N] variance that an observation has more than others
    lengths: Floats  # [F]
    level: float  # standard deviation of the noise that all have

    def kernel(self, one: Floats, other: Floats) -> Floats:
        """[N, F] and [M, F] -> [N, M]"""
        one, other = one / self.lengths, other / self.lengths
        square = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
        root = np.sqrt(5 * square.clip(0))
        covariance: Floats = (1 + root + root**2 / 3) * np.exp(-root)
        return covariance

    def factor(self) -> Floats:
        """Lower Cholesky factor of the covariance of the observations. [N, N]"""
        covariance = self.kernel(self.features, self.features)
        covariance[np.diag_indices_from(covariance)] += self.noise + self.level**2
        lower: Floats = cho_factor(covariance, lower=True, check_finite=False)[0]
        return lower

    @property
    def likelihood(self) -> float:
        """Log marginal likelihood, up to a constant."""
        lower = self.factor()
        weights = cho_solve((lower, True), self.values, check_finite=False)
        return float(-0.5 * self.values @ weights - np.log(np.diag(lower)).sum())

    def mean_and_deviation(self, features: Floats) -> tuple[Floats, Floats]:
        """Of what lies at `features` [M, F]; two arrays [M]."""
        lower = self.factor()
        across = self.kernel(features, self.features)
        mean = across @ cho_solve((lower, True), self.values, check_finite=False)
        explained = solve_triangular(lower, across.T, lower=True, check_finite=False)
        return mean, np.sqrt((1 - (explained**2).sum(0)).clip(1e-12))

    def fitted(self) -> "Process":
        """With the lengths and the noise that make the observations likeliest: alike first, then one by one. Of many
        observations some, evenly spaced, tell them."""
        step = math.ceil(len(self.values) / FITTED)
        some = replace(self, features=self.features[::step], values=self.values[::step], noise=self.noise[::step])
        alike = [
            replace(some, lengths=np.full_like(self.lengths, length), level=level)
            for length in LENGTHS
            for level in NOISES
        ]
        likelihood, best = max(((process.likelihood, process) for process in alike), key=lambda pair: pair[0])
        for k in range(len(self.lengths)):
            for stretch in STRETCHES:
                lengths = best.lengths.copy()
                lengths[k] *= stretch
                tried = replace(best, lengths=lengths)
                if (found := tried.likelihood) > likelihood:
                    likelihood, best = found, tried
        return replace(self, lengths=best.lengths, level=best.level)

    def believing(self, features: Floats) -> "Process":
        """With observations of its own mean at `features` [M, F]: what runs there is not to be proposed again."""
        mean, _ = self.mean_and_deviation(features)
        return replace(
            self,
            features=np.concatenate([self.features, features]),
            values=np.concatenate([self.values, mean]),
            noise=np.concatenate([self.noise, np.zeros(len(mean))]),
        )


class GaussianProcess(Learning):
    @cached_property
    def cube(self) -> Cube:
        return Cube(self.parameters, self.base)

    def promising(self, number: int, trials: Sequence[Seen], source: random.Random) -> Iterator[Sample]:
        remembered = within_memory(trials)
        told = [seen for seen in remembered if seen.values]
        generator = np.random.default_rng(source.getrandbits(32))
        places = self.cube.places([seen.sample for seen in told])
        process = self._process(told, places).fitted()
        silent = [seen.sample for seen in remembered if not seen.values and not seen.ended]
        if silent:
            process = process.believing(self.cube.features(self.cube.places(silent)))
        best = places[np.argsort(-process.values[: len(told)], kind="stable")[:NEAR]]
        candidates = self.cube.settled(
            np.concatenate([self.cube.random_places(PLACES // 2, generator), self._near(best, generator)])
        )
        mean, deviation = process.mean_and_deviation(self.cube.features(candidates))
        promising = candidates[np.argsort(-(mean + OPTIMISM * deviation), kind="stable")]
        for place in {place.tobytes(): place for place in promising}.values():
            yield self.cube.sample(place)

    def _process(self, told: Sequence[Seen], places: Floats) -> Process:
        """Not yet fitted."""
        forecast = merit(told, self.epochs)
        middle = np.median(forecast.values)
        scale = max(float(np.quantile(forecast.values, 0.9) - middle), 1e-6)
        values = ((forecast.values - middle) / scale).clip(FLOOR)
        values -= values.mean()
        width = max(float(values.std()), 1e-6)
        features = self.cube.features(places)
        noise = (forecast.spreads / scale / width).clip(0, 1) ** 2
        return Process(features, values / width, noise, np.ones(features.shape[1]), NOISES[0])

    def _near(self, best: Floats, generator: np.random.Generator) -> Floats:
        """Places at short and long steps from the best, within the cube. [PLACES / 2, P]"""
        count = PLACES - PLACES // 2
        start = best[generator.integers(len(best), size=count)]
        anywhere = self.cube.random_places(count, generator)
        lengths = np.exp(generator.uniform(math.log(STEPS[0]), math.log(STEPS[1]), (count, 1)))
        moved = (start + lengths * generator.normal(size=start.shape)).clip(0, 1)
        choice = np.array([parameter.kind == "choice" for parameter in self.parameters])
        moves = generator.random(start.shape) < np.where(choice, 1 / len(self.parameters), MOVED)
        near = np.where(moves, np.where(choice, anywhere, moved), start)
        return np.where(np.isnan(near), anywhere, near)  # inactive there, but a moved choice may want it
