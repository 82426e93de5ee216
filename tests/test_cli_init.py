"""`kdtune init`: what it writes is an experiment at once, explained, and never over something else."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kdtune.cli import app
from kdtune.cli.init import USUAL
from kdtune.data import Dataset
from kdtune.errors import KdtuneError
from kdtune.experiment import load
from kdtune.experiment.images import DOWNLOADABLE, DatasetName
from kdtune.trial import check_networks
from tests.test_search_spaces import SHAPES, pretended


def init(file: Path, *flags: str, answers: str | None = None) -> Result:
    done = CliRunner().invoke(app, ["init", str(file), *flags], input=answers)
    if isinstance(done.exception, KdtuneError):
        raise done.exception
    return done


@pytest.mark.parametrize("dataset", DatasetName.__args__)  # type: ignore[attr-defined]
def test_every_data_set_has_a_file_whose_networks_fit(
    dataset: str, toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {**SHAPES, "fashion-mnist": SHAPES["mnist"], "folder": ((3, 64, 64), 7)}
    monkeypatch.setattr("tests.test_search_spaces.SHAPES", shapes)
    small = ["--image-size", "64"] if dataset == "folder" else []
    assert init(tmp_path / "mine.yaml", "--dataset", dataset, *small, "--yes").exit_code == 0
    experiment = load(tmp_path / "mine.yaml")
    assert experiment.data.dataset == dataset
    assert experiment.name == "mine"
    assert experiment.data.download == (dataset in DOWNLOADABLE)
    assert experiment.own_teacher.model == USUAL[dataset].teacher
    check_networks(experiment, pretended(toy, experiment))
    assert experiment.search.stopper.grace_epochs is not None
    assert experiment.search.stopper.grace_epochs >= experiment.train.epochs / 10


def test_the_line_about_feature_maps_is_one_to_uncomment(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    init(file, "--yes")
    file.write_text(file.read_text().replace("# distill.feature_weight: {", "distill.feature_weight: {"))
    assert "distill.feature_weight" in load(file).search.space


def test_every_section_and_choice_is_explained_in_short_lines(tmp_path: Path) -> None:
    init(tmp_path / "a.yaml", "--yes", "--dataset", "folder")
    text = (tmp_path / "a.yaml").read_text()
    for field in ("dataset", "augment", "validation", "learning_rate", "temperature", "alpha", "feature_weight",
                  "trials", "seeds", "storage", "tracking", "image_size"):  # fmt: skip
        assert re.search(rf"^ *{field}: .*# \w", text, re.MULTILINE), field
    assert max(map(len, text.splitlines())) <= 120


def test_flags_are_taken_and_nothing_is_asked_with_yes(tmp_path: Path) -> None:
    weights = 'with space: "and" quotes.pth'
    flags = ["--dataset", "cifar10", "--root", "/d a/t", "--teacher", "resnet110", "--weights", weights, "--student"]
    init(tmp_path / "a.yaml", *flags, "resnet8", "--epochs", "5", "--trials", "7", "--yes")
    experiment = load(tmp_path / "a.yaml")
    assert experiment.data.root == "/d a/t"
    assert experiment.own_teacher.weights == weights
    assert (experiment.own_teacher.model, experiment.student.model) == ("resnet110", "resnet8")
    assert (experiment.train.epochs, experiment.search.trials) == (5, 7)


def test_what_no_flag_says_is_asked_and_enter_takes_what_is_usual(tmp_path: Path) -> None:
    done = init(tmp_path / "a.yaml", "--student", "resnet8", answers="cifar10\n/mine\n\nt.pth\n9\n\n")
    assert done.exit_code == 0, done.output
    assert "Student" not in done.output
    experiment = load(tmp_path / "a.yaml")
    assert (experiment.data.root, experiment.own_teacher.weights) == ("/mine", "t.pth")
    assert (experiment.own_teacher.model, experiment.train.epochs, experiment.search.trials) == ("resnet56", 9, 30)


def test_who_stops_at_a_question_has_no_file(tmp_path: Path) -> None:
    done = init(tmp_path / "a.yaml", answers="digits\n")
    assert done.exit_code == 130
    assert "Stopped; nothing was written" in done.output
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays_unless_it_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("mine")
    for flags, answers in ((("--yes",), None), ((), "n\n")):
        with pytest.raises(KdtuneError, match="is there already"):
            init(file, *flags, answers=answers)
        assert file.read_text() == "mine"
    init(file, "--yes", "--force")
    assert load(file).name == "a"


def test_mistakes_are_told_and_nothing_is_written(tmp_path: Path) -> None:
    for flags, told in (
        (("--dataset", "cifar11"), r"'cifar11' is none of .* Did you mean 'cifar10'"),
        (("--student", "resnet21"), r"student.model: given 'resnet21'"),
        (("--epochs", "0"), r"train.epochs"),
    ):
        with pytest.raises(KdtuneError, match=told):
            init(tmp_path / "a.yaml", "--yes", *flags)
    assert not list(tmp_path.iterdir())


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    init(tmp_path / "ä: b.yaml", "--yes")
    assert load(tmp_path / "ä: b.yaml").name == "b"
    init(tmp_path / "experiment.yaml", "--yes", "--dataset", "mnist")
    assert load(tmp_path / "experiment.yaml").name == "mnist"
