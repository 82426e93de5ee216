import math
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hyperopt import STATUS_OK, Domain, Trials, hp, tpe

from kdtune.experiment import parse as parse_experiment
from kdtune.experiment.space import Parameter, active, encoded, parse
from kdtune.tuning.curves import BEST, LATEST, foretell, foretell_bounded, levels_of, within_memory
from kdtune.tuning.gaussian import GaussianProcess
from kdtune.tuning.making import SAMPLERS, make_study
from kdtune.tuning.samplers import Random, Turns, startup_of
from kdtune.tuning.stoppers import Never
from kdtune.tuning.study import Budget, Sample, Sampler, Seen, Status, Study
from kdtune.tuning.tpe import TreeParzen
from tests.experiments import raw_with
from tests.tuning import Line, record, work

EPOCHS = 8
SPACE: dict[str, dict[str, object]] = {
    "kind": {"choice": ["fixed", "falling"]},
    "end": {"loguniform": [0.1, 10], "when": {"kind": "falling"}},
    "weight": {"choice": [0, {"loguniform": [0.01, 10]}]},
    "layers": {"integer": [1, 5]},
    "alpha": {"uniform": [0, 1]},
}
PARAMETERS, _ = parse(SPACE)


def seen(number: int, sample: Sample, values: Sequence[float], status: Status = "complete") -> Seen:
    config = active(PARAMETERS, sample, None)
    return Seen(number, config, encoded(PARAMETERS, config), list(values), status)


def with_curve(number: int, values: Sequence[float], status: Status = "complete") -> Seen:
    return Seen(number, {}, {}, list(values), status)


def distance(sample: Sample) -> float:
    """From the best configuration: falling, without the second term, three layers, alpha 0.9."""
    off = abs(sample["alpha"] - 0.9) + abs(sample["layers"] - 3) / 4
    return off + (sample["kind"] != 1) + (sample["weight"] != 0)


def searched(sampler: Sampler, trials: int) -> list[Seen]:
    """A search whose trials show all at once how far they are from the best."""
    found: list[Seen] = []
    for number in range(trials):
        proposal = sampler.propose(number, found)
        assert proposal is not None
        found.append(seen(number, proposal, [0.9 - distance(proposal) / 4] * EPOCHS))
    return found


def tree_parzen(seed: int = 0, trials: int = 40, parameters: Sequence[Parameter] = PARAMETERS) -> TreeParzen:
    return TreeParzen(parameters, seed, trials=trials, epochs=EPOCHS)


def inside(parameter: Parameter, drawn: float) -> bool:
    if parameter.kind == "choice":
        return drawn in range(len(parameter.options))
    return parameter.low <= drawn <= parameter.high and (parameter.kind != "integer" or isinstance(drawn, int))


def gaussian_process(seed: int = 0, trials: int = 40, parameters: Sequence[Parameter] = PARAMETERS) -> GaussianProcess:
    return GaussianProcess(parameters, seed, trials=trials, epochs=EPOCHS)


def by_turns(seed: int = 0, trials: int = 40, parameters: Sequence[Parameter] = PARAMETERS) -> Turns:
    return Turns(tree_parzen(seed, trials, parameters), gaussian_process(seed, trials, parameters))


LEARNING = {"hyperopt": tree_parzen, "gp": gaussian_process, "hyperopt+gp": by_turns}


