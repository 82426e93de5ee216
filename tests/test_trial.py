"""Trials: what a bench starts, what a saved one continues, what runs share, and who may use a run folder."""

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdtune.cache import LogitCache, open_cache
from kdtune.data import Dataset, batches
from kdtune.errors import RunError
from kdtune.experiment import Experiment, load, with_values
from kdtune.experiment.midway import continued
from kdtune.records import EpochRecord
from kdtune.teacher import Teacher
from kdtune.training import loop
from kdtune.trial import Bench, Materials, Silent, at_work, claim, prepare, read_run, remember, views_needed
from tests.conftest import CPU, MakeExperiment

KINDS: dict[str, tuple[dict[str, object], bool]] = {  # name: (values, alone)
    "alone": ({}, True),
    "logits": ({}, False),
    "features": ({"distill.feature_weight": 1}, False),
}


def without_seconds(records: list[EpochRecord]) -> list[EpochRecord]:
    return [dataclasses.replace(record, seconds=0, waited=0, computed=None) for record in records]


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class Heard(Silent):
    """Progress that is written down."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.columns: list[tuple[int, int]] = []
        self.told: list[str] = []

    def dataset_ready(self, dataset: Dataset) -> None:
        self.told.append("dataset")

    def teacher_epoch(self, name: str, record: EpochRecord) -> None:
        self.epochs.append(record.epoch)

    def teacher_ready(self, name: str, teacher: Teacher, dataset: Dataset) -> None:
        self.told.append("teacher")

    def cache_column(self, done: int, views: int) -> None:
        self.columns.append((done, views))

    def cache_ready(self, cache: LogitCache) -> None:
        self.told.append("cache")


# --- the bench


@pytest.mark.parametrize("kind", KINDS)
def test_a_bench_starts_every_kind_of_trial(make_experiment: MakeExperiment, materials: Materials, kind: str) -> None:
    values, alone = KINDS[kind]
    records = list(Bench(materials, CPU).start(make_experiment(values), seed=0, alone=alone).records)
    assert [record.epoch for record in records] == [1, 2]
    assert all(record.val_accuracy is not None for record in records)
    assert {"alone": 1, "logits": 2, "features": 3}[kind] == len(records[-1].terms)
    assert records[-1].loss < records[0].loss


def test_trials_with_other_taps_of_the_same_teacher_compare_those(
    make_experiment: MakeExperiment, materials: Materials
) -> None:
    bench = Bench(materials, CPU)
    one, other = (
        make_experiment({"distill.feature_weight": 1, "student.taps": ["blocks.0"], "teacher.taps": [tap]})
        for tap in ("blocks.0", "blocks.1")
    )
    assert bench.tapped_teacher(one).taps == ("blocks.0",)
    assert bench.tapped_teacher(other).taps == ("blocks.1",)
    student = make_experiment({"distill.feature_weight": 1, "student.model": "cnn-12", "teacher.taps": ["blocks.1"]})
    assert bench.tapped_teacher(student) is bench.tapped_teacher(other)  # loaded once, whoever learns from it


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_trial_twice_is_the_same_bit_for_bit(
    make_experiment: MakeExperiment, materials: Materials, kind: str
) -> None:
    values, alone = KINDS[kind]
    bench, experiment = Bench(materials, CPU), make_experiment(values)
    one, other = (bench.start(experiment, seed=0, alone=alone) for _ in range(2))
    assert without_seconds(list(one.records)) == without_seconds(list(other.records))
    assert same(one.student.network, other.student.network)


def watch_indices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every training image that a batch holds from here on."""
    seen: list[int] = []

    def watched(*arguments: Any, **named: Any) -> Any:
        for batch in batches(*arguments, **named):
            seen.extend(batch.indices.tolist())
            yield batch

    monkeypatch.setattr(loop, "batches", watched)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_trial_uses_every_training_image_and_measures_nothing(
    make_experiment: MakeExperiment, materials: Materials, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    seen = watch_indices(monkeypatch)
    monkeypatch.delattr(loop, "evaluate")
    values, alone = KINDS[kind]
    trial = Bench(materials, CPU).start(make_experiment(values), seed=0, alone=alone, whole=True)
    record = next(trial.records)
    assert sorted(seen) == list(range(len(materials.dataset.labels)))
    assert (record.val_accuracy, record.val_loss) == (None, None)


def test_a_trial_of_the_search_never_trains_on_validation_images(
    experiment: Experiment, materials: Materials, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_indices(monkeypatch)
    next(Bench(materials, CPU).start(experiment, seed=0).records)
    assert sorted(seen) == materials.dataset.fit.tolist()
    assert not set(seen) & set(materials.dataset.validation.tolist())


@pytest.mark.parametrize("whole", [False, True], ids=["search", "final stage"])
def test_a_logit_only_trial_never_loads_the_teacher(
    experiment: Experiment, materials: Materials, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(Teacher, "load", _refuse)
    assert len(list(Bench(materials, CPU).start(experiment, seed=0, whole=whole).records)) == 2


def _refuse(teacher: Teacher, device: torch.device) -> nn.Module:
    raise AssertionError("the teacher was loaded")


# --- saving


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_trial_continues_bit_for_bit(
    make_experiment: MakeExperiment, materials: Materials, tmp_path: Path, kind: str
) -> None:
    values, alone = KINDS[kind]
    experiment = make_experiment(
        {**values, "train.epochs": 3, "distill.temperature": {"kind": "linear", "start": 4, "end": 1}}
    )
    uninterrupted = Bench(materials, CPU).start(experiment, seed=0, alone=alone)
    said = list(uninterrupted.records)
    first = Bench(materials, CPU).start(experiment, seed=0, alone=alone)
    next(first.records)
    first.save(tmp_path / "trial.pt")
    second = Bench(materials, CPU).start(experiment, seed=0, alone=alone)
    torch.manual_seed(12345)
    second.restore((tmp_path / "trial.pt").read_bytes())
    assert without_seconds(list(second.records)) == without_seconds(said[1:])
    assert same(second.student.state.learner, uninterrupted.student.state.learner)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["trial.pt"]


@pytest.mark.parametrize("kind", ["logits", "features"])
def test_a_fork_and_a_run_of_its_schedule_from_the_beginning_are_the_same_bit_for_bit(
    make_experiment: MakeExperiment, materials: Materials, kind: str
) -> None:
    """What population-based training relies on: it goes on from another trial's state with other values."""
    parent = {"distill.temperature": 4.0, "distill.alpha": 0.9} | (
        {"distill.feature_weight": 1.0} if kind == "features" else {}
    )
    base = make_experiment({"train.epochs": 3})
    fork = continued(parent, {path: 0.7 * value for path, value in parent.items()}, 1, 3)
    first = Bench(materials, CPU).start(with_values(base, parent), seed=0)
    next(first.records)
    second = Bench(materials, CPU).start(with_values(base, fork), seed=0)
    second.restore(first.state())
    said = list(second.records)
    assert [round(record.temperature or 0, 9) for record in said] == [2.8, 2.8]
    whole = Bench(materials, CPU).start(with_values(base, fork), seed=0)
    assert without_seconds(list(whole.records))[1:] == without_seconds(said)
    assert same(second.student.state.learner, whole.student.state.learner)
    assert list(first.records)[-1].loss != said[-1].loss


def test_a_trial_that_runs_already_can_be_taken_back(
    make_experiment: MakeExperiment, materials: Materials, tmp_path: Path
) -> None:
    """Tune loads an earlier checkpoint into an actor whose trial is further on."""
    trial = Bench(materials, CPU).start(make_experiment({"train.epochs": 3}), seed=0)
    records = [next(trial.records)]
    trial.save(tmp_path / "trial.pt")
    records += [next(trial.records), next(trial.records)]
    trial.restore((tmp_path / "trial.pt").read_bytes())
    assert without_seconds(list(trial.records)) == without_seconds(records[1:])


def test_a_save_that_fails_leaves_the_one_before(
    experiment: Experiment, materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Bench(materials, CPU).start(experiment, seed=0)
    trial.save(tmp_path / "trial.pt")
    before = (tmp_path / "trial.pt").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        trial.save(tmp_path / "trial.pt")
    assert (tmp_path / "trial.pt").read_bytes() == before


def test_a_resumable_trial_goes_on_from_its_last_save_and_knows_its_past(
    make_experiment: MakeExperiment, materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdtune.trial.running.SAVE_EVERY_S", -1.0)  # save after every epoch
    experiment, path = make_experiment({"train.epochs": 3}), tmp_path / "trial.pt"
    uninterrupted, first, second, third = (Bench(materials, CPU).start(experiment, seed=0) for _ in range(4))
    said = without_seconds(list(uninterrupted.records))
    records = first.resumable(path)
    assert [next(records).epoch, next(records).epoch] == [1, 2]  # the second is not saved yet
    assert without_seconds(list(second.resumable(path))) == said[1:]
    assert without_seconds(second.history) == said
    assert same(second.student.network, uninterrupted.student.network)
    assert list(third.resumable(path)) == []  # saved at the end too
    assert without_seconds(third.history) == said
    assert same(third.student.network, uninterrupted.student.network)


# --- materials


@pytest.mark.parametrize("kind", KINDS)
def test_materials_travel_in_a_pickle(make_experiment: MakeExperiment, materials: Materials, kind: str) -> None:
    values, alone = KINDS[kind]
    travelled: Materials = pickle.loads(pickle.dumps(materials))
    here, there = (
        next(Bench(m, CPU).start(make_experiment(values), seed=0, alone=alone).records) for m in (materials, travelled)
    )
    assert without_seconds([there]) == without_seconds([here])


def test_experiments_that_differ_only_in_distillation_share_teacher_and_cache(
    make_experiment: MakeExperiment,
) -> None:
    first, second = Heard(), Heard()
    one = prepare(make_experiment(), CPU, first, complete=True)
    kept = files_of(one)
    values = {"name": "other", "distill.alpha": 0.3, "distill.temperature": 7, "distill.feature_weight": 1}
    other = prepare(make_experiment(values), CPU, second, complete=True)
    assert (first.epochs, first.columns) == ([1, 2, 3], [(0, 2), (1, 2)])
    assert (second.epochs, second.columns) == ([], [(0, 2), (1, 2)])
    assert first.told == second.told == ["dataset", "teacher", "cache"]
    assert other.teachers == one.teachers
    assert other.caches == one.caches
    assert files_of(other) == kept  # found, not computed again


def files_of(materials: Materials) -> dict[str, int]:
    """Every file of the cache, and when it was written."""
    folder = Path(materials.caches["teacher"].address)
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.is_file()}


def test_a_longer_run_adds_columns_to_the_same_cache(make_experiment: MakeExperiment) -> None:
    short = prepare(make_experiment(), CPU, Silent(), complete=True)
    cache = open_cache(short.caches["teacher"])
    assert (short.columns, cache.columns()) == (2, [0, 1])
    before = [cache.seal(view) for view in range(2)]
    long = prepare(make_experiment({"train.epochs": 4}), CPU, Silent(), complete=True)
    assert long.caches == short.caches
    assert (long.columns, cache.columns()) == (4, [0, 1, 2, 3])
    assert [cache.seal(view) for view in range(2)] == before


@pytest.mark.parametrize("values", [{"data.view_seed": 1}, {"data.augment": "crop"}])
def test_other_views_are_another_cache(make_experiment: MakeExperiment, values: dict[str, object]) -> None:
    one = prepare(make_experiment({"train.epochs": 1, "teacher.train.epochs": 2}), CPU, Silent())
    other = prepare(make_experiment({"train.epochs": 1, "teacher.train.epochs": 2, **values}), CPU, Silent())
    assert other.caches != one.caches
    first, second = (open_cache(materials.caches["teacher"]) for materials in (one, other))
    assert first.columns() == second.columns() == [0]
    assert first.bad_columns() == second.bad_columns() == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"data.augment": "none"}, 1),
        ({}, 2),
        ({"train.epochs": 7}, 7),
        ({"data.views": 5}, 5),
        ({"search.space": {"train.epochs": {"integer": [1, 9]}}}, 9),
        ({"search.space": {"train.epochs": {"choice": [1, 6, 4]}}}, 6),
        ({"search.space": {"train.epochs": {"choice": [3, {"integer": [4, 9]}]}}}, 9),
        ({"train.epochs": 8, "search.space": {"train.epochs": {"integer": [1, 4]}}}, 8),  # textbook KD runs for 8
        ({"data.views": 3, "search.space": {"train.epochs": {"integer": [1, 9]}}}, 3),
        ({"data.augment": "none", "search.space": {"train.epochs": {"integer": [1, 9]}}}, 1),
    ],
)
def test_the_cache_has_the_views_of_the_longest_trial(
    make_experiment: MakeExperiment, values: dict[str, object], expected: int
) -> None:
    assert views_needed(make_experiment(values)) == expected


