"""The cache is the teacher: the same pixels, the same logits and the same student, whatever is shuffled or shared.

Letters: N images, V view columns, B images of a batch, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DistributedSampler

from kdtune.cache import Answers, LogitCache, open_cache
from kdtune.data import Batch, Dataset, ImageFiles, Pixels, batches, load_dataset, read, reading
from kdtune.distill import Cached, Live, logit_student
from kdtune.experiment import Data, Experiment
from kdtune.experiment.images import Augment
from kdtune.models import Tapped
from kdtune.trial import Bench, Materials, Trial
from tests.conftest import CPU, Answering, tiny_experiment
from tests.toy_teachers import PICTURES, SIDE, begun, questions, same, write_pictures

VIEWS = 3
IMPRINT = "tests.toy_teachers:Imprint"
HALF = 2.0**-11  # a float16 is this share of a number away from it at most, and 2^-25 where it is tiny
EACH = settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


class Pictures:
    """Pictures under one augmentation, and a teacher whose answers are an imprint of every bit of an image."""

    def __init__(self, root: Path, how: str, folder: Path) -> None:
        data = {"dataset": "folder", "root": str(root), "image_size": SIDE, "augment": how, "decode_workers": 1}
        values = {"data": data, "teacher.model": IMPRINT, "train.epochs": VIEWS, "train.batch_size": 16}
        self.experiment = tiny_experiment(folder / "runs", values)
        self.dataset = load_dataset(self.experiment.data)
        self.folder = folder
        self.caches = 0
        self.network = self.begun()[1].teachers["teacher"].load(CPU)

    @property
    def views(self) -> list[int]:
        return list(range(self.experiment.views))

    def begun(self, **data: object) -> tuple[Experiment, Materials]:
        """With an empty cache of its own; `data` changes the section."""
        self.caches += 1
        cache = self.experiment.cache.model_copy(update={"storage": str(self.folder / f"caches-{self.caches}")})
        section = self.experiment.data.model_copy(update=data)
        experiment = self.experiment.model_copy(update={"cache": cache, "data": section})
        return experiment, begun(experiment, self.dataset, self.folder / "teacher")

    @cached_property
    def complete(self) -> LogitCache:
        return complete(*self.begun())

    @cached_property
    def truth(self) -> list[Tensor]:
        """For each view the teacher's logits [N, K], asked about one image after another."""
        single = torch.split(torch.arange(PICTURES), 1)
        return [
            torch.cat([self.network(self.dataset.normalise(image)) for image in read(*self.of(single, view))])
            for view in self.views
        ]

    def of(self, chunks: Sequence[Tensor], view: int) -> tuple[Pixels, Sequence[Tensor], int, Data]:
        """What `read` takes."""
        return self.dataset.images, chunks, view, self.experiment.data


def complete(experiment: Experiment, materials: Materials) -> LogitCache:
    """The cache with every column that the experiment needs."""
    cache = Bench(materials, CPU).cache(experiment)
    for view in range(experiment.views):
        cache.ensure(view)
    return cache


