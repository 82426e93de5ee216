"""HyperOpt's tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization").

It splits the trials into the best few and the rest, models each dimension of both, and proposes what is likely among
the best and unlikely among the rest. Only the order of trials matters to it, and `curves.py` tells that order for
trials that were stopped at different epochs, `merit.py` for those of former searches too. HyperOpt sees a flat space: a
label that is inactive in a trial has no value there, and of a proposal it means nothing.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from kdtune.experiment.space import Parameter
from kdtune.tuning.curves import within_memory
from kdtune.tuning.merit import merit
from kdtune.tuning.samplers import Learning, clipped
from kdtune.tuning.study import Sample, Seen

BEST_SHARE = 0.25  # times the root of the number of trials: how many count as the best
MOST_BEST = 25
TRIES = 5  # at a configuration that no trial has had


class TreeParzen(Learning):
    def promising(self, number: int, trials: Sequence[Seen], source: random.Random) -> Iterator[Sample]:
        best = min(MOST_BEST, math.ceil(BEST_SHARE * math.sqrt(len(trials))))
        docs = self._documents(within_memory(trials))
        for _ in range(TRIES):
            yield self._suggestion(number, docs, best, source.getrandbits(32))

    def _suggestion(self, number: int, docs: Sequence[Mapping[str, Any]], best: int, seed: int) -> Sample:
        """What HyperOpt suggests, with `best` of the documents as the good ones."""
        from hyperopt import tpe, trials_from_docs  # seconds to import, and only this sampler needs it

        (suggested,) = tpe.suggest(
            [number],
            self._domain,
            trials_from_docs(docs, validate=False),
            seed,
            n_startup_jobs=0,
            gamma=(best - 0.5) / math.sqrt(len(docs)),  # HyperOpt rounds gamma * sqrt(trials) up
            verbose=False,
        )
        drawn = suggested["misc"]["vals"]
        return {parameter.label: clipped(parameter, float(drawn[parameter.label][0])) for parameter in self.parameters}

    @cached_property
    def _domain(self) -> Any:  # hyperopt is untyped
        from hyperopt import Domain, hp

        def dimension(parameter: Parameter) -> Any:
            label, low, high = parameter.label, parameter.low, parameter.high
            if parameter.kind == "choice":
                return hp.choice(label, list(range(len(parameter.options))))
            if parameter.kind == "loguniform":
                return hp.loguniform(label, math.log(low), math.log(high))
            if parameter.kind == "integer":  # HyperOpt's own, of quantised ranges, gives both ends half their share
                return hp.uniform(label, low - 0.5, high + 0.5)
            return hp.uniform(label, low, high)

        return Domain(None, {parameter.label: dimension(parameter) for parameter in self.parameters})

    def _documents(self, trials: Sequence[Seen]) -> list[dict[str, Any]]:
        """Trials as HyperOpt keeps them, the rank of a trial as its loss; those that have shown nothing have none."""
        told = [seen for seen in trials if seen.values]
        ranks = dict(zip((seen.number for seen in told), merit(told, self.epochs).ranks.tolist(), strict=True))
        return [self._document(seen, ranks.get(seen.number)) for seen in trials]

    def _document(self, seen: Seen, loss: float | None) -> dict[str, Any]:
        active = {parameter.label: parameter.label in seen.sample for parameter in self.parameters}
        misc = {
            "tid": seen.number,
            "idxs": {label: [seen.number] if here else [] for label, here in active.items()},
            "vals": {label: [seen.sample[label]] if here else [] for label, here in active.items()},
        }
        result = {"status": "new"} if loss is None else {"status": "ok", "loss": loss}
        return {"tid": seen.number, "state": 2, "spec": None, "misc": misc, "result": result}
