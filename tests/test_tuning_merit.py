"""What trials are worth to a sampler: former searches on this one's scale, and accuracy weighed against a cost."""

import numpy as np

from kdtune.tuning.curves import foretell
from kdtune.tuning.merit import merit
from kdtune.tuning.study import Seen


def trial(number: int, *values: float, run: str | None = None, cost: float | None = None, model: str = "a") -> Seen:
    config = {"student.model": model}
    return Seen(number, config, {}, list(values), status="complete", run=run, cost=cost)


OWN = [trial(k, 0.5, 0.6 + k / 100) for k in range(6)]


def test_without_former_searches_and_costs_it_is_what_the_curves_foretell() -> None:
    trials = [*OWN, trial(6, 0.4), trial(7, 0.7)]
    ours, theirs = merit(trials, 2), foretell(trials, 2)
    assert ours.values.tolist() == theirs.values.tolist()
    assert ours.spreads.tolist() == theirs.spreads.tolist()


def test_a_former_search_is_compared_within_itself_and_counts_on_this_ones_scale() -> None:
    """Its accuracies are all lower than ours, and spread ten times as far."""
    former = [trial(-6 + k, 0.1, 0.1 + k / 10, run="old") for k in range(6)]
    found = merit([*former, *OWN], 2)
    assert np.allclose(found.values[:6], found.values[6:])
    assert np.allclose(found.values[6:], [seen.values[-1] for seen in OWN])


def test_two_former_searches_keep_their_own_orders() -> None:
    one = [trial(-20 + k, k / 10, run="one") for k in range(8)]
    two = [trial(-12 + k, 0.9 + (7 - k) / 1000, run="two") for k in range(8)]
    found = merit([*one, *two], 1)
    assert np.argsort(found.values[:8]).tolist() == list(range(8))
    assert np.argsort(found.values[8:]).tolist() == list(range(8))[::-1]


def test_a_former_search_of_another_length_was_complete_at_its_own_end() -> None:
    former = [trial(-6 + k, 0.1, 0.2, 0.3 + k / 100, run="old") for k in range(6)]
    found = merit([*former, *[trial(k, 0.5) for k in range(3)]], 30)
    assert found.spreads[:6].tolist() == [0] * 6


def test_few_own_trials_lie_in_the_middle_of_what_is_known() -> None:
    former = [trial(-9 + k, k / 10, run="old") for k in range(9)]
    found = merit([*former, trial(0, 0.99)], 1)
    assert found.values.tolist()[:9] == [k / 10 for k in range(9)]
    assert found.values[9] == 0.4


def test_a_cost_puts_the_front_before_what_it_dominates() -> None:
    trials = [
        trial(0, 0.90, cost=100, model="big"),
        trial(1, 0.89, cost=100, model="big"),
        trial(2, 0.70, cost=10, model="small"),
        trial(3, 0.60, cost=10, model="small"),
    ]
    assert merit(trials, 1).ranks.tolist() == [0, 2, 1, 3]
    plain = [trial(seen.number, *seen.values) for seen in trials]
    assert merit(plain, 1).ranks.tolist() == [0, 1, 2, 3]


def test_a_cheap_student_that_diverged_is_worth_nothing() -> None:
    diverged = trial(0, 0.0, cost=1, model="tiny")
    diverged.status = "diverged"
    others = [trial(k, k / 10, cost=10 * k, model=f"m{k}") for k in range(1, 5)]
    assert merit([diverged, *others], 1).ranks[0] == 4
