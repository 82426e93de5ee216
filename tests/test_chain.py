"""Who teaches whom: what a file may say, the order in which teachers can be had, assistants as students."""

from typing import Any

import pytest

from kdtune.experiment import Distill, Experiment, dump, load, parse, row
from kdtune.experiment.chain import (
    assistant,
    configurations,
    in_order,
    next_generation,
    searched_assistants,
    settled,
    teachers_of_students,
)
from tests.experiments import MINIMAL, Write, problems_of

SPACE = {"distill.temperature.start": {"uniform": [1, 8]}, "train.learning_rate": {"loguniform": [0.01, 0.1]}}


def with_teachers(teacher: object, search: object = None, rows: object = None, **teachers: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {**MINIMAL, "teacher": teacher, "teachers": teachers}
    raw["search"] = search or {}
    raw["final"] = {"rows": rows or {}}
    return raw


@pytest.fixture
def chain() -> Experiment:
    """A student under an assistant of an assistant; one more teacher for a row, one that nobody needs."""
    return parse(
        with_teachers(
            "small",
            rows={"directly": {"teacher": "large"}, "alone, slowly": {"teacher": None, "train.learning_rate": 0.01}},
            small={"model": "cnn-8-16", "taught_by": "middle"},
            large={"model": "cnn-32-64"},
            middle={"model": "cnn-16-32", "taught_by": "large", "search": {"trials": 3, "space": SPACE}},
            idle={"model": "cnn-8"},
        )
    )


def test_a_teacher_written_out_is_the_only_one(chain: Experiment) -> None:
    experiment = parse(MINIMAL)
    assert (experiment.teacher_name, list(experiment.all_teachers)) == ("teacher", ["teacher"])
    assert experiment.own_teacher.named == "cnn-8-16"
    assert chain.own_teacher == chain.teachers["small"]


def test_teachers_come_after_those_that_they_depend_on_and_idle_ones_not_at_all(chain: Experiment) -> None:
    assert in_order(chain) == ["large", "middle", "small"]
    assert teachers_of_students(chain) == ["small", "large"]


def test_a_searched_teacher_is_one_from_which_students_learn() -> None:
    experiment = parse(
        with_teachers(
            "one",
            {"space": {"teacher": {"choice": ["one", "two"]}}},
            one={"model": "cnn-8"},
            two={"ensemble": ["one", "three"]},
            three={"model": "cnn-16"},
        )
    )
    assert teachers_of_students(experiment) == ["one", "two"]
    assert in_order(experiment) == ["one", "three", "two"]
    assert {one.teacher_name for one in configurations(experiment)} == {"one", "two"}


def test_peers_are_never_obtained() -> None:
    experiment = parse(with_teachers({"peers": ["cnn-8", "cnn-16"]}))
    assert in_order(experiment) == []
    assert experiment.own_teacher.named == "cnn-8 + cnn-16"


def test_an_assistant_is_the_student_of_its_own_experiment(chain: Experiment) -> None:
    one = assistant(chain, "middle")
    assert (one.student.model, one.own_teacher.model) == ("cnn-16-32", "cnn-32-64")
    assert one.train == chain.teachers["middle"].train
    assert one.distill.temperature.at(0, 5) == 4  # textbook KD, since it says nothing else
    assert one.search.trials == 3
    assert "middle" not in one.all_teachers


def test_what_an_assistants_search_has_found_takes_its_place(chain: Experiment) -> None:
    assert searched_assistants(chain) == ["middle"]
    done = settled(chain, "middle", {"distill.temperature.start": 2.5, "train.learning_rate": 0.05})
    assert searched_assistants(done) == []
    middle = done.all_teachers["middle"]
    assert middle.search is None
    assert middle.distill is not None
    assert (middle.distill.temperature.at(0, 5), middle.train.learning_rate) == (2.5, 0.05)
    assert done.own_teacher == chain.own_teacher


def test_an_assistant_written_out_under_teacher_is_settled_too() -> None:
    raw = with_teachers(
        {"model": "cnn-8-16", "taught_by": "large", "search": {"trials": 3, "space": SPACE}}, large={"model": "cnn-16"}
    )
    done = settled(parse(raw), "teacher", {"distill.temperature.start": 3.0})
    assert done.own_teacher.distill is not None
    assert done.own_teacher.distill.temperature.at(0, 5) == 3
    assert done.own_teacher.taught_by == "large"


def test_the_path_to_an_assistant_may_be_searched_as_well() -> None:
    search = {"trials": 3, "space": {"teacher": {"choice": ["large", "wide"]}}}
    small = {"model": "cnn-8-16", "taught_by": "large", "search": search}
    experiment = parse(with_teachers("small", small=small, large={"model": "cnn-16"}, wide={"model": "cnn-32-64"}))
    assert settled(experiment, "small", {"teacher": "wide"}).all_teachers["small"].taught_by == "wide"
    assert in_order(experiment) == ["large", "small"]  # the search itself obtains what it may choose


def test_an_assistant_that_another_ones_search_may_choose_is_searched_first() -> None:
    settings = {"trials": 2, "space": SPACE}
    choosing = {"trials": 2, "space": {"teacher": {"choice": ["large", "middle"]}}}
    experiment = parse(
        with_teachers(
            "small",
            small={"model": "cnn-8-16", "taught_by": "large", "search": choosing},
            middle={"model": "cnn-16", "taught_by": "large", "search": settings},
            large={"model": "cnn-16-32"},
        )
    )
    assert searched_assistants(experiment) == ["middle", "small"]
    experiment = settled(experiment, "middle", {"distill.temperature.start": 2})
    assert assistant(experiment, "small").teachers["middle"].distill == Distill.model_validate({"temperature": 2})


def test_searches_that_may_choose_each_other_are_refused() -> None:
    def choosing(other: str) -> dict[str, Any]:
        search = {"trials": 2, "space": {"teacher": {"choice": ["large", other]}}}
        return {"model": "cnn-8-16", "taught_by": "large", "search": search}

    raw = with_teachers("one", one=choosing("two"), two=choosing("one"), large={"model": "cnn-16-32"})
    assert "'two' is not one of" in problems_of(lambda: parse(raw))["teachers.one.search.space"]


def test_a_file_with_a_chain_survives_dump_and_load(chain: Experiment, write: Write) -> None:
    assert load(write(dump(chain))) == chain


def test_generations_learn_from_their_own_architecture_whatever_they_are_called() -> None:
    network = {"model": "cnn-8", "options": {}, "taps": ["blocks.0"], "generations": 3, "distill": {"alpha": 0.5}}
    child = next_generation(parse(with_teachers("before", before=network)), "before")
    assert (child.student.model, child.own_teacher.model) == ("cnn-8", "cnn-8")
    assert child.student.taps == child.own_teacher.taps == ("blocks.0",)
    assert child.distill.alpha.start == 0.5


# --- bad input


@pytest.mark.parametrize(
    ("teachers", "words"),
    [
        ({"a": {"model": "cnn-8", "taught_by": "a"}}, "a circle of teachers: a -> a"),
        (
            {"b": {"model": "cnn-8", "taught_by": "a"}, "a": {"ensemble": ["b", "c"]}, "c": {"model": "cnn-8"}},
            "a circle of teachers: a -> b -> a",
        ),
        ({"large": {"model": "cnn-8", "taught_by": "larg"}}, "'larg'; known: large, teacher. Did you mean 'large'?"),
        ({"a": {"model": "cnn-8", "taught_by": "p"}, "p": {"peers": ["cnn-8"]}}, "exist only while the student"),
        (
            {
                "a": {"model": "cnn-8", "taught_by": "b", "search": {"space": {"teacher": {"choice": ["b", "p"]}}}},
                "b": {"model": "cnn-16"},
                "p": {"peers": ["cnn-8"]},
            },
            "a refers to p, whose peers exist only while the student",
        ),
        ({"a": {"model": "cnn-8"}, "b": {"model": "cnn-8"}, "c": {"ensemble": ["a", "b"]}}, "a and b are the same"),
        ({"a": {"model": "cnn-8"}, "c": {"ensemble": ["a", "a"]}}, "a and a are the same teacher; give one of them"),
        (
            {
                "a": {"model": "cnn-8"},
                "b": {"model": "cnn-16"},
                "c": {"ensemble": ["a", "b"]},
                "d": {"model": "cnn-8", "taught_by": "c", "distill": {"feature_weight": 1}},
            },
            "d: distill.feature_weight is not 0, but its teacher c is an ensemble",
        ),
    ],
)
def test_a_chain_that_cannot_be_had_is_refused(teachers: dict[str, Any], words: str) -> None:
    (problem,) = problems_of(lambda: parse(with_teachers({"model": "cnn-8"}, **teachers))).values()
    assert words in problem


def test_a_named_teacher_cannot_be_called_what_the_section_is_called() -> None:
    raw = {**MINIMAL, "teachers": {"teacher": {"model": "cnn-8"}}}
    (problem,) = problems_of(lambda: parse(raw)).values()
    assert "`teachers` has one called 'teacher'" in problem


def test_a_circle_is_told_once() -> None:
    teachers = {name: {"model": "cnn-8", "taught_by": other} for name, other in ("ab", "bc", "ca")}
    (problem,) = problems_of(lambda: parse(with_teachers("a", **teachers))).values()
    assert problem == "a circle of teachers: a -> b -> c -> a"


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({}, "exactly one of model, ensemble, peers; given: none"),
        ({"model": "cnn-8", "peers": ["cnn-8"]}, "given: model, peers"),
        ({"ensemble": ["a", "b"], "seed": 3}, "ensemble stands alone; remove seed"),
        ({"model": "cnn-8", "distill": {}}, "say who teaches it"),
        ({"model": "cnn-8", "search": {"space": SPACE}}, "say who teaches it"),
        ({"model": "cnn-8", "weights": "x.pt", "taught_by": "a"}, "remove taught_by"),
        ({"model": "cnn-8", "weights": "x.pt", "stop_at": 3}, "remove taught_by, generations and stop_at"),
        ({"model": "cnn-8", "stop_at": 70}, "stop_at is 70, but train.epochs plans only 60"),
        ({"model": "cnn-8", "taught_by": "a", "search": {}}, "the assistant's search has an empty space"),
        ({"model": "cnn-8", "generations": 2, "search": {"space": SPACE}}, "a search for each generation"),
        (
            {"model": "cnn-8", "taught_by": "a", "stop_at": 3, "search": {"space": {"train.epochs": {"choice": [4]}}}},
            "stop_at counts the planned train.epochs, which the search varies",
        ),
        ({"model": "cnn-8", "taps": ["a", "b", "a"]}, "names a twice"),
        ({"ensemble": ["a"]}, "at least 2 items"),
        ("nobody", "'nobody' is not one of `teachers` (a, b)"),
        (3, "given 3, expected a section with some of: model, "),
    ],
)
def test_a_teacher_that_makes_no_sense_is_refused(teacher: object, words: str) -> None:
    raw = with_teachers(teacher, a={"model": "cnn-8"}, b={"model": "cnn-16"})
    assert words in "; ".join(problems_of(lambda: parse(raw)).values())


