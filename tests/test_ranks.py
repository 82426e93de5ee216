"""Several processes that train one student against one that trains it alone: the same learning curve.

Three processes share batches of 100 images in parts of 34, 33 and 33. Most of these learning curves are left to
`pytest -m slow`.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from multiprocessing.queues import Queue
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdtune.cli.options import default_file
from kdtune.errors import ExperimentError, ModelError
from kdtune.experiment import Experiment, load
from kdtune.models import Tapped, build_model
from kdtune.ranks import ALONE, Ranks, SynchronisedBatchNorm, joined, synchronise_batch_norm
from kdtune.records import EpochRecord
from kdtune.training import CrossEntropy, new_state, train
from kdtune.trial import Bench, Materials, Silent, prepare

CPU = torch.device("cpu")
COUNT = 3
Job = tuple[Callable[..., Any], tuple[Any, ...]]


class Crew:
    """COUNT processes in one gloo group; `run` has all of them call a function and gives what each of them said."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.jobs: list[Queue[Job | None]] = [spawn.Queue() for _ in range(COUNT)]
        self.answers: Queue[tuple[int, Any]] = spawn.Queue()
        self.processes = [
            spawn.Process(target=work, args=(rank, port, self.jobs[rank], self.answers), daemon=True)
            for rank in range(COUNT)
        ]
        for process in self.processes:
            process.start()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        for jobs in self.jobs:
            jobs.put((function, arguments))
        said: dict[int, Any] = {}
        while len(said) < COUNT:
            rank, answer = self.answers.get(timeout=120)
            if isinstance(answer, Exception):
                raise answer
            said[rank] = answer
        return [said[rank] for rank in range(COUNT)]

    def end(self) -> None:
        for jobs in self.jobs:
            jobs.put(None)
        for process in self.processes:
            process.join(timeout=30)
            process.kill()


def work(rank: int, port: int, jobs: "Queue[Job | None]", answers: "Queue[tuple[int, Any]]") -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=COUNT)
    while (job := jobs.get()) is not None:
        function, arguments = job
        try:
            answers.put((rank, function(*arguments)))
        except Exception as error:  # noqa: BLE001  # raised where the test is
            answers.put((rank, error))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.end()


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    storage = tmp_path_factory.mktemp("runs")
    return prepare(experiment(f"storage={storage}"), CPU, Silent())


def experiment(*overrides: str) -> Experiment:
    base = ["train.epochs=2", "train.batch_size=100", "train.learning_rate=0.05", "teacher.train.epochs=3"]
    return load(default_file(), [*base, "search={trials: 0}", *overrides])


def curve(
    experiment: Experiment, materials: Materials, *, whole: bool = False
) -> tuple[list[EpochRecord], dict[str, Tensor]]:
    """Records of a trial, and its weights at the end: of all processes of the group, if there is one."""
    ranks = joined() if dist.is_initialized() else ALONE
    trial = Bench(materials, CPU, ranks).start(experiment, seed=3, whole=whole)
    return list(trial.records), dict(trial.student.state.learner.state_dict())