# --- run folders


def test_a_run_folder_is_made_for_an_experiment_and_taken_up_again_by_it(make_experiment: MakeExperiment) -> None:
    experiment = make_experiment({"distill.alpha": {"kind": "cosine", "start": 0.9, "end": 0.1}})
    folder = claim(experiment)
    assert folder == Path(experiment.storage).resolve() / "tiny"
    assert load(folder / "experiment.yaml") == experiment
    assert read_run(folder) == experiment
    (folder / "trials.jsonl").write_text("{}\n")
    before = (folder / "experiment.yaml").stat().st_mtime_ns
    assert claim(experiment) == folder
    assert (folder / "experiment.yaml").stat().st_mtime_ns == before
    assert (folder / "trials.jsonl").read_text() == "{}\n"


def test_a_run_folder_of_another_experiment_is_refused_by_the_fields_that_differ(
    make_experiment: MakeExperiment,
) -> None:
    folder = claim(make_experiment())
    (folder / "trials.jsonl").write_text("")
    before = (folder / "experiment.yaml").read_bytes()
    with pytest.raises(RunError) as caught:
        claim(make_experiment({"distill.alpha": 0.5, "train.epochs": 3}))
    message = str(caught.value)
    assert "train.epochs: 3 against 2" in message
    assert "distill.alpha: 0.5 against 0.9" in message
    assert "name: " not in message
    assert "--set name=" in message
    assert sorted(file.name for file in folder.iterdir()) == [".lock", "experiment.yaml", "trials.jsonl"]
    assert (folder / "experiment.yaml").read_bytes() == before


