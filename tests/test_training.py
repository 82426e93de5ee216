"""The loop against loops written out by hand, and against its own other half after a resume."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtune.data import Batch, Dataset, batches
from kdtune.experiment import Data, Train
from kdtune.models import build_model, channels_last
from kdtune.records import EpochRecord
from kdtune.training import (
    CrossEntropy,
    Objective,
    TrainingState,
    evaluate,
    evaluation,
    learning_rate,
    loop,
    new_state,
    precision_of,
    train,
)
from tests.conftest import CPU

DATA = Data(dataset="digits", augment="crop-flip", crop_padding=1)
SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "nesterov": True}
ADAMW: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 0.01}


def config_of(**values: object) -> Train:
    return Train.model_validate({"epochs": 3, "batch_size": 16, **SGD, **values})


def fresh(config: Train, seed: int = 0, dropout: bool = False) -> TrainingState:
    torch.manual_seed(seed)
    network = build_model("cnn-4-8", (1, 8, 8), 3)
    return new_state(nn.Sequential(nn.Dropout(0.2), network) if dropout else network, config, CPU)


def run(
    state: TrainingState, toy: Dataset, config: Train, objective: Objective | None = None, seed: int = 5
) -> list[EpochRecord]:
    return list(start(state, toy, config, objective, seed))


def start(
    state: TrainingState, toy: Dataset, config: Train, objective: Objective | None = None, seed: int = 5
) -> Any:  # a generator of records, with its close()
    return train(
        state, objective or CrossEntropy(), toy, DATA, config, toy.fit, seed=seed, views=config.epochs, validate=True
    )


def without_seconds(records: list[EpochRecord]) -> list[EpochRecord]:
    return [dataclasses.replace(record, seconds=0, waited=0) for record in records]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Bit for bit, BatchNorm's statistics included."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class Watching:
    """Cross-entropy in two terms, which writes down what it sees."""

    def __init__(self, state: TrainingState) -> None:
        self.state = state
        self.rates: list[float] = []
        self.dtypes: set[torch.dtype] = set()
        self.indices: list[list[int]] = []
        self.losses: list[float] = []
        self.columns: list[int] = []

    def begin_epoch(self, epoch: int, epochs: int, column: int) -> Mapping[str, float]:
        self.columns.append(column)
        self.indices.append([])
        return {}

    def __call__(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        self.rates.append(self.state.optimizer.param_groups[0]["lr"])
        self.dtypes.add(outputs.dtype)
        self.indices[-1] += batch.indices.tolist()
        loss = F.cross_entropy(outputs.float(), batch.labels)
        self.losses.append(loss.item())
        return {"a quarter": loss / 4, "the rest": loss * 0.75}


# --- learning rate


@pytest.mark.parametrize(
    ("values", "progress", "expected"),
    [
        ({"schedule": "cosine"}, 0.0, 0.1),
        ({"schedule": "cosine"}, 1 / 3, 0.075),  # cos(60 degrees) = 1/2
        ({"schedule": "cosine"}, 0.5, 0.05),
        ({"schedule": "cosine"}, 1.0, 0.0),
        ({"schedule": "cosine", "warmup": 0.2}, 0.0, 0.0),
        ({"schedule": "cosine", "warmup": 0.2}, 0.1, 0.05),
        ({"schedule": "cosine", "warmup": 0.2}, 0.2, 0.1),
        ({"schedule": "cosine", "warmup": 0.2}, 0.6, 0.05),
        ({"schedule": "cosine", "warmup": 0.2}, 1.0, 0.0),
        ({"schedule": "constant"}, 0.0, 0.1),
        ({"schedule": "constant"}, 1.0, 0.1),
        ({"schedule": "constant", "warmup": 0.5}, 0.25, 0.05),
        ({"schedule": "constant", "warmup": 0.5}, 0.75, 0.1),
        ({"schedule": "step", "milestones": (0.5, 0.75), "factor": 0.1}, 0.49, 0.1),
        ({"schedule": "step", "milestones": (0.5, 0.75), "factor": 0.1}, 0.5, 0.01),
        ({"schedule": "step", "milestones": (0.5, 0.75), "factor": 0.1}, 0.75, 0.001),
        ({"schedule": "step", "milestones": (0.5, 0.75), "factor": 0.1, "warmup": 0.1}, 0.05, 0.05),
    ],
)
def test_the_learning_rate_is_the_number_on_paper(values: dict[str, object], progress: float, expected: float) -> None:
    assert learning_rate(config_of(learning_rate=0.1, **values), progress) == pytest.approx(expected, abs=1e-12)


def test_the_cosine_of_every_step_is_torchs_cosine_annealing(toy: Dataset) -> None:
    config = config_of(schedule="cosine")
    state = fresh(config)
    watching = Watching(state)
    run(state, toy, config, watching)
    steps = len(watching.rates)
    assert steps == 3 * math.ceil(len(toy.fit) / 16)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for step, rate in enumerate(watching.rates):
        assert rate == pytest.approx(torchs.get_last_lr()[0], rel=1e-9), step
        optimizer.step()
        torchs.step()


def test_a_record_shows_the_learning_rate_of_its_last_step(toy: Dataset) -> None:
    config = config_of(warmup=0.5)
    state = fresh(config)
    watching = Watching(state)
    records = run(state, toy, config, watching)
    steps = len(watching.rates) // 3
    assert [record.learning_rate for record in records] == watching.rates[steps - 1 :: steps]


# --- the loop


@pytest.mark.parametrize("values", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_the_loop_equals_a_bare_torch_loop_bit_for_bit(toy: Dataset, values: dict[str, Any]) -> None:
    config = config_of(**values)
    state = fresh(config)
    run(state, toy, config, seed=5)
    torch.manual_seed(0)
    network = channels_last(build_model("cnn-4-8", (1, 8, 8), 3))
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
        )
    else:
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=5e-4, fused=True)
    steps = math.ceil(len(toy.fit) / 16)
    for epoch in range(3):
        network.train()
        epoch_of_batches = batches(toy, DATA, toy.fit, size=16, column=epoch, seed=5, epoch=epoch)
        for step, batch in enumerate(epoch_of_batches):
            progress = (epoch * steps + step) / (3 * steps)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1 + math.cos(math.pi * progress)) / 2
            optimizer.zero_grad()
            F.cross_entropy(network(batch.images), batch.labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert same_weights(state.learner, network)


def test_training_learns(toy: Dataset) -> None:
    config = config_of(epochs=25)
    state = fresh(config)
    records = run(state, toy, config)
    assert records[-1].loss < 0.5 * records[0].loss
    assert records[-1].val_accuracy is not None
    assert records[-1].val_accuracy > 0.9


def test_terms_are_means_over_steps_and_add_up_to_the_loss(toy: Dataset) -> None:
    config = config_of()
    state = fresh(config)
    watching = Watching(state)
    records = run(state, toy, config, watching)
    steps = len(watching.losses) // 3
    for epoch, record in enumerate(records):
        losses = watching.losses[epoch * steps : (epoch + 1) * steps]
        assert record.terms.keys() == {"a quarter", "the rest"}
        assert sum(record.terms.values()) == pytest.approx(record.loss, rel=1e-9)
        assert record.loss == pytest.approx(sum(losses) / steps, rel=1e-5)
        assert record.terms["a quarter"] == pytest.approx(record.loss / 4, rel=1e-5)


def test_a_term_may_have_no_gradient_and_is_recorded_all_the_same(toy: Dataset) -> None:
    class WithConstant(CrossEntropy):
        """As with a feature loss whose taps lie in layers that are frozen."""

        def __call__(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
            return super().__call__(outputs, batch) | {"features": torch.tensor(2.5)}

    config = config_of()
    alone, beside = fresh(config), fresh(config)
    expected, records = run(alone, toy, config), run(beside, toy, config, WithConstant())
    assert same_weights(alone.learner, beside.learner)
    assert [record.terms["features"] for record in records] == [2.5] * 3
    assert [record.loss for record in records] == pytest.approx([record.loss + 2.5 for record in expected])


def test_each_epoch_sees_each_chosen_image_once_in_another_order(toy: Dataset) -> None:
    config = config_of()
    state = fresh(config)
    watching = Watching(state)
    run(state, toy, config, watching)
    for seen in watching.indices:
        assert sorted(seen) == toy.fit.tolist()
    assert watching.indices[0] != watching.indices[1]
    assert watching.columns == [0, 1, 2]


def test_epochs_beyond_the_views_begin_again_with_the_first_column(toy: Dataset) -> None:
    config = config_of(epochs=5)
    state = fresh(config)
    watching = Watching(state)
    list(train(state, watching, toy, DATA, config, toy.fit, seed=0, views=2, validate=False))
    assert watching.columns == [0, 1, 0, 1, 0]


def test_without_validation_nothing_is_measured(toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(loop, "evaluate")
    config = config_of(epochs=1)
    state = fresh(config)
    (record,) = train(state, CrossEntropy(), toy, DATA, config, toy.fit, seed=0, views=1, validate=False)
    assert record.val_accuracy is None
    assert record.val_loss is None


def test_records_hold_what_evaluate_says_of_the_validation_images(toy: Dataset) -> None:
    config = config_of()
    state = fresh(config)
    for record in start(state, toy, config):
        measured = evaluate(state.learner, toy, toy.images, toy.labels, toy.validation)
        assert (record.val_accuracy, record.val_loss) == (measured.accuracy, measured.loss)
        assert (record.epoch, record.epochs) == (state.epoch, 3)
        assert record.seconds > 0


# --- stopping and resuming


def saved_and_loaded(state: TrainingState, into: TrainingState, path: Path) -> TrainingState:
    torch.save(state.state_dict(), path)
    into.load_state_dict(torch.load(path, weights_only=True))
    return into


@pytest.mark.parametrize("dropout", [False, True], ids=["", "with dropout"])
@pytest.mark.parametrize("values", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    toy: Dataset, tmp_path: Path, stop: int, values: dict[str, Any], dropout: bool
) -> None:
    config = config_of(**values)
    uninterrupted = fresh(config, dropout=dropout)
    said = run(uninterrupted, toy, config)
    first = fresh(config, dropout=dropout)
    records = start(first, toy, config)
    for _ in range(stop):
        next(records)
    records.close()
    second = saved_and_loaded(first, fresh(config, seed=99, dropout=dropout), tmp_path / "state.pt")
    torch.manual_seed(12345)  # a new process's generator stands elsewhere
    rest = run(second, toy, config)
    assert [record.epoch for record in rest] == list(range(stop + 1, 4))
    assert same_weights(second.learner, uninterrupted.learner)
    assert without_seconds(rest) == without_seconds(said[stop:])


class Drawing(CrossEntropy):
    """Writes down where torch's generator stands at a batch: that is what dropout draws from."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def __call__(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        self.drawn.append(torch.rand(()).item())
        return super().__call__(outputs, batch)