@pytest.mark.parametrize("make", LEARNING.values(), ids=LEARNING)
class TestEverySamplerThatLearns:
    def test_proposes_values_of_the_space_for_every_label(self, make: Any) -> None:
        for trial in searched(make(), 25):
            assert all(inside(parameter, trial.sample[parameter.label]) for parameter in PARAMETERS
                       if parameter.label in trial.sample)  # fmt: skip
            assert trial.sample.keys() == encoded(PARAMETERS, trial.config).keys()

    def test_gives_the_same_answer_in_a_new_process(self, make: Any) -> None:
        found = searched(make(), 25)
        asked_before, fresh = make(), make()
        for number in range(25):
            asked_before.propose(number, found[:number])
        assert asked_before.propose(25, found) == fresh.propose(25, found)

    def test_depends_on_the_seed(self, make: Any) -> None:
        found = searched(make(), 25)
        proposals = [[make(seed=seed).propose(number, found) for number in range(25, 30)] for seed in (0, 1)]
        assert proposals[0] != proposals[1]
        assert make(seed=1).propose(0, []) != make().propose(0, [])

    def test_finds_where_the_good_values_are_and_random_search_does_not(self, make: Any) -> None:
        def late(sampler: Sampler) -> float:
            return statistics.fmean(distance(trial.sample) for trial in searched(sampler, 60)[40:])

        chance = statistics.fmean(late(Random(PARAMETERS, seed)) for seed in range(3))
        assert statistics.fmean(late(make(seed, 60)) for seed in range(3)) < 0.6 * chance

    def test_avoids_where_trials_diverge(self, make: Any) -> None:
        source = random.Random(0)
        found = []
        for number in range(40):
            proposal = Random(PARAMETERS, source.randrange(1000)).propose(number, [])
            bad = proposal["kind"] == 0
            found.append(seen(number, proposal, [0.0] if bad else [0.5] * EPOCHS, "diverged" if bad else "complete"))
        kinds = [make(seed).propose(40, found)["kind"] for seed in range(20)]
        assert statistics.fmean(kinds) > 0.8

    def test_learns_from_trials_that_were_stopped_early(self, make: Any) -> None:
        """The best ones look worse at their end than the others, which ran on for longer."""
        found = []
        for number in range(40):
            proposal = Random(PARAMETERS, 3).propose(number, [])
            rate = 0.08 if proposal["alpha"] > 0.7 else 0.05
            epochs = 5 if rate == 0.08 and number % 4 else EPOCHS
            curve = [rate * epoch for epoch in range(1, epochs + 1)]
            found.append(seen(number, proposal, curve, "complete" if epochs == EPOCHS else "stopped"))
        assert statistics.median(make(seed).propose(40, found)["alpha"] for seed in range(7)) > 0.6

    def test_takes_trials_that_have_shown_nothing_yet(self, make: Any) -> None:
        found = searched(make(), 20)
        found.append(Seen(20, found[0].config, found[0].sample, [], "running"))
        assert make().propose(21, found) is not None

    def test_tries_no_configuration_twice(self, make: Any) -> None:
        """All trials of a search have one seed, so it would come to the same again."""
        third = {"choice": [1, 2, 3], "when": {"kind": "b"}}
        parameters, _ = parse({"kind": {"choice": ["a", "b"]}, "layers": {"integer": [1, 4]}, "third": third})
        study = Study(parameters, make(0, 16, parameters), Never(), Budget(17))
        while (asked := study.ask()) is not None:
            study.tell(asked.number, record(1, 0.9 - abs(asked.sample["layers"] - 3) / 10, epochs=1))
        samples = [tuple(sorted(seen.sample.items())) for seen in study.trials.values()]
        assert len(set(samples)) == len(samples) - 1 == 4 + 4 * 3

    def test_remembers_a_bounded_number_of_trials(self, make: Any) -> None:
        """Those in the middle of a long search that were not among the best change nothing."""
        few, many = searched(Random(PARAMETERS, 5), 400), searched(Random(PARAMETERS, 5), 400)
        kept = {trial.number for trial in within_memory(few)}
        assert len(kept) == BEST + LATEST
        for trial in many:
            if trial.number not in kept:
                trial.values = [0.01] * EPOCHS
        assert make(trials=400).propose(400, few) == make(trials=400).propose(400, many)