@pytest.mark.parametrize(("stopper", "extends"), [("asha", True), ("population", False)])
def test_a_search_may_have_more_trials_later_unless_they_are_a_populations(
    make_experiment: MakeExperiment, stopper: str, extends: bool
) -> None:
    searching: dict[str, object] = {
        "train.epochs": 4,
        "search": {"trials": 4, "space": {"distill.alpha": {"uniform": [0, 1]}}, "stopper": {"kind": stopper}},
    }
    folder = claim(make_experiment(searching))
    (folder / "trials.jsonl").write_text("{}\n")
    more = make_experiment({**searching, "search.trials": 8})
    if extends:
        assert claim(more) == folder
    else:
        with pytest.raises(RunError, match=r"search\.trials: 8 against 4"):
            claim(more)


def test_a_file_may_be_corrected_as_long_as_nothing_has_come_of_it(make_experiment: MakeExperiment) -> None:
    claim(make_experiment())
    corrected = make_experiment({"train.epochs": 3})
    assert read_run(claim(corrected)) == corrected


def test_a_run_that_is_just_beginning_keeps_its_experiment(make_experiment: MakeExperiment) -> None:
    folder = claim(make_experiment())
    with at_work(folder), pytest.raises(RunError, match="another kdtune is at work"):
        claim(make_experiment({"train.epochs": 3}))
    assert read_run(folder) == make_experiment()


