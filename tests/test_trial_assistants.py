"""What a run knows of its assistants: whose search found their settings, and whether their features fit."""

import json

import pytest

from kdtune.data import Dataset
from kdtune.errors import ExperimentError, RunError, TeacherError
from kdtune.experiment import Experiment
from kdtune.records import EpochRecord
from kdtune.trial import assistant_folder, check_networks, claim, with_assistants
from tests.conftest import MakeExperiment

EPOCH = EpochRecord(
    epoch=1, epochs=1, loss=1.0, terms={}, val_accuracy=0.5, val_loss=1.0, learning_rate=0.1, seconds=1.0
)


def with_a_search(make_experiment: MakeExperiment, **values: object) -> Experiment:
    search = {"trials": 2, "space": {"distill.temperature.start": {"uniform": [1, 8]}}}
    middle = {"model": "cnn-16", "taught_by": "large", "search": search}
    teachers = {"large": {"model": "cnn-16-32"}, "middle": middle}
    dotted = {path.replace("__", "."): value for path, value in values.items()}
    return make_experiment({"teachers": teachers, "teacher": "middle", **dotted})


@pytest.fixture
def over(make_experiment: MakeExperiment) -> Experiment:
    """An experiment whose assistant's search is over."""
    experiment = with_a_search(make_experiment)
    claim(experiment)
    folder = assistant_folder(experiment, "middle")
    (folder / "final").mkdir(parents=True)
    line = {"trial": "0000", "config": {"distill.temperature.start": 3.0}, **EPOCH.to_json()}
    (folder / "trials.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "final" / "winner.json").write_text(json.dumps({"trial": "0000"}))
    return experiment


def test_what_an_assistants_search_has_found_is_taken_from_the_run(over: Experiment) -> None:
    found = with_assistants(over).all_teachers["middle"].distill
    assert found is not None
    assert found.temperature.start == 3


def test_before_its_search_an_assistant_is_not_known(make_experiment: MakeExperiment) -> None:
    with pytest.raises(TeacherError, match="run `kdtune search` first"):
        with_assistants(with_a_search(make_experiment))


@pytest.mark.parametrize(
    "values",
    [{"data__split_seed": 1}, {"teachers__large": {"model": "cnn-8"}}, {"teachers__middle__model": "cnn-12"}],
    ids=["other data", "another teacher", "another assistant"],
)
def test_what_another_search_has_found_is_not_taken(
    over: Experiment, make_experiment: MakeExperiment, values: dict[str, object]
) -> None:
    with pytest.raises(RunError, match="is of another search for the assistant 'middle'"):
        with_assistants(with_a_search(make_experiment, **values))


def test_the_students_own_settings_do_not_matter_to_an_assistants_search(
    over: Experiment, make_experiment: MakeExperiment
) -> None:
    other = with_assistants(with_a_search(make_experiment, train__epochs=1, student__model="cnn-12"))
    assert other.all_teachers == with_assistants(over).all_teachers


def test_features_of_generations_are_checked_before_the_first_is_trained(
    make_experiment: MakeExperiment, digits: Dataset
) -> None:
    teacher = {"model": "cnn-8-16", "generations": 2, "distill": {"feature_weight": 1}, "taps": ["nowhere"]}
    with pytest.raises(ExperimentError, match=r"1 problem\n  - teacher\.taps: .* has no module 'nowhere'"):
        check_networks(make_experiment({"teacher": teacher}), digits)


def test_a_row_of_a_student_alone_needs_no_features_that_match(
    make_experiment: MakeExperiment, digits: Dataset
) -> None:
    rows = {"alone": {"teacher": None, "student.model": "mlp-800-800"}}
    attention = {"distill.feature_weight": 1, "distill.feature_loss": "attention"}
    check_networks(make_experiment({**attention, "final.rows": rows}), digits)
    with pytest.raises(ExperimentError, match="attention cannot compare"):
        check_networks(make_experiment({**attention, "final.rows": {"x": {"student.model": "mlp-800-800"}}}), digits)


def test_every_searched_teacher_is_checked_with_every_searched_feature_loss(
    make_experiment: MakeExperiment, digits: Dataset
) -> None:
    space = {"teacher": {"choice": ["maps", "vectors"]}, "distill.feature_loss": {"choice": ["rkd", "attention"]}}
    teachers = {"maps": {"model": "cnn-16"}, "vectors": {"model": "mlp-800-800"}}
    features = {"distill.feature_weight": 1, "distill.feature_loss": "rkd"}
    experiment = make_experiment({**features, "teachers": teachers, "teacher": "maps", "search.space": space})
    with pytest.raises(ExperimentError, match="attention cannot compare"):
        check_networks(experiment, digits)
