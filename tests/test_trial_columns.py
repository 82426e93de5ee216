"""Columns that appear while trials run: they change no student, are computed once for all, and fit on the disk."""

import json
import shutil
import threading
from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdtune.cache import LogitCache, open_cache
from kdtune.data import Batch, Dataset, batches, load_dataset
from kdtune.errors import CacheError
from kdtune.experiment import Data, Experiment, Train
from kdtune.models import build_model
from kdtune.records import EpochRecord
from kdtune.training import CrossEntropy, loop, new_state, train
from kdtune.trial import Bench, Materials, Silent, Trial, columns_of, prepare, remember
from tests.conftest import CPU, MakeExperiment, tiny_experiment
from tests.toy_teachers import SIDE, begun, questions, same, untrained, with_caches, write_pictures

MLP = "tests.toy_teachers:mlp"
DiskUsage = namedtuple("DiskUsage", "total used free")
Toys = Callable[..., tuple[Experiment, Materials]]


@pytest.fixture
def toys(make_experiment: MakeExperiment, toy: Dataset, tmp_path: Path) -> Toys:
    """A tiny experiment on numbers, four epochs long, with an untrained teacher and no column yet."""

    def lay_out(values: Mapping[str, object] | None = None) -> tuple[Experiment, Materials]:
        experiment = make_experiment({"train.epochs": 4, "train.batch_size": 16, **(values or {})})
        return experiment, begun(experiment, toy, tmp_path / "teacher")

    return lay_out


def without_seconds(records: list[EpochRecord]) -> list[EpochRecord]:
    return [replace(record, seconds=0, waited=0, computed=None) for record in records]


def cache_of(materials: Materials) -> LogitCache:
    return open_cache(materials.caches["teacher"])


# --- the student is the same


@pytest.fixture
def on_pictures(tmp_path: Path) -> tuple[Experiment, Materials]:
    root = write_pictures(tmp_path / "pictures")
    data = {"dataset": "folder", "root": str(root), "image_size": SIDE, "augment": "random-resized-crop-flip"}
    values = {"data": data, "train.epochs": 2, "train.batch_size": 16, "student.model": MLP}
    experiment = tiny_experiment(tmp_path / "runs", {**values, "student.options": {"dropout": 0.3}})
    return experiment, begun(experiment, load_dataset(experiment.data), tmp_path / "teacher")


@pytest.fixture(params=["mlp with dropout", "cnn with dropout", "cnn", "pictures"])
def lazy(
    request: pytest.FixtureRequest, toys: Toys, on_pictures: tuple[Experiment, Materials]
) -> tuple[Experiment, Materials]:
    """An experiment and materials without a column."""
    if request.param == "pictures":
        return on_pictures
    model = MLP if request.param.startswith("mlp") else "cnn-5-layer"
    options = {"dropout": 0.3} if "dropout" in request.param else {}
    return toys({"student.model": model, "student.options": options})


def test_a_trial_that_computes_its_columns_is_the_one_that_finds_them(lazy: tuple[Experiment, Materials]) -> None:
    """Bit for bit. Loading a teacher draws random numbers, for weights that are replaced at once."""
    experiment, materials = lazy
    with questions() as asked:
        first, second, third = (Bench(materials, CPU).start(experiment, seed=3) for _ in range(3))
        said = list(first.records)
        assert len(asked) == experiment.views
        torch.rand(7)  # whatever was done before
        assert without_seconds(list(second.records)) == without_seconds(said)
        Path(materials.caches["teacher"].address, "00001.json").unlink()  # computed anew in the middle of the run
        assert without_seconds(list(third.records)) == without_seconds(said)
        assert len(asked) == experiment.views + 1
    assert same(first.student.network, second.student.network)
    assert same(first.student.network, third.student.network)


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("views", ["auto", 3])
def test_a_stopped_and_resumed_trial_is_one_that_never_stopped_while_columns_appear(
    toys: Toys, tmp_path: Path, stop: int, views: object
) -> None:
    values = {"student.model": MLP, "student.options": {"dropout": 0.3}, "data.views": views}
    experiment, materials = toys(values)
    whole = Bench(materials, CPU).start(experiment, seed=3)
    said = without_seconds(list(whole.records))
    shutil.rmtree(materials.caches["teacher"].address)
    _, materials = toys(values)
    stopped, resumed = (Bench(materials, CPU).start(experiment, seed=3) for _ in range(2))
    for _ in range(stop):
        next(stopped.records)
    stopped.save(tmp_path / "trial.pt")
    assert cache_of(materials).columns() == list(range(min(stop, experiment.views)))
    resumed.restore((tmp_path / "trial.pt").read_bytes())
    assert without_seconds(list(resumed.records)) == said[stop:]
    assert without_seconds(resumed.history) == said
    assert same(resumed.student.network, whole.student.network)
    assert cache_of(materials).columns() == list(range(experiment.views))