class TestHyperOpt:
    def test_answers_as_hyperopt_itself_on_trials_of_full_length(self) -> None:
        """The reference: `fmin`'s own way of asking, with the losses themselves and HyperOpt's default gamma."""
        parameters, _ = parse({"a": {"uniform": [0, 1]}, "b": {"choice": [1, 2, 3]}})
        domain = Domain(None, {"a": hp.uniform("a", 0, 1), "b": hp.choice("b", [0, 1, 2])})
        reference, found = Trials(), []
        for number, draw in enumerate(np.random.default_rng(0).random((30, 2)).tolist()):
            sample = {"a": draw[0], "b": int(3 * draw[1])}
            value = 1 - (draw[0] - 0.3) ** 2 - 0.01 * sample["b"]
            found.append(Seen(number, {}, sample, [value] * EPOCHS, "complete"))
            misc = {"tid": number, "cmd": None, "workdir": None, "idxs": {k: [number] for k in sample},
                    "vals": {k: [v] for k, v in sample.items()}}  # fmt: skip
            (doc,) = reference.new_trial_docs([number], [None], [{"status": STATUS_OK, "loss": -value}], [misc])
            reference.insert_trial_doc(doc | {"state": 2})
        reference.refresh()
        seed = random.Random("7 30").getrandbits(32)
        (expected,) = tpe.suggest([30], domain, reference, seed, verbose=False)
        proposal = TreeParzen(parameters, 7, trials=30, epochs=EPOCHS).propose(30, found)
        assert proposal == {label: values[0] for label, values in expected["misc"]["vals"].items()}

    def test_a_label_that_is_inactive_has_no_value_in_an_observation(self) -> None:
        proposal = {"kind": 0, "end": 1.0, "weight": 1, "weight@1": 0.5, "layers": 2, "alpha": 0.1}
        (document,) = tree_parzen()._documents([seen(3, proposal, [0.5])])
        assert document["misc"]["vals"] == {
            "kind": [0], "end": [], "weight": [1], "weight@1": [0.5], "layers": [2], "alpha": [0.1]
        }  # fmt: skip
        assert document["misc"]["idxs"]["end"] == []
        assert document["misc"]["idxs"]["alpha"] == [3]


class TestStartUp:
    @pytest.mark.parametrize(("trials", "expected"), [(60, 12), (30, 10), (15, 5), (2, 1), (0, 1)])
    def test_grows_with_the_space_and_leaves_two_thirds_of_a_short_search(self, trials: int, expected: int) -> None:
        assert len(PARAMETERS) == 6
        assert startup_of(PARAMETERS, trials) == expected