def test_seeds_that_share_their_lower_bits_drop_other_units(toy: Dataset) -> None:
    """torch's generator for the CPU reads 32 bits of a seed, and seeds go up to 2^31."""
    config = config_of(batch_size=100, epochs=2)
    objective = Drawing()
    for seed in (0, 1 << 12, 1 << 24, 1 << 30):
        run(fresh(config), toy, config, objective, seed)
    assert len(set(objective.drawn)) == 8


def test_closing_the_generator_stops_between_two_epochs(toy: Dataset) -> None:
    config = config_of(epochs=50)
    state = fresh(config)
    records = start(state, toy, config)
    assert [record.epoch for record in itertools.islice(records, 2)] == [1, 2]
    before = {key: tensor.clone() for key, tensor in state.learner.state_dict().items()}
    records.close()
    assert state.epoch == 2
    assert list(records) == []
    assert all(torch.equal(tensor, before[key]) for key, tensor in state.learner.state_dict().items())


def test_a_finished_run_has_nothing_left_to_resume(toy: Dataset) -> None:
    config = config_of(epochs=1)
    state = fresh(config)
    assert run(state, toy, config)[-1].last
    assert run(state, toy, config) == []


def test_a_diverging_run_ends_with_a_record_that_says_so(toy: Dataset) -> None:
    config = config_of(epochs=50, learning_rate=1e25, schedule="constant")
    records = run(fresh(config), toy, config)
    assert len(records) < 50
    assert [record.diverged for record in records] == [False] * (len(records) - 1) + [True]
    assert records[-1].last
    assert records[-1].to_json()["loss"] is None


