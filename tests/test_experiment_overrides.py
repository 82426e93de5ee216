"""`--set path=value`."""

import pytest
import yaml

from kdtune.cli.options import default_file
from kdtune.errors import ExperimentError
from kdtune.experiment import differences, load, space
from tests.experiments import MINIMAL, Write, changed, problems_of


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=40", "train.epochs", 40),
        ("train.learning_rate=1e-3", "train.learning_rate", 0.001),
        ("train.nesterov=true", "train.nesterov", True),
        ("name=other", "name", "other"),
        ("storage=a=b", "storage", "a=b"),
        ("teacher.weights=null", "teacher.weights", None),
        ("teacher.train.epochs=3", "teacher.train.epochs", 3),
        ("train={epochs: 40, momentum: 0.5}", "train.momentum", 0.5),
        ("final.baselines=[]", "final.baselines", ()),
        ("search.stopper.kind=none", "search.stopper.kind", "none"),
        ("search.stopper={kind: none}", "search.stopper.grace_epochs", None),
        ("distill.alpha={kind: linear, start: 0.5, end: 0.1}", "distill.alpha.end", 0.1),
    ],
)
def test_an_override_replaces_a_field(override: str, path: str, value: object) -> None:
    assert space.look_up(changed(override), path) == value


def test_overrides_apply_in_order_and_leave_the_rest_alone() -> None:
    before, after = load(default_file()), changed("train.momentum=0.5", "train.momentum=0.6")
    assert differences(after, before) == [f"train.momentum: 0.6 against {before.train.momentum}"]


def test_a_searched_path_keeps_its_dots_in_an_override() -> None:
    experiment = changed("search.space.train.momentum={uniform: [0.5, 0.9]}")
    assert experiment.search.space["train.momentum"] == {"uniform": [0.5, 0.9]}
    assert len(experiment.search.space) == len(load(default_file()).search.space) + 1


def test_the_whole_space_may_be_overridden() -> None:
    experiment = changed("search.points=[]", "search.space={train.momentum: {uniform: [0.5, 0.9]}}")
    assert experiment.search.space == {"train.momentum": {"uniform": [0.5, 0.9]}}


@pytest.mark.parametrize("number", ["4", "2.5", "1e1"])
def test_overrides_turn_a_number_into_a_schedule_that_starts_there(number: str) -> None:
    experiment = changed(
        f"distill.temperature={number}", "distill.temperature.kind=linear", "distill.temperature.end=2"
    )
    temperature = experiment.distill.temperature
    assert (temperature.kind, temperature.start, temperature.end) == ("linear", float(number), 2)


def test_an_override_makes_the_sections_on_its_way(write: Write) -> None:
    path = write(yaml.safe_dump(MINIMAL))
    assert load(path, ["search.stopper.kind=none", "distill.alpha=0.5"]).search.stopper.kind == "none"


def test_another_stopper_leaves_the_fields_of_the_one_before_behind_and_keeps_what_it_reads_too() -> None:
    assert changed("search.stopper.grace_epochs=5").search.stopper.reduction_factor == 3
    median = changed("search.stopper.grace_epochs=5", "search.stopper.kind=median").search.stopper
    assert median.model_dump() == {"kind": "median", "grace_epochs": 5}
    problems = problems_of(lambda: changed("search.stopper.kind=median", "search.stopper.reduction_factor=4"))
    assert "reduction_factor does nothing" in problems["search.stopper"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs", "expected path=value"),
        ("=3", "expected path=value"),
        ("train..epochs=3", "expected path=value"),
        ("train.epochs=[", "the value of train.epochs is not YAML: '['"),
        ("train={epochs: 1, epochs: 2}", "train"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(override: str, words: str) -> None:
    with pytest.raises(ExperimentError) as refusal:
        changed(override, "another")
    assert [problem.path for problem in refusal.value.problems] == ["--set", "--set"]
    assert words in refusal.value.problems[0].message


def test_an_override_of_an_unknown_field_is_refused() -> None:
    assert problems_of(lambda: changed("train.epoch=3")) == {"train.epoch": "unknown key. Did you mean 'epochs'?"}


def test_fields_of_a_teacher_that_is_named_are_set_where_it_is_described() -> None:
    overrides = ("teachers.large.model=cnn-16", "teacher=large")
    assert changed(*overrides, "teachers.large.train.epochs=3").own_teacher.train.epochs == 3
    refused = problems_of(lambda: changed(*overrides, "teacher.train.epochs=3"))
    assert refused == {"--set": "teacher.train.epochs: `teacher` is the name 'large'; set teachers.large.train.epochs"}


def test_a_field_of_a_row_is_set_by_its_path() -> None:
    rows = changed("final.rows.T 0.5, short.train.epochs=3", "final.rows.other={teacher: null}").final.rows
    assert rows == {"T 0.5, short": {"train.epochs": 3}, "other": {"teacher": None}}


def test_a_path_of_an_assistants_search_is_one_key() -> None:
    small = "teachers.small={model: cnn-8, taught_by: teacher, search: {space: {}}}"
    experiment = changed(small, "teachers.small.search.space.distill.alpha.start={uniform: [0, 1]}")
    search = experiment.teachers["small"].search
    assert search is not None
    assert list(search.space) == ["distill.alpha.start"]
