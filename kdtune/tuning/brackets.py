"""Brackets of Hyperband: the same successive halving, begun later and later, in case early epochs mislead.

    [1, 3, 9, 27]  [3, 9, 27]  [9, 27]  [27]  []     # where each judges; the last stops no trial
    shares(rungs=4, factor=3)                        # of all trials, one share a bracket

Li et al. 2018, "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization", Algorithm 1.
"""

import math
import random
from collections.abc import Sequence


def shares(rungs: int, factor: float, brackets: int | None = None) -> list[float]:
    """Each bracket's share of the trials: as many of each as Algorithm 1 begins, where each may spend as much.

    A bracket that judges at s rungs begins ceil((s_max + 1) / (s + 1) * factor^s) trials, s_max being all rungs.
    Of fewer brackets than there are, those that stop earliest are taken, in the same proportions.
    """
    begun = [math.ceil(round((rungs + 1) / (s + 1) * factor**s, 9)) for s in range(rungs, -1, -1)][:brackets]
    return [trials / sum(begun) for trials in begun]


def bracket_of(number: int, weights: Sequence[float], seed: int) -> int:
    """The bracket of trial `number`: a function of the seed and the number, so that a search that is taken up again,
    or asks in another order, deals the same trials to the same brackets."""
    # a word before, for a sampler that seeds with the same two numbers would draw along with it
    return random.Random(f"bracket {seed} {number}").choices(range(len(weights)), weights)[0]