# --- what is recorded


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Waiting(CrossEntropy):
    """Waits 5 s before every epoch; a step takes 1 s."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def begin_epoch(self, epoch: int, epochs: int, column: int) -> Mapping[str, float]:
        self.clock.now += 5
        return {}

    def __call__(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        self.clock.now += 1
        return super().__call__(outputs, batch)


def seconds_of(materials: Materials, view: int) -> float:
    seal = cache_of(materials).seal(view)
    assert seal is not None
    return seal.seconds


def test_what_a_trial_computes_while_it_waits_is_told_apart(lazy: tuple[Experiment, Materials]) -> None:
    """Each of three in one process computes what those before have left; a student alone needs no column."""
    experiment, materials = lazy
    bench = Bench(materials, CPU)
    beside = bench.start(experiment, seed=4)
    assert next(beside.records).computed == pytest.approx(seconds_of(materials, 0))
    first, second = (list(bench.start(experiment, seed=3).records) for _ in range(2))
    assert [record.computed for record in first] == [
        0.0, *(pytest.approx(seconds_of(materials, view)) for view in range(1, experiment.views))
    ]  # fmt: skip
    assert next(beside.records).computed == 0.0
    assert all((record.computed or 0) <= record.waited + 1e-3 for record in first)
    assert [record.computed for record in second] == [0.0] * len(first)
    assert [record.computed for record in bench.start(experiment, seed=3, alone=True).records] == [0.0] * len(first)


def test_seconds_before_an_epoch_are_not_seconds_of_the_epoch(toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    config = Train(epochs=3, batch_size=16)
    state = new_state(build_model("cnn-8", toy.shape, 3), config, CPU)
    data = Data(dataset="digits")
    records = list(train(state, Waiting(clock), toy, data, config, toy.fit, seed=0, views=1, validate=True))
    assert [(record.waited, record.seconds) for record in records] == [(5, 4)] * 3  # 50 images make 4 steps
    assert [record.to_json()["waited"] for record in records] == [5] * 3


# --- how often the teacher is asked


def images_in(asked: list[Tensor]) -> int:
    return sum(len(images) for images in asked)


def test_only_the_first_column_is_computed_before_a_trial_begins(
    make_experiment: MakeExperiment, materials: Materials, tmp_path: Path
) -> None:
    experiment = sharing_the_teacher(materials, tmp_path, {"train.epochs": 2})
    with questions() as asked:
        prepared = prepare(experiment, CPU, Silent())
        assert cache_of(prepared).columns() == [0]
        assert images_in(asked) == len(prepared.dataset.labels)
        assert len(list(Bench(prepared, CPU).start(experiment, seed=0).records)) == 2
    assert cache_of(prepared).columns() == [0, 1]
    assert images_in(asked) == 2 * len(prepared.dataset.labels)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.integers(0, 4), max_size=20), views=st.integers(1, 4), stopped=st.sets(st.integers(0, 4)))
def test_trials_in_any_turn_ask_the_teacher_no_more_than_once_a_view_of_an_image(
    make_experiment: MakeExperiment,
    toy: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
    turns: list[int],
    views: int,
    stopped: set[int],
) -> None:
    """Five trials on two benches, as two processes would have, each turn an epoch; some are stopped early."""
    folder = tmp_path_factory.mktemp("shared")
    values = {"train.epochs": 4, "train.batch_size": 64, "data.views": views, "cache.storage": str(folder / "caches")}
    experiment = make_experiment(values)
    materials = begun(experiment, toy, folder / "teacher")
    with questions() as asked:
        benches = [Bench(materials, CPU) for _ in range(2)]
        losses = ("kl", "dkd", "dist", "kl", "kl")
        configured = [with_loss(experiment, loss) for loss in losses]
        trials = [benches[k % 2].start(one, seed=k) for k, one in enumerate(configured)]
        for turn in turns:
            next(trials[turn].records, None)
        for k, trial in enumerate(trials):
            if k not in stopped:
                list(trial.records)
        there = len(cache_of(materials).columns())
        assert images_in(asked) == there * len(toy.labels)
        assert there == views or stopped
        assert there <= views


def with_loss(experiment: Experiment, loss: str) -> Experiment:
    distill = experiment.distill.model_copy(update={"logit_loss": loss})
    return experiment.model_copy(update={"distill": distill})


def test_trials_side_by_side_ask_the_teacher_once_a_view_of_an_image(toys: Toys, toy: Dataset) -> None:
    """Each with a bench of its own; all need the same column first."""
    experiment, materials = toys({"data.views": 3})
    with questions() as asked:
        trials = [Bench(materials, CPU).start(experiment, seed=seed) for seed in range(4)]
        threads = [threading.Thread(target=lambda trial=trial: list(trial.records)) for trial in trials]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [trial.history[-1].epoch for trial in trials] == [4] * 4
    assert images_in(asked) == 3 * len(toy.labels)


def test_the_teacher_is_given_back_once_every_column_is_there(toys: Toys) -> None:
    experiment, materials = toys()
    bench = Bench(materials, CPU)
    trial = bench.start(experiment, seed=0)
    loaded = []
    for _ in trial.records:
        answers = bench.cache(experiment).teacher
        assert answers is not None
        loaded.append(answers.loaded)
    assert loaded == [True, True, True, False]


# --- how many columns fit


def a_disk_with(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(1 << 40, 0, int(free)))


def sharing_the_teacher(materials: Materials, storage: Path, values: Mapping[str, object]) -> Experiment:
    """An experiment whose teacher is that of the session and need not be trained; caches in a folder of its own."""
    kept = Path(materials.teachers["teacher"].folder).parents[1]
    return tiny_experiment(kept, {"cache.storage": str(storage / "caches"), **values})


DIGITS_COLUMN = 1347 * 10 * 2  # bytes: images, classes, float16


def columns_seen(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """View columns of a trial's epochs."""
    columns: list[int] = []

    def watched(*arguments: Any, column: int, **named: Any) -> Any:
        columns.append(column)
        return batches(*arguments, column=column, **named)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "batches", watched)
        list(trial.records)
    return columns