@pytest.fixture(scope="module", params=get_args(Augment))
def pictures(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return Pictures(root, request.param, tmp_path_factory.mktemp("exact"))


# --- which logits an (image, view) gets


def test_columns_are_the_same_in_whatever_order_and_by_whichever_process_they_are_computed(pictures: Pictures) -> None:
    @EACH
    @given(order=st.permutations(pictures.views), elsewhere=st.sets(st.sampled_from(pictures.views), max_size=1))
    def check(order: list[int], elsewhere: set[int]) -> None:
        experiment, materials = pictures.begun()
        here, there = (Bench(materials, CPU).cache(experiment) for _ in range(2))
        for view in order:
            if view in elsewhere:
                child = get_context("fork").Process(target=there.ensure, args=(view,))
                child.start()
                child.join()
                assert child.exitcode == 0
            else:
                here.ensure(view)
        cache = open_cache(materials.caches["teacher"])
        for view in pictures.views:
            assert torch.equal(cache.teacher_logits(view, torch.arange(PICTURES)), pictures.truth[view])

    check()


def test_no_order_batch_size_or_number_of_processes_changes_the_logits_of_a_view(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE", 16)  # more images than that are decoded by processes of their own

    @EACH
    @given(
        epoch=st.integers(0, 9),
        size=st.integers(2, PICTURES + 1),
        seed=st.integers(0, 2**31),
        chosen=st.sets(st.integers(0, PICTURES - 1), min_size=2),
        workers=st.integers(1, 2),
    )
    def check(epoch: int, size: int, seed: int, chosen: set[int], workers: int) -> None:
        dataset, data = pictures.dataset, pictures.experiment.data
        if isinstance(dataset.images, ImageFiles):
            dataset = replace(dataset, images=replace(dataset.images, workers=workers))
        indices, column = torch.tensor(sorted(chosen)), epoch % pictures.experiment.views
        for batch in batches(dataset, data, indices, size=size, column=column, seed=seed, epoch=epoch):
            logits = pictures.complete.teacher_logits(batch.column, batch.indices)
            assert torch.equal(pictures.network(batch.images), logits)

    check()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_every_replica_finds_the_logits_of_its_own_images(pictures: Pictures, replicas: int, drop_last: bool) -> None:
    everything: Any = range(PICTURES)  # a sampler only asks how long it is
    seen: list[int] = []
    for rank in range(replicas):
        sampler: DistributedSampler[Any] = DistributedSampler(everything, replicas, rank, seed=5, drop_last=drop_last)
        for epoch in pictures.views:
            sampler.set_epoch(epoch)
            chunks = torch.split(torch.tensor(list(sampler)), 20)
            for indices, views in zip(chunks, read(*pictures.of(chunks, epoch)), strict=True):
                logits = pictures.complete.teacher_logits(epoch, indices)
                assert torch.equal(pictures.network(pictures.dataset.normalise(views)), logits)
                seen += indices.tolist()
    assert len(set(seen)) == PICTURES if not drop_last else len(set(seen)) > PICTURES - replicas


class Watched:
    """A trial whose student and cached teacher are watched: what they see and hear of each (image, view)."""

    def __init__(self, experiment: Experiment, materials: Materials, **how: Any) -> None:
        self.images: dict[tuple[int, int], Tensor] = {}  # (view, image): pixels that the student's forward got
        self.logits: dict[tuple[int, int], Tensor] = {}
        self.trial = Bench(materials, CPU).start(experiment, seed=3, **how)
        network = self.trial.student.network
        network.register_forward_pre_hook(self._sees)
        self._latest = torch.empty(0)
        teacher = self.trial.student.objective.teacher  # type: ignore[attr-defined]  # of a Distillation
        assert isinstance(teacher, Cached)
        self._teacher: Cached = teacher
        self.trial.student.objective.teacher = self  # type: ignore[attr-defined]

    def _sees(self, network: Any, inputs: tuple[Tensor, ...]) -> None:
        self._latest = inputs[0].clone()

    def begin_epoch(self, column: int) -> None:
        self._teacher.begin_epoch(column)

    def __call__(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        logits, features = self._teacher(batch)
        for index, pixels, row in zip(batch.indices.tolist(), self._latest, logits, strict=True):
            self.images[batch.column, index] = pixels
            self.logits[batch.column, index] = row
        return logits, features


@pytest.mark.parametrize("everything", [False, True], ids=["fit", "whole"])
def test_student_and_cached_teacher_see_the_same_pixels(pictures: Pictures, everything: bool) -> None:
    experiment, materials = pictures.begun()
    with questions() as asked:
        watched = Watched(experiment, materials, whole=everything)
        assert [record.epoch for record in watched.trial.records] == [1, 2, 3]
    columns = torch.split(torch.cat(asked), PICTURES)  # computed in the order in which the epochs need them
    assert len(columns) == experiment.views
    trained_on = PICTURES if everything else len(materials.dataset.fit)
    assert len(watched.images) == experiment.views * trained_on
    for (view, image), pixels in watched.images.items():
        assert torch.equal(pixels, columns[view][image])


def test_a_stopped_and_resumed_trial_hears_the_logits_of_each_view(pictures: Pictures, tmp_path: Path) -> None:
    for views in range(1, len(pictures.views) + 1):
        experiment, materials = pictures.begun(views=views)
        first, second = (Watched(experiment, materials) for _ in range(2))
        next(first.trial.records)
        first.trial.save(tmp_path / "trial.pt")
        second.trial.restore((tmp_path / "trial.pt").read_bytes())
        assert [record.epoch for record in second.trial.records] == [2, 3]
        assert {view for view, _ in first.logits} == {0}
        assert {view for view, _ in second.logits} == {epoch % views for epoch in (1, 2)}
        for (view, image), row in (first.logits | second.logits).items():
            assert torch.equal(row, pictures.truth[view][image])


# --- the run from the cache and the run with a live teacher


@pytest.fixture
def laid_out(root: Path, toy: Dataset, tmp_path: Path) -> Callable[[dict[str, object]], tuple[Experiment, Materials]]:
    """An experiment on numbers or on pictures, with an untrained teacher and no column yet."""

    def lay_out(values: dict[str, object]) -> tuple[Experiment, Materials]:
        data = {"data": {"dataset": "folder", "root": str(root), "image_size": SIDE, "decode_workers": 1}}
        resized = str(values["data.augment"]).startswith("random")
        experiment = tiny_experiment(tmp_path / "runs", {**(data if resized else {}), "train.batch_size": 16, **values})
        return experiment, begun(experiment, load_dataset(experiment.data) if resized else toy, tmp_path / "teacher")

    return lay_out


LayOut = Callable[[dict[str, object]], tuple[Experiment, Materials]]
SHORT: dict[str, object] = {"data.augment": "crop-flip", "train.epochs": 4}
KINDS: dict[str, dict[str, object]] = {
    "crop-flip": SHORT,
    "crop-flip, 3 of 4": {**SHORT, "data.views": 3},
    "flip, 2 of 4": {"data.augment": "flip", "train.epochs": 4, "data.views": 2},
    "resized": {"data.augment": "random-resized-crop-flip", "train.epochs": 3},
    "resized, 2 of 3": {"data.augment": "random-resized-crop-flip", "train.epochs": 3, "data.views": 2},
}
MLP = "tests.toy_teachers:mlp"
RUNS = [  # kind, logit loss, whether the validation images are trained on
    ("crop-flip", "kl", False),
    ("crop-flip, 3 of 4", "dkd", True),
    ("flip, 2 of 4", "dist", False),
    ("resized", "dist", True),
    ("resized, 2 of 3", "dkd", False),
    ("flip, 2 of 4", "kl", True),
]
NETWORKS = [("cnn-8-16", "cnn-8"), (MLP, "cnn-4-8"), ("resnet8", MLP)]
IDS = ["cnn to cnn", "mlp to cnn", "resnet to mlp"]


def with_teacher(teacher: Any, experiment: Experiment, materials: Materials, *, whole: bool) -> Trial:
    student = logit_student(experiment, materials.dataset, teacher, 3, CPU)
    return Trial(student, experiment, materials.dataset, seed=3, whole=whole)


def losses(trial: Trial) -> list[tuple[float, ...]]:
    return [tuple(record.terms.values()) for record in trial.records]


@pytest.mark.parametrize(("kind", "loss", "everything"), RUNS)
@pytest.mark.parametrize(("teacher", "student"), NETWORKS, ids=IDS)
def test_a_run_from_the_cache_is_bit_for_bit_the_run_with_a_live_teacher_rounded_to_float16(
    laid_out: LayOut, teacher: str, student: str, kind: str, loss: str, everything: bool
) -> None:
    """The live teacher answers to a whole column at a time, in chunks as the cache is built: float32 sums may depend on
    the size of a batch, and a difference in the last bit can fall on the other side of a rounding."""
    names = {"teacher.model": teacher, "student.model": student, "distill.logit_loss": loss}
    experiment, materials = laid_out({**KINDS[kind], **names})
    dataset = materials.dataset
    alive = Answers(lambda: materials.teachers["teacher"].load(CPU), dataset, experiment.data)

    def rounded(batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        column = torch.cat(list(alive.to(batch.column, torch.arange(len(dataset.labels)))))
        return column[batch.indices].half().float(), ()

    mine = Bench(materials, CPU).start(experiment, seed=3, whole=everything)
    theirs = with_teacher(Answering(rounded), experiment, materials, whole=everything)
    assert losses(mine) == losses(theirs)
    assert same(mine.student.network, theirs.student.network)


class Beside:
    """The objective with a cached teacher, and beside it what a live one would have made of the same outputs."""

    def __init__(self, cached: Any, live: Any) -> None:  # objectives
        self.cached, self.live = cached, live
        self.differences: list[tuple[float, float, float]] = []  # found, allowed, of

    def begin_epoch(self, epoch: int, epochs: int, column: int) -> Any:
        self.live.begin_epoch(epoch, epochs, column)
        return self.cached.begin_epoch(epoch, epochs, column)

    def __call__(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.cached(outputs, batch)
        with torch.no_grad():
            term = self.live(outputs, batch)["distillation"]
            allowed = self.allowed(outputs.detach(), self.live.teacher(batch)[0])
        self.differences.append(((terms["distillation"] - term).abs().item(), allowed, term.item()))
        return terms

    def allowed(self, student_logits: Tensor, teacher_logits: Tensor) -> float:
        """How far rounding may move alpha * T^2 * KL.

        With p the teacher's probabilities and r = log p - log q, the gradient of KL by teacher logit j is
        p_j (r_j - E r) / T. Its absolute values add up to E |r - E r| / T, which is below the range of r over T. A
        step of at most d in every logit moves r by at most 2 d / T, so |change of KL| <= d (range + 2 d / T) / T.
        """
        temperature, alpha = self.live.terms.temperature, self.live.terms.alpha
        r = (teacher_logits / temperature).log_softmax(1) - (student_logits / temperature).log_softmax(1)
        step = HALF * teacher_logits.abs().amax(dim=1) + 2.0**-25  # [B]
        spread = r.amax(dim=1) - r.amin(dim=1) + 2 * step / temperature
        bound: float = alpha * temperature * (step * spread).mean().item()
        return bound


@pytest.mark.parametrize("kind", ["crop-flip", "resized"])
@pytest.mark.parametrize(("teacher", "student"), NETWORKS, ids=IDS)
def test_at_every_step_the_cached_loss_is_the_live_one_to_the_rounding_of_float16(
    laid_out: LayOut, teacher: str, student: str, kind: str
) -> None:
    experiment, materials = laid_out({**KINDS[kind], "teacher.model": teacher, "student.model": student})
    live = Live(Tapped(materials.teachers["teacher"].load(CPU), ()))
    trial = Bench(materials, CPU).start(experiment, seed=3)
    alive = logit_student(experiment, materials.dataset, live, 3, CPU).objective
    trial.student.objective = beside = Beside(trial.student.objective, alive)
    for _ in trial.records:
        pass
    assert len(beside.differences) == experiment.train.epochs * -(-len(materials.dataset.fit) // 16)
    for found, allowed, term in beside.differences:
        assert found <= allowed + 2e-6 * max(1, term)  # what float32 itself rounds
        assert allowed < 0.05 * max(term, 0.1)  # so that the bound says something


@pytest.mark.parametrize("kind", ["crop-flip", "resized"])
@pytest.mark.parametrize(("teacher", "student"), NETWORKS, ids=IDS)
def test_a_run_from_the_cache_ends_close_to_the_run_with_a_live_teacher(
    laid_out: LayOut, teacher: str, student: str, kind: str
) -> None:
    """By SGD: AdamW makes a step of the same length of the smallest gradient, whose sign may be that of a rounding."""
    networks = {"teacher.model": teacher, "student.model": student}
    sgd = {"train.optimizer": "sgd", "train.learning_rate": 0.02}
    experiment, materials = laid_out({**KINDS[kind], **networks, **sgd})
    mine = Bench(materials, CPU).start(experiment, seed=3)
    live = Live(Tapped(materials.teachers["teacher"].load(CPU), ()))
    theirs = with_teacher(live, experiment, materials, whole=False)
    began = weights(mine)
    for cached, alive in zip(losses(mine), losses(theirs), strict=True):
        assert cached == pytest.approx(alive, rel=2e-3)
    way = (weights(theirs) - began).norm()
    assert (weights(mine) - weights(theirs)).norm() < 2e-3 * way


def weights(trial: Trial) -> Tensor:
    """Copied into one row."""
    return torch.cat([parameter.detach().flatten() for parameter in trial.student.network.parameters()])


@pytest.mark.parametrize("size", [2, 16, 64])
@pytest.mark.parametrize(("teacher", "student"), NETWORKS, ids=IDS)
def test_asked_in_a_students_batches_the_teacher_says_what_the_cache_holds_but_for_a_rare_last_bit(
    laid_out: LayOut, teacher: str, student: str, size: int
) -> None:
    """How a float32 sum is split up may depend on the size of a batch, on the machine and on its threads."""
    experiment, materials = laid_out({**KINDS["crop-flip"], "teacher.model": teacher, "student.model": student})
    cache, live = complete(experiment, materials), Live(Tapped(materials.teachers["teacher"].load(CPU), ()))
    differ = count = 0
    for batch in every_batch(experiment, materials, size):
        kept, said = cache.teacher_logits(batch.column, batch.indices), live(batch)[0].half().float()
        last_bit = 2 * HALF * said.abs() + 1e-6  # the last is float32's own, which shows where a logit is tiny
        assert ((kept - said).abs() <= last_bit).all()
        differ += int((kept != said).sum())
        count += kept.numel()
    assert differ < 0.02 * count


def every_batch(experiment: Experiment, materials: Materials, size: int) -> Iterator[Batch]:
    dataset = materials.dataset
    for epoch in range(experiment.views):
        yield from batches(dataset, experiment.data, dataset.fit, size=size, column=epoch, seed=0, epoch=epoch)
