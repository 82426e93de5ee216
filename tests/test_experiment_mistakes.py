"""Mistakes in an experiment file: all at once, with path, what was given and what is allowed."""

import math
from pathlib import Path

import pytest
import yaml

from kdtune.errors import ExperimentError
from kdtune.experiment import load, parse
from tests.experiments import MINIMAL, Write, problems_of, raw_with

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
    with pytest.raises(ExperimentError, match=r"experiment\.yaml: 13 problems\n  - "):
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
    "path", ["integer", "float", "train.interval", "data.floats", "search.function-x", "literal[1]", "(", "train.(", ""]
)
def test_an_unknown_key_is_named_whatever_it_is_called(path: str) -> None:
    problems = problems_of(lambda: parse(raw_with({path: 5})))
    assert problems.keys() == {path}
    assert problems[path].startswith("unknown key.")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("trials", "'search.trials'"),
        ("learning_rate", "'train.learning_rate'"),
        ("train.alpha", "'distill.alpha'"),
        ("seed", "'search.seed'"),
    ],
)
def test_a_key_of_another_section_is_named_with_it(path: str, meant: str) -> None:
    assert problems_of(lambda: parse(raw_with({path: 5}))) == {path: f"unknown key. Did you mean {meant}?"}


def test_an_unknown_key_like_no_other_lists_those_that_are_known() -> None:
    problems = problems_of(lambda: parse(raw_with({"search.stopper.zzz": 1})))
    assert problems == {"search.stopper.zzz": "unknown key. Known: kind, reduction_factor, grace_epochs, brackets."}


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
    assert "expected " in problem


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
        ({"name": "../up"}, "name", "expected letters, digits, '.', '_' and '-', without spaces"),
        ({"name": ""}, "name", "expected letters, digits, '.', '_' and '-', without spaces"),
        ({"data": {"dataset": "folder"}}, "data", "needs `root`"),
        ({"data.root": "somewhere"}, "data", "has no `root`"),
        ({"data.mean": [0.5]}, "data", "give both `mean` and `std`"),
        ({"data.mean": [0.5], "data.std": [0]}, "data.std.0", "greater than 0"),
        ({"train.learning_rate": math.inf}, "train.learning_rate", "finite number"),
        ({"train.nesterov": True, "train.momentum": 0}, "train", "nesterov needs a momentum above 0"),
        ({"train.epochs": 5, "search.stopper.grace_epochs": 6}, "", "5 epochs (train.epochs): lower it"),
        ({"student": "resnet20"}, "student", "given 'resnet20', expected a section with some of: model, options"),
        ({"search.stopper": "asha"}, "search.stopper", "expected a section with some of: kind, "),
        ({"name": "my run"}, "name", "without spaces"),
        ({"storage": "s3:/bucket/runs"}, "storage", "one / where an address has two: s3://bucket/runs"),
        ({"storage": "hdfs://host/runs"}, "storage", "expected a folder, or an address of s3://"),
        ({"storage": "s3://key:secret@bucket/runs"}, "storage", "holds a secret key"),
        ({"storage": "runs\0"}, "storage", ""),
        ({"distill.alpha": "much"}, "distill.alpha.start", "valid number"),
        ({"distill.alpha": None}, "distill.alpha", "expected a number or a schedule"),
        ({"train": None}, "train", "expected a section with some of: epochs, batch_size, "),
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
    assert (load(path).own_teacher.train.epochs, load(path).own_teacher.train.momentum) == (4, 0.5)


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