class TestCurves:
    def test_levels_end_with_the_planned_length_and_begin_with_the_first_epoch(self) -> None:
        assert levels_of(52) == [52, 37, 26, 18, 13, 9, 6, 5, 3, 2, 1]
        assert levels_of(1) == [1]
        assert levels_of(2) == [2, 1]

    def test_a_trial_that_was_stopped_expects_the_median_gain_of_those_that_went_on(self) -> None:
        curves = [[0.1, 0.3, 0.35, 0.4], [0.2, 0.3, 0.4, 0.5], [0.1, 0.4, 0.5, 0.7], [0.35, 0.45]]
        told = [with_curve(n, values, "stopped" if len(values) < 4 else "complete") for n, values in enumerate(curves)]
        forecast = foretell(told, 4)  # levels 4, 3, 2, 1: median gains of 0.1 from 3, 0.1 from 2
        assert forecast.values == pytest.approx([0.4, 0.5, 0.7, 0.65])
        gains = [[0.05, 0.1, 0.2], [0.05, 0.1, 0.1]]
        assert forecast.spreads == pytest.approx([0, 0, 0, sum(statistics.variance(g) for g in gains) ** 0.5])

    def test_values_meet_only_at_equal_epochs(self) -> None:
        """Three slow starters ran in full; a fourth trial was far ahead of them when it was last seen."""
        slow = [with_curve(n, [0.1, 0.2, 0.4, 0.6 + n / 100]) for n in range(3)]
        ahead, behind = with_curve(3, [0.3, 0.45], "stopped"), with_curve(4, [0.0, 0.05], "running")
        assert foretell([*slow, ahead, behind], 4).ranks.tolist() == [3, 2, 1, 0, 4]

    def test_a_trial_that_diverged_is_the_worst_however_far_it_came(self) -> None:
        told = [with_curve(0, [0.9, 0.9, 0.0], "diverged"), with_curve(1, [0.1] * 4), with_curve(2, [0.05], "running")]
        assert foretell(told, 4).ranks.tolist() == [2, 0, 1]

    def test_between_two_levels_what_is_expected_moves_evenly(self) -> None:
        full = [with_curve(n, [0.01 * epoch for epoch in range(1, 53)]) for n in range(3)]
        early = with_curve(3, [0.01 * epoch for epoch in range(1, 31)], "running")
        assert foretell([*full, early], 52).values[3] == pytest.approx(0.52)

    def test_for_people_a_gain_is_one_of_log_odds_and_what_ran_in_full_is_as_it_was_measured(self) -> None:
        def share(odds: float) -> float:
            return odds / (1 + odds)

        full = [with_curve(n, [share(odds), share(4 * odds)]) for n, odds in enumerate((0.5, 1.0, 2.0))]
        ahead, perfect = with_curve(3, [share(9.0)], "stopped"), with_curve(4, [0.5, 1.0])
        lost = with_curve(5, [0.9, 0.0], "diverged")
        told = foretell_bounded([*full, ahead, perfect, lost], 2)
        assert told.values == pytest.approx([share(2), share(4), share(8), share(36), 1.0, 0.0])
        odds_spread = statistics.stdev([math.log(4)] * 3 + [math.log(0.999 / 0.001)])
        assert told.spreads == pytest.approx([0, 0, 0, odds_spread * share(36) * (1 - share(36)), 0, 0])

    def test_the_best_of_those_that_ran_in_full_and_the_latest_stay_in_memory(self) -> None:
        source = random.Random(0)
        trials = [with_curve(n, [source.random()]) for n in range(BEST + LATEST + 100)]
        trials[7] = with_curve(7, [2.0], "stopped")
        kept = within_memory(trials)
        early = sorted((trial.values[-1] for trial in trials[:-LATEST] if trial.number != 7), reverse=True)
        assert sorted((trial.values[-1] for trial in kept[:-LATEST]), reverse=True) == early[:BEST]
        assert kept[-LATEST:] == trials[-LATEST:]
        assert [trial.number for trial in kept] == sorted(trial.number for trial in kept)

    def test_where_hundreds_run_at_once_those_that_have_told_stay_in_memory(self) -> None:
        told = [with_curve(n, [0.1], "stopped") for n in range(40)]
        silent = [with_curve(40 + n, [], "running") for n in range(BEST + LATEST)]
        assert within_memory([*told, *silent]) == [*told, *silent]


def test_hyperopt_is_not_imported_before_it_is_asked() -> None:
    code = "import sys, kdtune.tuning.making; sys.exit('hyperopt' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_samplers_by_turns_answer_as_each_of_them_alone() -> None:
    found = searched(by_turns(), 20)
    assert by_turns().propose(20, found) == tree_parzen().propose(20, found)
    assert by_turns().propose(21, found) == gaussian_process().propose(21, found)
    assert tree_parzen().propose(21, found) != gaussian_process().propose(21, found)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_search_that_was_killed_proposes_and_stops_as_one_that_never_was(name: str) -> None:
    space = {"distill.alpha.start": {"uniform": [0.2, 0.9]}, "distill.temperature.start": {"loguniform": [1, 20]}}
    search = {"sampler": name, "trials": 18, "seed": 3}
    experiment = parse_experiment(raw_with({"search": search, "train.epochs": 9}, space))

    def run_on(lines: list[Line]) -> list[Line]:
        study = make_study(experiment)
        study.replay(list(lines))
        work(study, lambda number, epoch: number % 7 / 10 + epoch / 30, [0] * 200, workers=1, lines=lines)
        return lines

    through = run_on([])
    for epochs in (1, 40, len(through) // 2, len(through) - 1):
        assert run_on(through[:epochs]) == through
