"""A study as an experiment asks for it."""

from kdtune.cli.options import default_file
from kdtune.experiment import load, textbook, with_values
from kdtune.experiment.space import active, parse
from kdtune.tuning.making import first_points, make_study

DIGITS = load(default_file())


def test_textbook_kd_is_the_first_point() -> None:
    parameters, _ = parse(DIGITS.search.space)
    values = active(parameters, first_points(parameters, DIGITS)[0], DIGITS)
    assert with_values(DIGITS, values).distill == textbook(DIGITS).distill


def test_the_experiments_own_points_follow_in_order() -> None:
    study = make_study(DIGITS)
    asked = [study.ask() for _ in range(1 + len(DIGITS.search.points))]
    assert [seen.config for seen in asked[1:] if seen] == DIGITS.search.points


def test_the_same_seed_proposes_the_same_configurations() -> None:
    def proposals(seed: int) -> list[object]:
        search = DIGITS.search.model_copy(update={"seed": seed})
        study = make_study(DIGITS.model_copy(update={"search": search}))
        return [seen.config for seen in (study.ask() for _ in range(12)) if seen]

    assert proposals(0) == proposals(0)
    assert proposals(0)[6:] != proposals(1)[6:]
