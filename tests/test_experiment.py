"""The experiment file: what loads, what is refused and how, overrides, the search space, the schema."""

import copy
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jsonschema  # type: ignore[import-untyped]  # ray's dependency
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from kdtune.cli.options import default_file
from kdtune.data import DATASETS
from kdtune.distill import FEATURE_LOSSES, LOGIT_LOSSES
from kdtune.errors import ExperimentError
from kdtune.experiment import Experiment, differences, dump, json_schema, load, parse, space, textbook, with_values
from kdtune.experiment.images import DatasetName
from kdtune.experiment.networks import MODEL_NAMES
from kdtune.experiment.objective import TEXTBOOK, FeatureLoss, LogitLoss
from kdtune.experiment.schedule import FORMS, Kind
from kdtune.models import MODELS
from kdtune.schedules import SCHEDULES

MINIMAL: dict[str, Any] = {  # `Any`: YAML, to be changed by tests
    "name": "tiny",
    "data": {"dataset": "digits"},
    "teacher": {"model": "cnn-8-16"},
    "student": {"model": "cnn-8"},
}


def raw_with(values: Mapping[str, object], space: Mapping[str, object] | None = None) -> dict[str, Any]:
    """MINIMAL with dotted paths set, and a search space."""
    raw = copy.deepcopy(MINIMAL)
    for path, value in values.items():
        *owners, name = path.split(".")
        here = raw
        for owner in owners:
            here = here.setdefault(owner, {})
        here[name] = value
    if space is not None:
        raw.setdefault("search", {})["space"] = dict(space)
    return raw


def problems_of(act: Callable[[], object]) -> dict[str, str]:
    """`{dotted path: message}` of the refusal."""
    with pytest.raises(ExperimentError) as refusal:
        act()
    found = {problem.path: problem.message for problem in refusal.value.problems}
    assert len(found) == len(refusal.value.problems)
    for problem in refusal.value.problems:
        assert str(problem) in str(refusal.value)
    return found


def space_problems(space: Mapping[str, object], **values: object) -> dict[str, str]:
    return problems_of(lambda: parse(raw_with(values, space)))