# --- precision


@pytest.mark.parametrize(("precision", "expected"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_a_precision_is_what_the_network_computes_in(toy: Dataset, precision: str, expected: torch.dtype) -> None:
    config = config_of(precision=precision, epochs=6)
    state = fresh(config)
    watching = Watching(state)
    records = run(state, toy, config, watching)
    assert watching.dtypes == {expected}
    assert {parameter.dtype for parameter in state.learner.parameters()} == {torch.float32}
    assert records[-1].loss < 0.7 * records[0].loss


def test_float16_trains_with_a_loss_scale_that_is_saved(toy: Dataset, tmp_path: Path) -> None:
    config = config_of(precision="float16", epochs=2)
    state = fresh(config)
    watching = Watching(state)
    records = run(state, toy, config, watching)
    assert watching.dtypes == {torch.float16}
    assert all(math.isfinite(record.loss) for record in records)
    assert state.scaler.is_enabled()
    state.scaler.update(128.0)  # a scale that no new run begins with
    again = saved_and_loaded(state, fresh(config), tmp_path / "state.pt")
    assert again.scaler.get_scale() == 128


def test_auto_is_float32_on_a_cpu(toy: Dataset) -> None:
    config = config_of(precision="auto", epochs=1)
    assert precision_of(config, CPU) == torch.float32
    state = fresh(config)
    watching = Watching(state)
    run(state, toy, config, watching)
    assert watching.dtypes == {torch.float32}
    assert not state.scaler.is_enabled()


# --- evaluate


class TwoOutputs(nn.Module):
    """Logits first, as a learner with feature maps gives them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.network(images), (images,)


@pytest.mark.parametrize("subset", [False, True], ids=["all images", "some images"])
@pytest.mark.parametrize("two", [False, True], ids=["logits", "logits and features"])
def test_evaluate_equals_a_loop_over_single_images(
    toy: Dataset, monkeypatch: pytest.MonkeyPatch, subset: bool, two: bool
) -> None:
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 7)  # the last batch is a smaller one
    network = fresh(config_of()).learner
    chosen = toy.validation if subset else None
    measured = evaluate(TwoOutputs(network) if two else network, toy, toy.images, toy.labels, chosen)
    network.eval()
    right, loss, predictions, confidences = 0, 0.0, [], []
    numbers = toy.validation.tolist() if subset else range(len(toy.labels))
    for number in numbers:
        pixels = (toy.pixels[number].double() / 255 - toy.mean[0]) / toy.std[0]
        logits = network(pixels.float().unsqueeze(0))[0].tolist()
        label = int(toy.labels[number])
        predictions.append(max(range(3), key=lambda k: logits[k]))
        right += predictions[-1] == label
        whole = sum(math.exp(value) for value in logits)
        confidences.append(math.exp(max(logits)) / whole)
        loss += math.log(whole) - logits[label]
    assert measured.predictions.tolist() == predictions
    assert measured.accuracy == right / len(predictions)
    assert measured.loss == pytest.approx(loss / len(predictions), rel=1e-5)
    assert measured.confidences.tolist() == pytest.approx(confidences, rel=1e-5)


def test_evaluate_changes_no_weights_and_no_statistics(toy: Dataset) -> None:
    network = fresh(config_of()).learner.train()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    evaluate(network, toy, toy.images, toy.labels)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