def plain(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A network without BatchNorm, with feature maps."""
    return nn.Sequential(nn.Conv2d(image_shape[0], 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, classes))


PLAIN = (f"student.model={__name__}:plain",)
SYNCHRONISED = "train.synchronise_batch_norm=true"
CASES = {
    "logits": PLAIN,
    "part of the labels": (*PLAIN, "data.labels_kept=0.2"),
    "correlations over the batch": (*PLAIN, "distill.logit_loss=dist"),
    "learned temperature": (*PLAIN, "distill.learned_temperature={low: 1, high: 20}"),
    "peers": (*PLAIN, f"teacher={{peers: ['{__name__}:plain', '{__name__}:plain']}}"),
    "hint": (SYNCHRONISED, "distill.feature_weight=1"),
    "hint, teacher projected": (
        SYNCHRONISED, "distill.feature_weight=1", "distill.feature_projection=teacher",
    ),
    "attention": (SYNCHRONISED, "distill.feature_weight=1", "distill.feature_loss=attention"),
    "relations": (SYNCHRONISED, "distill.feature_weight=1", "distill.feature_loss=rkd"),
    "batch norm": (SYNCHRONISED,),
    "a last batch too small to share": (*PLAIN, "train.batch_size=179"),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [case if case == "logits" else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_processes_that_share_batches_learn_what_one_process_learns(
    case: str, crew: Crew, materials: Materials
) -> None:
    one = experiment(*CASES[case])
    left = len(materials.dataset.fit) % one.train.batch_size
    assert (2 <= left < 2 * COUNT) == ("too small" in case)
    alone, weights = curve(one, materials)
    for records, state in crew.run(curve, one, materials):
        for mine, theirs in zip(records, alone, strict=True):
            assert mine.terms == pytest.approx(theirs.terms, rel=1e-3)
            assert mine.val_loss == pytest.approx(theirs.val_loss, rel=1e-3)
            assert mine.val_accuracy == pytest.approx(theirs.val_accuracy, abs=2.01 / len(materials.dataset.validation))
        for name, value in weights.items():
            torch.testing.assert_close(state[name], value, rtol=1e-2, atol=1e-3)


def test_processes_that_share_the_test_set_all_know_every_answer_and_its_confidence(
    crew: Crew, materials: Materials
) -> None:
    answers, confidences = asked_on_test(materials)
    assert len(confidences) == len(materials.dataset.test.labels)
    for theirs, sure in crew.run(asked_on_test, materials):
        assert torch.equal(theirs, answers)
        torch.testing.assert_close(sure, confidences)


def asked_on_test(materials: Materials) -> tuple[Tensor, Tensor]:
    """What an untrained student says to the test set: 450 images in parts of 150, or at once."""
    ranks = joined() if dist.is_initialized() else ALONE
    found = Bench(materials, CPU, ranks).start(experiment(*PLAIN), seed=3).test()
    return found.predictions, found.confidences


def test_without_synchronised_batch_norm_all_processes_still_have_one_student(crew: Crew, materials: Materials) -> None:
    (records, state), *others = crew.run(curve, experiment(), materials)
    alone, _ = curve(experiment(), materials)
    assert records[-1].loss != pytest.approx(alone[-1].loss, rel=1e-5)  # statistics of a third of a batch
    for other, weights in others:
        assert [(r.terms, r.val_loss, r.val_accuracy) for r in other] == [
            (r.terms, r.val_loss, r.val_accuracy) for r in records
        ]
        for name, value in state.items():  # running statistics included
            torch.testing.assert_close(weights[name], value, rtol=0, atol=0)


def test_each_process_drops_units_of_its_own(crew: Crew, materials: Materials) -> None:
    first, second, third = crew.run(drawn_in_epoch, materials)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert torch.equal(first, drawn_in_epoch(materials))  # of one process: what it always was


def drawn_in_epoch(materials: Materials) -> Tensor:
    """Random numbers that a network would draw at the beginning of an epoch."""
    drawn = []

    def draw(module: nn.Module, images: tuple[Tensor]) -> None:
        drawn.append(torch.rand(4))

    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    network.register_forward_pre_hook(draw)
    dataset, one = materials.dataset, experiment()
    state = new_state(network, one.train, CPU)
    ranks = joined() if dist.is_initialized() else ALONE
    steps = train(
        state, CrossEntropy(), dataset, one.data, one.train, dataset.fit, seed=0, views=1, validate=False, ranks=ranks
    )
    next(steps)
    return drawn[0]


def test_the_gradient_of_what_is_gathered_is_ones_own_parts_times_the_number_of_processes(crew: Crew) -> None:
    whole = torch.arange(7.0)
    for mine, gathered, gradient in crew.run(gather_squares, whole):
        torch.testing.assert_close(gathered, whole)
        torch.testing.assert_close(gradient, COUNT * 2 * mine)


def gather_squares(whole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ranks = joined()
    mine = ranks.part(whole).clone().requires_grad_()
    gathered = ranks.gather(mine, len(whole))
    (gradient,) = torch.autograd.grad(gathered.square().sum(), mine)
    return mine.detach(), gathered.detach(), gradient


@pytest.mark.parametrize("momentum", [0.1, None])
def test_synchronised_batch_norm_is_batch_norm_of_the_whole_batch(crew: Crew, momentum: float | None) -> None:
    images = torch.randn(COUNT * 4, 5, 3, 3, generator=torch.Generator().manual_seed(0)) * 7 + 100
    plain = nn.BatchNorm2d(5, momentum=momentum)
    expected, gradient = normalised(nn.Sequential(plain), images, ALONE)
    parts = crew.run(normalised_in_parts, images, momentum)
    torch.testing.assert_close(torch.cat([part for part, _, _ in parts]), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat([part for _, part, _ in parts]), gradient, rtol=1e-4, atol=1e-5)
    for _, _, state in parts:
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(state[f"0.{name}"], value, rtol=1e-4, atol=1e-4)


def normalised_in_parts(images: Tensor, momentum: float | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    network = nn.Sequential(nn.BatchNorm2d(5, momentum=momentum))
    synchronise_batch_norm(network)
    output, gradient = normalised(network, images, joined())
    return output, gradient, dict(network.state_dict())


def normalised(network: nn.Sequential, images: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Output for a part, and the gradient of a loss that is not the same for all places."""
    weights = torch.linspace(-1, 1, images.numel()).view_as(images)
    mine = ranks.part(images).clone().requires_grad_()
    output = network(mine)
    (gradient,) = torch.autograd.grad((output.square() * ranks.part(weights)).sum(), mine)
    return output.detach(), gradient


def test_synchronising_keeps_names_weights_and_what_looks_at_the_layer() -> None:
    network = build_model("resnet20", (3, 32, 32), 10)
    tapped = Tapped(network, ("bn1",))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = tapped.eval()(torch.ones(2, 3, 32, 32))
    synchronise_batch_norm(tapped)
    assert not [module for module in network.modules() if type(module) is nn.BatchNorm2d]
    assert isinstance(network.get_submodule("bn1"), SynchronisedBatchNorm)
    assert list(network.state_dict()) == list(before)
    logits, features = tapped(torch.ones(2, 3, 32, 32))
    torch.testing.assert_close((logits, features), expected)


def test_a_batch_norm_of_its_own_kind_is_refused_by_its_name() -> None:
    class Other(nn.BatchNorm2d):
        """Perhaps with an activation."""

    with pytest.raises(ModelError, match=r"cannot synchronise 1, a Other: .*train.synchronise_batch_norm: false"):
        synchronise_batch_norm(nn.Sequential(nn.BatchNorm2d(3), Other(3)))


def test_a_batch_with_less_than_two_images_a_worker_is_refused() -> None:
    with pytest.raises(ExperimentError, match=r"train.batch_size is 8 images .*fewer than 2 for each of 5"):
        experiment("train.batch_size=8", "resources.workers_per_trial=5")
    experiment("train.batch_size=8", "resources.workers_per_trial=4")


def test_workers_of_a_trial_cannot_share_a_gpu() -> None:
    with pytest.raises(ExperimentError, match=r"gpus_per_worker is 0.5, but NCCL.* wants a GPU for each"):
        experiment("resources={workers_per_trial: 2, gpus_per_worker: 0.5}")
    experiment("resources={gpus_per_worker: 0.5}")