def test_a_disk_for_three_columns_gives_every_student_three_views(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"train.epochs": 5, "train.batch_size": 512}
    experiment = sharing_the_teacher(materials, tmp_path, short)
    a_disk_with(monkeypatch, 3.5 * DIGITS_COLUMN / 0.9)
    prepared = prepare(experiment, CPU, Silent())
    assert prepared.columns == 3
    with_features = sharing_the_teacher(materials, tmp_path, {**short, "distill.feature_weight": 1})
    for one, alone in ((experiment, False), (experiment, True), (with_features, False)):
        trial = Bench(prepared, CPU).start(one, seed=0, alone=alone)
        assert columns_seen(trial, monkeypatch) == [0, 1, 2, 0, 1]
    assert cache_of(prepared).columns() == [0, 1, 2]


@pytest.mark.parametrize("later", [0.0, 1e12], ids=["full", "empty"])
def test_a_run_keeps_the_number_of_columns_that_it_began_with_whatever_becomes_of_the_disk(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: float
) -> None:
    experiment = sharing_the_teacher(materials, tmp_path, {"train.epochs": 5})
    folder = tmp_path / "run"
    folder.mkdir()
    assert columns_of(folder) is None
    a_disk_with(monkeypatch, 3.5 * DIGITS_COLUMN / 0.9)
    remember(folder, prepare(experiment, CPU, Silent(), columns=columns_of(folder)))
    assert json.loads((folder / "materials.json").read_text())["columns"] == columns_of(folder) == 3
    a_disk_with(monkeypatch, later)
    again = prepare(experiment, CPU, Silent(), columns=columns_of(folder))
    assert again.columns == Bench(again, CPU).cache(experiment).views == 3
    remember(folder, again)
    assert columns_of(folder) == 3