def test_mistakes_in_a_named_teacher_are_found_by_their_path() -> None:
    raw = with_teachers("a", a={"model": "resnet21", "trian": {}}, b={"model": "cnn-8", "train": {"epoch": 3}})
    problems = problems_of(lambda: parse(raw))
    assert "Did you mean 'resnet" in problems["teachers.a.model"]
    assert problems["teachers.a.trian"] == "unknown key. Did you mean 'train'?"
    assert problems["teachers.b.train.epoch"] == "unknown key. Did you mean 'epochs'?"


def test_mistakes_in_an_assistants_search_are_found_before_anything_starts() -> None:
    search = {"space": {"distill.alpha.strat": {"uniform": [0, 1]}}}
    raw = with_teachers("a", a={"model": "cnn-8", "taught_by": "b", "search": search}, b={"model": "cnn-8"})
    (problem,) = problems_of(lambda: parse(raw)).items()
    assert problem[0] == "teachers.a.search.space.distill.alpha.strat"
    raw["teachers"]["a"]["search"] = {"space": {"distill.alpha.start": {"uniform": [0, 2]}}}
    (problem,) = problems_of(lambda: parse(raw)).items()
    assert problem[0] == "teachers.a.search.space"
    assert "alpha must stay within 0 and 1" in problem[1]