def changed(*overrides: str) -> Experiment:
    return load(default_file(), overrides)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Writes an experiment file."""

    def write_file(content: str | bytes) -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


Write = Callable[[str | bytes], Path]


# --- what loads


def test_the_default_file_loads_and_searches_something() -> None:
    experiment = load(default_file())
    assert (experiment.name, experiment.data.dataset) == ("digits", "digits")
    assert experiment.search.space


def test_a_minimal_file_takes_its_defaults_from_the_models() -> None:
    experiment = parse(MINIMAL)
    assert experiment == parse({**MINIMAL, "train": {}, "distill": {}, "search": {}, "final": {}, "resources": {}})
    assert experiment.distill.temperature.at(0, 10) == 4
    assert experiment.distill.alpha.at(9, 10) == 0.9
    assert experiment.distill.feature_weight.is_zero


def test_the_default_file_survives_dump_and_load(tmp_path: Path) -> None:
    experiment = load(default_file())
    (tmp_path / "again.yaml").write_text(dump(experiment))
    assert load(tmp_path / "again.yaml") == experiment


numbers = st.floats(0.01, 0.99)
schedule_values = st.one_of(
    numbers,
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["linear", "cosine", "exponential"]), "start": numbers, "end": numbers}
    ),
    st.fixed_dictionaries(
        {"kind": st.just("exponential"), "start": st.just(1), "rate": numbers, "floor": numbers},
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("step"),
            "start": numbers,
            "factor": numbers,
            "milestones": st.lists(numbers, min_size=1, max_size=3),
        }
    ),
    st.fixed_dictionaries({"kind": st.just("warmup"), "start": numbers, "end_ratio": st.just(1), "warmup": numbers}),
)
text = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
# Fields with values that are all valid together, whichever of them are there.
VARIATIONS: dict[str, st.SearchStrategy[Any]] = {
    "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    "data.augment": st.sampled_from(["none", "crop", "flip", "crop-flip"]),
    "data.views": st.sampled_from(["auto", 1]),  # more of them only with augmentation
    "data.validation": st.floats(0.01, 0.5),
    "data.view_seed": st.integers(0, 2**31 - 1),
    "teacher.weights": st.none() | text,
    "teacher.train.learning_rate": st.floats(1e-12, 1e3),
    "student.model": st.sampled_from(sorted(MODELS)),
    "train.epochs": st.integers(1, 1000),
    "train.milestones": st.lists(numbers, max_size=3),
    "train.nesterov": st.booleans(),
    "distill.temperature": schedule_values,
    "distill.alpha": schedule_values,
    "distill.feature_weight": schedule_values,
    "distill.scale_by_temperature_squared": st.booleans(),
    "search.sampler": st.sampled_from(["hyperopt", "random"]),
    "search.space": st.fixed_dictionaries(
        {},
        optional={
            "train.learning_rate": st.just({"loguniform": [1e-4, 0.5]}),
            "train.optimizer": st.just({"choice": ["sgd", "adamw"]}),
            "train.momentum": st.just({"uniform": [0.1, 0.9], "when": {"train.optimizer": "sgd"}}),
            "train.warmup": st.just({"choice": [0, {"uniform": [0.1, 0.2]}]}),
            "train.batch_size": st.just({"integer": [16, 64]}),
        },
    ),
    "final.baselines": st.lists(st.sampled_from(["student alone", "textbook KD"]), unique=True),
    "resources.gpus_per_worker": st.just("auto") | st.floats(0, 1),
    "storage": text.filter(lambda storage: "://" not in storage),
}


@settings(max_examples=50, deadline=None)
@given(st.fixed_dictionaries({}, optional=VARIATIONS))
def test_any_valid_experiment_survives_dump_and_load(values: dict[str, object]) -> None:
    experiment = parse(raw_with(values))
    again = parse(yaml.safe_load(dump(experiment)))
    assert again == experiment
    assert differences(again, experiment) == []


def test_differences_are_named_by_their_paths() -> None:
    one = parse(raw_with({"distill.alpha": 0.5}, {"train.momentum": {"uniform": [0.1, 0.2]}}))
    other = parse(raw_with({"distill.alpha": {"kind": "linear", "start": 0.5, "end": 0.1}, "train.epochs": 7}))
    named = [line.split(":")[0] for line in differences(one, other)]
    assert set(named) >= {"train.epochs", "distill.alpha", "distill.alpha.end"}
    assert any(name.startswith("search.space") for name in named)
    assert "train.epochs: 60 against 7" in differences(one, other)
    assert not any(name.startswith(("data", "teacher", "student", "final")) for name in named)


def test_numbers_that_yaml_reads_as_text_are_numbers(write: Write) -> None:
    text = dump(parse(MINIMAL)).replace("learning_rate: 0.1", "learning_rate: 1e-4")
    assert load(write(text)).train.learning_rate == 1e-4


def test_an_experiment_cannot_be_changed() -> None:
    experiment = parse(MINIMAL)
    frozen: list[tuple[BaseModel, str]] = [
        (experiment, "name"),
        (experiment.train, "epochs"),
        (experiment.distill, "alpha"),
        (experiment.distill.alpha, "start"),
        (experiment.search.stopper, "kind"),
    ]
    for model, name in frozen:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, name, getattr(model, name))


def test_textbook_kd_changes_only_the_objective() -> None:
    experiment = parse(raw_with({"distill.feature_loss": "attention", "distill.alpha": 0.1, "train.epochs": 7}))
    known = textbook(experiment)
    assert known.model_copy(update={"distill": experiment.distill}) == experiment
    for name in ("temperature", "alpha", "feature_weight"):
        schedule = getattr(known.distill, name)
        assert (schedule.kind, schedule.start) == ("fixed", TEXTBOOK[name])
    assert (TEXTBOOK["temperature"], TEXTBOOK["alpha"], TEXTBOOK["feature_weight"]) == (4, 0.9, 0)
    assert (known.distill.logit_loss, known.distill.scale_by_temperature_squared) == ("kl", True)


def test_views_are_one_an_epoch_where_images_are_augmented() -> None:
    assert parse(raw_with({"train.epochs": 7})).views == 1
    assert parse(raw_with({"train.epochs": 7, "data.augment": "flip"})).views == 7
    assert parse(raw_with({"train.epochs": 7, "data.augment": "flip", "data.views": 3})).views == 3


# --- names


@pytest.mark.parametrize(
    ("names", "registry"),
    [
        (Literal[MODEL_NAMES], MODELS),
        (DatasetName, DATASETS),
        (LogitLoss, LOGIT_LOSSES),
        (FeatureLoss, FEATURE_LOSSES),
        (Kind, SCHEDULES),
        (Kind, FORMS),
    ],
    ids=["models", "data sets", "logit losses", "feature losses", "schedules", "forms"],
)
def test_the_names_in_files_are_those_of_the_registry(names: object, registry: Mapping[str, object]) -> None:
    assert list(get_args(names)) == list(registry)


# --- mistakes in the file


def test_all_mistakes_are_reported_together_with_their_paths(write: Write) -> None:
    path = write(
        """
        name: two words
        data: {dataset: digits, validation: 0.9, augment: flop}
        teacher: {modle: resnet20}
        train: {epochs: 0, optimizer: sdg, batch_size: many}
        distill: {alpha: 1.5, temperature: {kind: linear, start: 4}}
        search: {space: {train.epoch: {integer: [1, 5]}, train.momentum: {uniform: [1, 0]}}, trails: 5}
        """
    )
    problems = problems_of(lambda: load(path))
    assert problems.keys() == {
        "name",
        "data.validation",
        "data.augment",
        "teacher.model",
        "teacher.modle",
        "student",
        "train.epochs",
        "train.optimizer",
        "train.batch_size",
        "distill.alpha",
        "distill.temperature",
        "search.trails",
        "search.space.train.epoch",
        "search.space.train.momentum",
    }
    assert problems["student"] == "is required"
    assert problems["train.batch_size"].startswith("given 'many', ")
    assert problems["train.epochs"] == "given 0, should be greater than or equal to 1"
    with pytest.raises(ExperimentError, match=r"experiment\.yaml: 14 problems\n  - "):
        load(path)


@pytest.mark.parametrize(
    ("path", "given", "nearest"),
    [
        ("trian", {}, "train"),
        ("train.epoch", 5, "epochs"),
        ("teacher.train.learningrate", 5, "learning_rate"),
        ("distill.temprature", 5, "temperature"),
        ("distill.temperature", {"start": 4, "end_ration": 1}, "end_ratio"),
        ("search.stopper.grace_epoch", 5, "grace_epochs"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(path: str, given: object, nearest: str) -> None:
    (problem,) = problems_of(lambda: parse(raw_with({path: given}))).values()
    assert problem == f"unknown key. Did you mean '{nearest}'?"


@pytest.mark.parametrize(
    "path", ["integer", "float", "train.interval", "data.floats", "search.function-x", "literal[1]"]
)
def test_an_unknown_key_is_named_whatever_it_is_called(path: str) -> None:
    problems = problems_of(lambda: parse(raw_with({path: 5})))
    assert problems.keys() == {path}
    assert problems[path].startswith("unknown key.")


def test_an_unknown_key_like_no_other_lists_those_that_are_known() -> None:
    problems = problems_of(lambda: parse(raw_with({"search.stopper.zzz": 1})))
    assert problems == {"search.stopper.zzz": "unknown key. Known: kind, reduction_factor, grace_epochs."}


@pytest.mark.parametrize(
    ("path", "given", "nearest"),
    [
        ("teacher.model", "resnet-32x4", "resnet32x4"),
        ("student.model", "cnn_16", "cnn-16"),
        ("data.dataset", "digit", "digits"),
        ("distill.feature_loss", "atention", "attention"),
        ("train.optimizer", "adam", "adamw"),
        ("distill.alpha", {"kind": "exponent", "start": 0.5, "end": 0.1}, "exponential"),
        ("final.baselines", ["student alone", "textbook"], "textbook KD"),
    ],
)
def test_a_misspelt_name_names_the_nearest_known_one(path: str, given: object, nearest: str) -> None:
    ((where, problem),) = problems_of(lambda: parse(raw_with({path: given}))).items()
    assert where.startswith(path)
    assert problem.endswith(f"Did you mean '{nearest}'?")
    assert "expected one of " in problem


@pytest.mark.parametrize(
    ("path", "given", "words"),
    [
        ("data.views", "many", "auto"),
        ("data.views", 0, "greater than 0"),
        ("resources.gpus_per_worker", "all", "auto"),
        ("resources.gpus_per_worker", -1, "greater than or equal to 0"),
        ("resources.gpus_per_worker", 2, "one worker drives at most one GPU"),
    ],
)
def test_a_field_that_takes_a_word_or_a_number_is_named_by_its_own_path(path: str, given: object, words: str) -> None:
    with pytest.raises(ExperimentError) as refusal:
        parse(raw_with({path: given}))
    assert {problem.path for problem in refusal.value.problems} == {path}
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "path", "words"),
    [
        ({"name": "../up"}, "name", "should match pattern"),
        ({"name": ""}, "name", "should match pattern"),
        ({"data": {"dataset": "folder"}}, "data", "needs `root`"),
        ({"data.root": "somewhere"}, "data", "for folder data sets; digits has neither"),
        ({"data.mean": [0.5]}, "data", "give both `mean` and `std`"),
        ({"data.mean": [0.5], "data.std": [0]}, "data.std.0", "greater than 0"),
        ({"train.learning_rate": math.inf}, "train.learning_rate", "finite number"),
        ({"train.nesterov": True, "train.momentum": 0}, "train", "nesterov needs a momentum above 0"),
        ({"train.epochs": 5, "search.stopper.grace_epochs": 6}, "", "grace_epochs is 6, but a run has only 5 epochs"),
        ({"storage": "s3://bucket/runs"}, "storage", "given the address 's3://bucket/runs'"),
        ({"storage": "runs\0"}, "storage", ""),
        ({"distill.alpha": "much"}, "distill.alpha.start", "valid number"),
        ({"distill.alpha": None}, "distill.alpha", "expected a number or a schedule"),
        ({"train": None}, "train", "should be a valid dictionary"),
        ({"search.points": [3]}, "search.points.0", "should be a valid dictionary"),
    ],
    ids=str,
)  # fmt: skip
def test_values_that_do_not_go_together_are_refused(values: dict[str, object], path: str, words: str) -> None:
    problems = problems_of(lambda: parse(raw_with(values)))
    assert problems.keys() == {path}
    assert words in problems[path]


@pytest.mark.parametrize("path", ["data.split_seed", "teacher.seed", "search.seed"])
def test_a_seed_that_no_generator_takes_is_refused(path: str) -> None:
    assert problems_of(lambda: parse(raw_with({path: 2**64}))).keys() == {path}


# --- mistakes in the YAML


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name: x\ndata: {a: [1, 2}\n", "YAML error at line 2, column 16: "),
        ("name: x\n\tdata: y\n", "YAML error at line 2, column 1: "),
        ("name: 'x\n", "YAML error at line 2, column 1: "),
        ("name: x\ndata: *nowhere\n", "YAML error at line 2, column 7: found undefined alias"),
        ("name: x\ntrain: {epochs: 3}\nname: y\n", "YAML error at line 3, column 1: key 'name' appears twice"),
        ("train:\n  epochs: 3\n  epochs: 4\n", "YAML error at line 3, column 3: key 'epochs' appears twice"),
        ("search: {points: [{a: 1, a: 2}]}\n", "YAML error at line 1, column 26: key 'a' appears twice"),
        ("? [1, 2]\n: 3\n", "YAML error at line 1, column 3: a key must be plain text"),
        ("name: !!python/object:os.system x\n", "YAML error at line 1, column 7: could not determine a constructor"),
        ("name: 2026-02-31\n", "YAML error: "),
        ("name: " + "[" * 2_000, "YAML error"),
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- name\n", "holds a list"),
        ("just words\n", "holds a str"),
        (b"name: \xff\n", "is not UTF-8 text (byte 6)"),
        (b"name: \x00\n", "YAML error"),
        (b"#" * 1_000_001, "too large for an experiment file"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_text_that_is_no_experiment_is_refused_and_says_where(write: Write, content: str | bytes, words: str) -> None:
    path = write(content)
    problems = problems_of(lambda: load(path))
    assert problems.keys() == {""}
    assert words in problems[""]


def test_a_merged_key_may_be_overridden(write: Write) -> None:
    base = yaml.safe_dump(MINIMAL)
    path = write(base + "train: &short {epochs: 3, momentum: 0.5}\nresources: {}\n")
    assert load(path).train.epochs == 3
    text = base.replace("  model: cnn-8-16", "  model: cnn-8-16\n  train: {<<: *short, epochs: 4}")
    path = write("train: &short {epochs: 3, momentum: 0.5}\n" + text)
    assert (load(path).teacher.train.epochs, load(path).teacher.train.momentum) == (4, 0.5)


def test_a_number_too_long_to_be_printed_is_refused(write: Write) -> None:
    path = write(yaml.safe_dump(MINIMAL) + f"train: {{epochs: 0x{'F' * 5_000}}}\n")
    assert problems_of(lambda: load(path)).keys() == {"train.epochs"}


def test_a_missing_file_names_its_nearest_neighbour(write: Write) -> None:
    path = write("")
    problems = problems_of(lambda: load(path.with_name("experimnet.yaml")))
    assert problems == {"": "no such file. Did you mean 'experiment.yaml'?"}
    assert problems_of(lambda: load(path.parent / "no" / "x.yaml")) == {"": "no such file"}


def test_a_folder_is_no_experiment_file(tmp_path: Path) -> None:
    assert problems_of(lambda: load(tmp_path)) == {"": "cannot be read: Is a directory"}


# --- --set


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


# --- the search space


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("train.epoch", "no field 'train.epoch'. Did you mean 'train.epochs'?"),
        ("distil.alpha.start", "only fields of train and distill can be searched. Did you mean 'distill.alpha.start'?"),
        ("distill.temperature.strat", "Did you mean 'distill.temperature.start'?"),
        ("distill.alpha.start.low", "distill.alpha.start is a plain value and has no fields"),
        ("train", "only fields of train and distill"),
        ("teacher.seed", "only fields of train and distill can be searched"),
        ("search.trials", "only fields of train and distill can be searched"),
        ("train.epochs.", "plain value"),
        ("", "only fields of train and distill"),
    ],
)
def test_a_searched_path_that_does_not_exist_is_refused(path: str, words: str) -> None:
    assert words in space_problems({path: {"uniform": [0.1, 0.2]}})[f"search.space.{path}"]


@pytest.mark.parametrize(
    ("distribution", "words"),
    [
        ({"uniform": [0.5, 0.1]}, "finite low below high, given [0.5, 0.1]"),
        ({"uniform": [0.5, 0.5]}, "finite low below high"),
        ({"uniform": [0.5]}, "takes two numbers [low, high]"),
        ({"uniform": 0.5}, "takes two numbers [low, high]"),
        ({"uniform": ["a", "b"]}, "takes two numbers [low, high]"),
        ({"uniform": [True, 2]}, "takes two numbers [low, high]"),
        ({"uniform": [0, math.inf]}, "finite"),
        ({"uniform": [0, 10**400]}, "takes two numbers [low, high]"),
        ({"loguniform": [0, 1]}, "needs a low above 0"),
        ({"integer": [1.5, 3]}, "takes whole numbers"),
        ({"choice": []}, "takes a list of options"),
        ({"choice": "sgd"}, "takes a list of options"),
        ({"choice": [{"choice": [0.1]}]}, "a value or a plain range"),
        ({"choice": [{"uniform": [0.1, 0.2], "when": {"train.optimizer": "sgd"}}]}, "a value or a plain range"),
        ({"unifrom": [0.1, 0.2]}, "unknown distribution 'unifrom'"),
        ({"unifrom": [0.1, 0.2]}, "Did you mean 'uniform'?"),
        ({"uniform": [0, 1], "choice": [1]}, "expected one of {choice: [a, b]}"),
        ({}, "expected one of {choice: [a, b]}"),
        ({"uniform": [0.1, 0.2], "when": 3}, "`when` takes {path: value}"),
        ({"uniform": [0.1, 0.2], "when": {}}, "`when` takes {path: value}"),
    ],
    ids=str,
)
def test_a_distribution_that_cannot_be_read_is_refused(distribution: dict[str, object], words: str) -> None:
    assert words in space_problems({"train.momentum": distribution})["search.space.train.momentum"]


@pytest.mark.parametrize(
    ("space", "given"),
    [
        ({"distill.alpha.start": {"uniform": [0.2, 1.2]}}, "distill.alpha.start=1.2"),
        ({"distill.alpha.start": {"uniform": [-0.2, 0.9]}}, "distill.alpha.start=-0.2"),
        ({"distill.temperature": {"choice": [4, 0]}}, "distill.temperature=0"),
        ({"train.momentum": {"choice": [0.5, {"uniform": [0.6, 1.5]}]}}, "train.momentum=1.5"),
        ({"train.optimizer": {"choice": ["sgd", "adam"]}}, "train.optimizer='adam'"),
        ({"train.batch_size": {"integer": [1, 64]}}, "train.batch_size=1"),
        (
            {
                "distill.alpha.kind": {"choice": ["fixed", "linear"]},
                "distill.alpha.start": {"uniform": [0.2, 0.8]},
                "distill.alpha.end_ratio": {"uniform": [0.1, 2], "when": {"distill.alpha.kind": "linear"}},
            },
            "distill.alpha.start=0.8, distill.alpha.end_ratio=2.0",  # only both high ends together leave 0 to 1
        ),
    ],
    ids=str,
)
def test_a_range_whose_end_does_not_validate_is_refused(space: dict[str, object], given: str) -> None:
    with pytest.raises(ExperimentError) as refusal:
        parse(raw_with({}, space))
    assert any(problem.path == "search.space" and given in problem.message for problem in refusal.value.problems)


def test_a_run_length_in_the_space_must_leave_room_for_the_grace_epochs() -> None:
    values: dict[str, object] = {"search.stopper.grace_epochs": 5}
    assert parse(raw_with(values, {"train.epochs": {"integer": [5, 9]}}))
    problems = problems_of(lambda: parse(raw_with(values, {"train.epochs": {"integer": [4, 9]}})))
    assert "with train.epochs=4" in problems["search.space"]


@pytest.mark.parametrize(
    ("space", "path", "words"),
    [
        ({"distill.alpha.end": {"uniform": [0.1, 0.2]}}, "distill.alpha.end", "no end in kind fixed"),
        (
            {
                "distill.alpha.kind": {"choice": ["fixed", "cosine"]},
                "distill.alpha.end": {"uniform": [0.1, 0.2], "when": {"distill.alpha.kind": "cosine"}},
                "distill.alpha.rate": {"uniform": [0.1, 0.2], "when": {"distill.alpha.kind": "cosine"}},
            },
            "distill.alpha.rate",
            "no rate in kind cosine",
        ),
        (
            {
                "distill.alpha.kind": {"choice": ["fixed", "cosine"]},
                "distill.alpha.end": {"uniform": [0.1, 0.2], "when": {"distill.alpha.kind": "fixed"}},
            },
            "distill.alpha.end",
            "no end in kind fixed",
        ),
    ],
)
def test_a_parameter_that_no_kind_reads_is_refused(space: dict[str, object], path: str, words: str) -> None:
    problem = space_problems(space)[f"search.space.{path}"]
    assert problem == f"has no effect: {words}"


def test_a_condition_on_a_field_that_does_not_exist_is_refused() -> None:
    given = {"uniform": [0.1, 0.2], "when": {"train.optimiser": "sgd"}}
    problems = space_problems({"train.momentum": given})
    assert "Did you mean 'train.optimizer'?" in problems["search.space.train.momentum.when"]


def test_a_condition_that_never_holds_is_refused() -> None:
    given = {"uniform": [0.1, 0.2], "when": {"train.optimizer": "sdg"}}
    problems = space_problems({"train.momentum": given, "train.optimizer": {"choice": ["sgd", "adamw"]}})
    assert any(path.startswith("search.space.train.momentum") for path in problems)


def test_conditions_in_a_circle_are_refused() -> None:
    circle = {
        "train.momentum": {"uniform": [0.1, 0.2], "when": {"train.warmup": 0.1}},
        "train.warmup": {"uniform": [0.1, 0.2], "when": {"train.momentum": 0.1}},
    }
    assert "in a circle" in space_problems(circle)["search.space"]


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"train.momentun": 0.5}, "train.momentun is not in search.space. Did you mean 'train.momentum'?"),
        ({"train.momentum": 0.9}, "train.momentum: 0.9 lies outside its distribution"),
        ({"train.momentum": "high"}, "lies outside its distribution"),
        ({"train.optimizer": "adam"}, "train.optimizer: 'adam' lies outside its distribution"),
        ({"train.batch_size": 20.5}, "train.batch_size: 20.5 lies outside its distribution"),
    ],
    ids=str,
)
def test_a_point_outside_the_space_is_refused(point: dict[str, object], words: str) -> None:
    searched = {
        "train.momentum": {"uniform": [0.1, 0.6]},
        "train.optimizer": {"choice": ["sgd", "adamw"]},
        "train.batch_size": {"integer": [16, 64]},
    }
    problems = space_problems(searched, **{"search.points": [{"train.momentum": 0.5}, point]})
    assert words in problems["search.points.1"]


def test_a_point_takes_numbers_that_yaml_reads_as_text() -> None:
    searched = {"train.learning_rate": {"loguniform": ["1e-5", 1]}}
    assert parse(raw_with({"search.points": [{"train.learning_rate": "1e-3"}]}, searched))


# --- parameters, samples and points

NESTED: dict[str, Any] = {  # every kind of parameter, conditions on a base value, on a choice and on a condition
    "train.optimizer": {"choice": ["sgd", "adamw"]},
    "train.momentum": {"uniform": [0.1, 0.9], "when": {"train.optimizer": "sgd"}},
    "train.nesterov": {"choice": [False, True], "when": {"train.optimizer": "sgd"}},
    "train.batch_size": {"integer": [16, 64]},
    "train.warmup": {"choice": [0, {"uniform": [0.1, 0.2]}, {"uniform": [0.3, 0.4]}]},
    "distill.temperature.kind": {"choice": ["fixed", "linear", "exponential"]},
    "distill.temperature.end": {"loguniform": [1, 9], "when": {"distill.temperature.kind": ["linear", "exponential"]}},
    "distill.feature_weight": {"choice": [0, {"loguniform": [0.01, 10]}], "when": {"train.precision": "auto"}},
}


@pytest.fixture(scope="module")
def nested() -> Experiment:
    return parse(raw_with({}, NESTED))


def test_a_range_inside_a_choice_is_a_parameter_of_its_own() -> None:
    parameters, problems = space.parse({"train.warmup": NESTED["train.warmup"]})
    assert problems == []
    assert [(p.label, p.kind, p.low, p.high, p.option_of, p.option) for p in parameters] == [
        ("train.warmup", "choice", 0, 0, None, -1),
        ("train.warmup@1", "uniform", 0.1, 0.2, "train.warmup", 1),
        ("train.warmup@2", "uniform", 0.3, 0.4, "train.warmup", 2),
    ]


@pytest.mark.parametrize(
    ("sample", "values"),
    [
        (
            {"train.optimizer": 0, "train.warmup": 0, "distill.temperature.kind": 0, "distill.feature_weight": 0},
            {
                "train.optimizer": "sgd",
                "train.momentum": 0.5,
                "train.nesterov": True,
                "train.batch_size": 21,
                "train.warmup": 0,
                "distill.temperature.kind": "fixed",
                "distill.feature_weight": 0,
            },
        ),
        (
            {"train.optimizer": 1, "train.warmup": 2, "distill.temperature.kind": 2, "distill.feature_weight": 1},
            {
                "train.optimizer": "adamw",
                "train.batch_size": 21,
                "train.warmup": 0.35,
                "distill.temperature.kind": "exponential",
                "distill.temperature.end": 3.0,
                "distill.feature_weight": 0.7,
            },
        ),
    ],
)
def test_only_parameters_whose_conditions_hold_are_active(
    nested: Experiment, sample: dict[str, float], values: dict[str, object]
) -> None:
    parameters, _ = space.parse(NESTED)
    rest = {
        "train.momentum": 0.5,
        "train.nesterov": 1,
        "train.batch_size": 20.6,
        "train.warmup@1": 0.15,
        "train.warmup@2": 0.35,
        "distill.temperature.end": 3.0,
        "distill.feature_weight@1": 0.7,
    }
    found = space.active(parameters, {**rest, **sample}, nested)
    assert found == values
    assert {path: type(value) for path, value in found.items()} == {path: type(v) for path, v in values.items()}


def test_a_condition_may_refer_to_a_field_that_is_not_searched() -> None:
    searched: dict[str, dict[str, object]] = {
        "train.momentum": {"uniform": [0.1, 0.2], "when": {"train.optimizer": "sgd"}}
    }
    parameters, _ = space.parse(searched)
    for optimizer, active in (("sgd", {"train.momentum": 0.15}), ("adamw", {})):
        experiment = parse(raw_with({"train.optimizer": optimizer}))
        assert space.active(parameters, {"train.momentum": 0.15}, experiment) == active


@st.composite
def samples(draw: st.DrawFn) -> dict[str, float]:
    """What a sampler may propose for NESTED: a value of every label."""
    sample: dict[str, float] = {}
    for p in space.parse(NESTED)[0]:
        if p.kind == "choice":
            sample[p.label] = draw(st.integers(0, len(p.options) - 1))
        elif p.kind == "integer":
            sample[p.label] = draw(st.integers(int(p.low), int(p.high)))
        else:
            sample[p.label] = draw(st.floats(p.low, p.high))
    return sample


@given(samples())
def test_a_point_made_from_a_samples_values_has_the_same_values(sample: dict[str, float]) -> None:
    parameters, _ = space.parse(NESTED)
    base = parse(MINIMAL)
    values = space.active(parameters, sample, base)
    point = space.full_point(parameters, values, base)
    assert point.keys() == sample.keys()  # HyperOpt wants full points
    assert space.active(parameters, point, base) == values
    for parameter in parameters:
        within = (
            point[parameter.label] in range(len(parameter.options))
            if parameter.kind == "choice"
            else parameter.low <= point[parameter.label] <= parameter.high
        )
        assert within


@settings(max_examples=50, deadline=None)
@given(samples())
def test_any_sample_gives_a_valid_experiment_with_its_values_in_place(sample: dict[str, float]) -> None:
    base = parse(raw_with({}, NESTED))
    values = space.active(space.parse(NESTED)[0], sample, base)
    trial = with_values(base, values)
    for path, value in values.items():
        here = space.look_up(trial, path)
        assert (here.start if isinstance(value, int | float) and hasattr(here, "start") else here) == value
    assert trial.model_copy(update={"train": base.train, "distill": base.distill}) == base


def test_a_point_takes_what_it_does_not_name_from_the_experiment() -> None:
    searched: dict[str, dict[str, object]] = {
        "train.momentum": {"uniform": [0.1, 0.6]},
        "train.optimizer": {"choice": ["sgd", "adamw"]},
    }
    parameters, _ = space.parse(searched)
    base = parse(raw_with({"train.momentum": 0.3, "train.optimizer": "adamw"}))
    assert space.full_point(parameters, {}, base) == {"train.momentum": 0.3, "train.optimizer": 1}
    assert space.full_point(parameters, {"train.optimizer": "sgd"}, base)["train.optimizer"] == 0


def test_true_is_not_the_option_1() -> None:
    (parameter,), _ = space.parse({"train.nesterov": {"choice": [1, True]}})
    assert (parameter.encode(1), parameter.encode(True), parameter.encode(0)) == (0, 1, None)


def test_sampled_fields_of_a_schedule_lie_over_a_sampled_number() -> None:
    experiment = with_values(
        parse(MINIMAL), {"distill.alpha.end": 0.1, "distill.alpha.kind": "linear", "distill.alpha": 0.5}
    )
    alpha = experiment.distill.alpha
    assert (alpha.kind, alpha.start, alpha.end) == ("linear", 0.5, 0.1)


def test_a_sampled_value_that_does_not_fit_is_refused() -> None:
    assert problems_of(lambda: with_values(parse(MINIMAL), {"distill.alpha.start": 2})).keys() == {"distill.alpha"}


# --- the schema


@pytest.fixture(scope="module")
def validator() -> Any:  # jsonschema is untyped
    schema = json.loads(json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_default_file_fits_the_schema(validator: Any) -> None:
    raw = yaml.safe_load(default_file().read_text())
    assert [error.message for error in validator.iter_errors(raw)] == []
    assert [error.message for error in validator.iter_errors(json.loads(json.dumps(raw)))] == []


def test_a_dumped_experiment_fits_the_schema(validator: Any) -> None:
    assert list(validator.iter_errors(yaml.safe_load(dump(load(default_file()))))) == []


@pytest.mark.parametrize(
    "values",
    [
        {"trian": {}},
        {"teacher.model": "resnet2"},
        {"train.epochs": 0},
        {"distill.alpha": "much"},
        {"distill.alpha": {"kind": "linear", "strat": 1}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_an_editor_should_underline(validator: Any, values: dict[str, object]) -> None:
    assert len(list(validator.iter_errors(raw_with(values)))) == 1


def test_the_schema_says_a_sentence_on_every_field() -> None:
    schema = json.loads(json_schema())
    sections = [schema, *schema["$defs"].values()]
    silent = [
        f"{section.get('title')}.{name}"
        for section in sections
        for name, field in section.get("properties", {}).items()
        if "description" not in field and "$ref" not in field and "allOf" not in field
    ]
    assert silent == []
