"""The experiment file: what loads, its names, the schema."""

import json
from collections.abc import Mapping
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
from kdtune.experiment import differences, dump, json_schema, load, parse, textbook
from kdtune.experiment.images import DatasetName
from kdtune.experiment.networks import MODEL_NAMES
from kdtune.experiment.objective import TEXTBOOK, FeatureLoss, LogitLoss
from kdtune.experiment.schedule import FORMS, Kind
from kdtune.models import MODELS
from kdtune.schedules import SCHEDULES
from tests.experiments import MINIMAL, Write, raw_with

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


@settings(max_examples=50)
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
