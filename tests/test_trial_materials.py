"""What a search prepares where there are several teachers, peers or few labels, and what a bench starts from it."""

import errno
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdtune.data import batches
from kdtune.errors import CacheError
from kdtune.experiment import Experiment
from kdtune.training import loop
from kdtune.trial import Bench, Materials, Silent, claim, prepare, remember, run_folder, views_needed
from tests.conftest import CPU, MakeExperiment

SHORT = {"epochs": 2, "batch_size": 32, "optimizer": "adamw", "learning_rate": 0.02}
LARGE: dict[str, Any] = {"model": "cnn-8-16", "train": {**SHORT, "epochs": 3}}
ASSISTANT: dict[str, Any] = {"model": "cnn-16-32", "taught_by": "large", "train": SHORT}


def test_there_is_a_cache_for_each_teacher_of_students_and_none_for_others(make_experiment: MakeExperiment) -> None:
    experiment = make_experiment(
        {
            "teachers": {"large": LARGE, "mid": {**ASSISTANT, "train": {**SHORT, "epochs": 5}}},
            "teacher": "mid",
            "final": {"rows": {"online": {"teacher": "peers"}, "longer": {"train.epochs": 4}}},
            "teachers.peers": {"peers": ["cnn-8"]},
        }
    )
    materials = prepare(experiment, CPU, Silent())
    assert list(materials.teachers) == ["large", "mid"]
    assert list(materials.caches) == ["mid"]
    assert views_needed(experiment) == 4  # of the row, not of the assistant
    assert materials.columns == Bench(materials, CPU).cache(experiment).views == 4


def test_a_bench_starts_peers_without_a_teacher_and_anybody_alone(make_experiment: MakeExperiment) -> None:
    experiment = make_experiment({"teacher": {"peers": ["cnn-8", "cnn-4-8"]}})
    materials = prepare(experiment, CPU, Silent())
    assert (materials.teachers, materials.caches) == ({}, {})
    bench = Bench(materials, CPU)
    together = list(bench.start(experiment, seed=0).records)[-1]
    assert together.terms.keys() == {"cross_entropy", "distillation"}
    assert list(bench.start(experiment, seed=0, alone=True).records)[-1].terms.keys() == {"cross_entropy"}


@pytest.mark.parametrize("alone", [False, True], ids=["peers", "alone"])
def test_where_there_is_no_cache_every_epoch_has_a_view_of_its_own(
    make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    columns: list[int] = []

    def watched(*arguments: Any, column: int, **named: Any) -> Any:
        columns.append(column)
        return batches(*arguments, column=column, **named)

    monkeypatch.setattr(loop, "batches", watched)
    experiment = make_experiment({"teacher": {"peers": ["cnn-8"]}, "train.epochs": 3})
    materials = prepare(experiment, CPU, Silent())
    assert len(list(Bench(materials, CPU).start(experiment, seed=0, alone=alone).records)) == 3
    assert columns == [0, 1, 2]


def test_trials_under_two_teachers_learn_from_each(make_experiment: MakeExperiment) -> None:
    experiment = make_experiment(
        {
            "teachers": {"large": LARGE, "other": {**LARGE, "seed": 1}},
            "teacher": "large",
            "search.space": {"teacher": {"choice": ["large", "other"]}},
        }
    )
    bench = Bench(prepare(experiment, CPU, Silent()), CPU)
    losses = [
        next(bench.start(experiment.model_copy(update={"teacher": name}), seed=0).records).loss
        for name in ("large", "other", "large")
    ]
    assert losses[0] == losses[2] != losses[1]


def test_students_of_few_labels_learn_from_every_image_unless_told_otherwise(make_experiment: MakeExperiment) -> None:
    counts = {}
    for unlabelled in ("distil", "ignore"):
        experiment = make_experiment(
            {"teacher": LARGE, "data.labels_kept": 0.3, "data.unlabelled": unlabelled, "train.batch_size": 32}
        )
        materials = prepare(experiment, CPU, Silent())
        dataset = materials.dataset
        seen: set[int] = set()
        bench = Bench(materials, CPU)
        with pytest.MonkeyPatch.context() as patch:

            def watched(*arguments: Any, seen: set[int] = seen, **named: Any) -> Any:
                for batch in batches(*arguments, **named):
                    seen.update(batch.indices.tolist())
                    yield batch

            patch.setattr(loop, "batches", watched)
            next(bench.start(experiment, seed=0).records)
            counts[unlabelled] = len(seen)
            seen.clear()
            next(bench.start(experiment, seed=0, alone=True).records)
            counts[f"{unlabelled}, alone"] = len(seen)
    labelled = int((dataset.given[dataset.fit] >= 0).sum())
    assert counts == {
        "distil": len(dataset.fit),
        "distil, alone": labelled,
        "ignore": labelled,
        "ignore, alone": labelled,
    }


def test_whoever_watches_hears_that_pictures_are_read(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    class Listener(Silent):
        def files_read(self, done: int, total: int) -> None:
            raise RuntimeError(f"{done} of {total}")

    for part in ("train", "test"):
        for name in ("ant/0", "ant/1", "bee/0", "bee/1"):
            path = tmp_path / "pictures" / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)
    pictures = {"dataset": "folder", "root": str(tmp_path / "pictures"), "augment": "random-resized-crop"}
    with pytest.raises(RuntimeError, match="0 of 4"):
        prepare(make_experiment({"data": {**pictures, "image_size": 8}}), CPU, Listener())


@pytest.mark.parametrize("refusal", [OSError(errno.EROFS, "Read-only file system"), CacheError("ACCESS_DENIED")])
def test_a_cache_that_can_only_be_read_serves_a_run_that_it_cannot_note(
    experiment: Experiment,
    materials: Materials,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refusal: Exception,
) -> None:
    def refuse(place: object, folder: Path) -> None:
        raise refusal

    monkeypatch.setattr(run_folder, "mark_used", refuse)
    remember(claim(experiment), materials)
    assert "pruning may remove it" in caplog.text