def test_one_process_at_a_time_works_in_a_run_folder(experiment: Experiment) -> None:
    folder = claim(experiment)
    with at_work(folder), pytest.raises(RunError, match="another kdtune is at work"), at_work(folder):
        pass
    with at_work(folder):
        pass


def test_a_run_does_not_go_on_with_another_teacher_or_other_data(experiment: Experiment, materials: Materials) -> None:
    folder = claim(experiment)
    dataset, teacher = materials.dataset, materials.teachers["teacher"]
    remember(folder, materials)
    remember(folder, materials)
    other = {"teacher": dataclasses.replace(teacher, fingerprint="0")}
    with pytest.raises(RunError, match="another teacher teacher:"):
        remember(folder, dataclasses.replace(materials, teachers=other))
    with pytest.raises(RunError, match="another teacher large:"):
        remember(folder, dataclasses.replace(materials, teachers={"teacher": teacher, "large": teacher}))
    replaced = dataclasses.replace(dataset, fingerprint="0", mean=(0.5,))
    with pytest.raises(RunError, match="another dataset and mean:"):
        remember(folder, dataclasses.replace(materials, dataset=replaced))


def test_a_foreign_folder_is_refused_and_left_alone(experiment: Experiment) -> None:
    folder = Path(experiment.storage) / "tiny"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is no run of kdtune"):
        claim(experiment)
    assert [file.name for file in folder.iterdir()] == ["thesis.tex"]


def test_a_folder_whose_claim_was_cut_short_can_be_claimed_again(experiment: Experiment) -> None:
    folder = Path(experiment.storage) / "tiny"
    folder.mkdir(parents=True)
    (folder / ".experiment.yaml.123.part").write_text("name: ti")
    assert load(claim(experiment) / "experiment.yaml") == experiment


def test_a_file_where_the_folder_should_be_is_an_error_that_says_what_to_set(experiment: Experiment) -> None:
    Path(experiment.storage).write_text("")
    with pytest.raises(RunError, match="Set storage to a folder that you can write"):
        claim(experiment)


def test_a_run_folder_that_cannot_be_read_is_refused(experiment: Experiment) -> None:
    folder = claim(experiment)
    (folder / "experiment.yaml").write_text("name: tiny\nstudent: {modle: x}\n")
    (folder / "trials.jsonl").write_text("")
    with pytest.raises(RunError, match="this version cannot read"):
        claim(experiment)


def test_a_suffix_names_another_folder(experiment: Experiment) -> None:
    assert claim(experiment, suffix="-alone").name == "tiny-alone"
    assert claim(experiment).name == "tiny"


def test_a_folder_without_an_experiment_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        read_run(tmp_path)