def test_an_ensemble_has_no_feature_maps_to_match() -> None:
    raw = with_teachers({"ensemble": ["a", "b"]}, a={"model": "cnn-8"}, b={"model": "cnn-16"})
    raw["distill"] = {"feature_weight": 1}
    (problem,) = problems_of(lambda: parse(raw)).values()
    assert "an ensemble and has no feature maps" in problem


def test_a_temperature_is_not_learned_among_peers() -> None:
    raw = {**with_teachers({"peers": ["cnn-8"]}), "distill": {"learned_temperature": {}}}
    (problem,) = problems_of(lambda: parse(raw)).values()
    assert "among peers every network is student and teacher at once" in problem


def test_a_search_that_would_pair_an_ensemble_with_features_is_refused() -> None:
    space = {"teacher": {"choice": ["a", "both"]}, "distill.feature_weight": {"choice": [0, 1]}}
    raw = with_teachers(
        "a", {"space": space}, a={"model": "cnn-8"}, b={"model": "cnn-16"}, both={"ensemble": ["a", "b"]}
    )
    assert "no feature maps" in problems_of(lambda: parse(raw))["search.space"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"x": {"teacher": "nobody"}}, "'nobody' is not one of"),
        ({"x": {"distill.temprature": 3}}, "unknown key. Did you mean 'temperature'?"),
        ({"x": {"train.optimizer.kind": 3}}, "leads to no field"),
        ({"x": {"data.validation": 0.2}}, "may change fields of train, distill, teacher, student"),
        ({"x": {"train.epochs": 0}}, "greater than or equal to 1"),
        ({"x": {"teacher.train.epochs": 3}}, "takes another teacher by its name"),
        ({"x": {"teacher": {"model": "cnn-12"}}}, "takes another teacher by its name"),
        ({"x": {"train": {"epochs": 3}}}, "expected a field of the section, such as train.epochs"),
        ({"x": {"distill.alpha.strat": 0.5}}, "has no effect: kind fixed reads kind, start"),
        ({"x": {"distill.alpha.end": 0.5}}, "has no effect: kind fixed reads kind, start"),
        ({"x": {"teacher": None, "distill.alpha": 0.5}}, "has no effect on a student alone"),
        ({"best": {}}, "cannot be called 'best'"),
        ({"a/b": {}}, "cannot be called 'a/b'"),
        ({"long" * 20: {}}, "choose a name of at most 60 characters"),
    ],
)
def test_a_row_that_cannot_be_run_is_refused(rows: dict[str, Any], words: str) -> None:
    problems = problems_of(lambda: parse(with_teachers({"model": "cnn-8"}, rows=rows)))
    assert all(path.startswith("final.rows") for path in problems)
    assert words in "; ".join(problems.values())


def test_a_row_may_be_shorter_than_the_searchs_grace() -> None:
    raw = with_teachers({"model": "cnn-8"}, {"stopper": {"grace_epochs": 9}}, {"short": {"train.epochs": 2}})
    changed, _ = row(parse(raw), {"train.epochs": 2})
    assert changed.train.epochs == 2


def test_a_search_of_no_trials_has_no_space() -> None:
    problems = problems_of(lambda: parse(with_teachers({"model": "cnn-8"}, {"trials": 0, "space": SPACE})))
    assert problems == {"search.trials": "is 0, but search.space is not empty; remove one of them"}