def test_views_that_were_asked_for_and_do_not_fit_are_refused_with_bytes_and_a_remedy(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = sharing_the_teacher(materials, tmp_path, {"data.views": 8})
    a_disk_with(monkeypatch, 3.5 * DIGITS_COLUMN / 0.9)
    with questions() as asked, pytest.raises(CacheError) as refusal:
        prepare(experiment, CPU, Silent())
    message = str(refusal.value)
    assert message.startswith("8 view columns need 0.22 MB more")  # 8 x 1347 x 10 x 2 bytes
    assert "where 0.10 MB are free" in message
    for remedy in ("Free some space", "cache.storage", "data.views", "cache.top_k"):
        assert remedy in message
    assert asked == []


def test_a_disk_without_room_for_one_column_is_refused_whatever_was_asked_for(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_disk_with(monkeypatch, 0.9 * DIGITS_COLUMN)
    with pytest.raises(CacheError, match=r"^1 view column needs 0\.03 MB more .* where 0\.02 MB are free"):
        prepare(sharing_the_teacher(materials, tmp_path, {"train.epochs": 5}), CPU, Silent())


@pytest.mark.parametrize("values", [{}, {"cache.storage": "s3x://nowhere/caches"}], ids=["a disk", "an address"])
def test_a_storage_that_will_not_do_is_told_before_a_teacher_is_trained(
    make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, values: dict[str, str]
) -> None:
    a_disk_with(monkeypatch, 0.9 * DIGITS_COLUMN)
    experiment = make_experiment(values)
    with pytest.raises(CacheError, match="s3x" if values else "1 view column needs"):
        prepare(experiment, CPU, Silent())
    assert not list(Path(experiment.storage).rglob("teacher.json"))


@pytest.mark.parametrize(("there", "expected"), [(0, 2), (2, 3), (4, 4)])
def test_the_caches_of_several_teachers_share_the_disk(
    make_experiment: MakeExperiment,
    toy: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: int,
    expected: int,
) -> None:
    """Room for five columns more; of one teacher some are there already."""
    experiment = make_experiment({"train.epochs": 5})
    one, other = (untrained(experiment, toy, tmp_path / str(seed), seed) for seed in (1, 2))
    cache = Bench(with_caches(experiment, toy, {"teacher": one}), CPU).cache(experiment)
    for view in range(there):
        cache.ensure(view)
    a_disk_with(monkeypatch, 5.5 * len(toy.labels) * 3 * 2 / 0.9)
    both = with_caches(experiment, toy, {"teacher": one, "other": other})
    assert both.columns == expected
    assert [open_cache(place).columns() for place in both.caches.values()] == [list(range(there)), []]


def test_copies_lie_in_the_same_folder_for_every_process_wherever_it_runs(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = sharing_the_teacher(materials, tmp_path, {"cache.copies": "scratch", "train.epochs": 1})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    prepared = prepare(experiment, CPU, Silent())
    monkeypatch.chdir(tmp_path)
    list(Bench(prepared, CPU).start(experiment, seed=0).records)
    assert [path.name for path in tmp_path.glob("**/scratch/*/*.arrow")] == ["00000.arrow"]
