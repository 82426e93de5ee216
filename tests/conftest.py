"""What several rooms' tests share: a tiny experiment on digits, its materials, and a toy data set made of numbers.

`make_experiment({"train.epochs": 3})` gives the tiny experiment with dotted paths replaced, stored in this test's own
folder. `materials` are prepared once for the whole session: nothing may be written into their folders.
"""

import hashlib
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from kdtune.cache import bucket
from kdtune.data import Batch, Dataset, Images, load_dataset
from kdtune.experiment import Data, Experiment, parse
from kdtune.trial import Materials, Silent, prepare
from tests.object_store import S3, ObjectStore, bucket_of, running

MakeExperiment = Callable[..., Experiment]

CPU = torch.device("cpu")

settings.register_profile("busy machines", deadline=None)  # how long an example takes says nothing about it
settings.load_profile("busy machines")


class Answering:
    """A teacher that is a function of the batch."""

    def __init__(self, answer: Callable[[Batch], tuple[Tensor, tuple[Tensor, ...]]]) -> None:
        self.answer = answer

    def begin_epoch(self, column: int) -> None:
        """There is nothing to prepare."""

    def __call__(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.answer(batch)


LEFT_OUT = {  # by the options that run it
    "-m slow": "whole searches as a person types them, workers that share batches, exports in every format (minutes)",
    "-m faults": "what is killed in the middle of a search (minutes)",
    "-n 0 -m hosts": "`ray up` and searches on hosts that the tests make (minutes; Linux, root)",
    "-n 0 -m browser": "pages in Chromium (apt-get install chromium)",
}


pytest.register_assert_rewrite("tests.clusters")  # its checks say what differs, as those of tests do


def pytest_configure() -> None:
    """Ctrl-C is Ctrl-C, here and in what tests start: whatever runs in a shell's background ignores it otherwise."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What plain `pytest` leaves out is said, never passed over in silence."""
    for options, what in LEFT_OUT.items():
        if f"not {options.split()[-1]}" in config.option.markexpr:
            terminalreporter.write_line(f"not run: {what}: pytest {options}")


def tiny_experiment(storage: Path, values: Mapping[str, object] | None = None) -> Experiment:
    """Digits, crops and flips, a teacher of two small layers and a student of one; `values` replaces dotted paths."""
    short = {"batch_size": 64, "optimizer": "adamw", "learning_rate": 0.02}
    raw: dict[str, Any] = {
        "name": "tiny",
        "data": {"dataset": "digits", "augment": "crop-flip", "crop_padding": 1},
        "teacher": {"model": "cnn-8-16", "train": {"epochs": 3, **short}},
        "student": {"model": "cnn-8"},
        "train": {"epochs": 2, **short},
        "storage": str(storage),
    }
    for path, value in (values or {}).items():
        *owners, name = path.split(".")
        here = raw
        for owner in owners:
            here = here.setdefault(owner, {})
        here[name] = value
    return parse(raw)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Float sums do not depend on how many cores a machine has, and tests share it politely."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered of files goes nowhere near the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as session:
        session.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture
def make_experiment(tmp_path: Path) -> MakeExperiment:
    """`make_experiment({dotted path: value})`: the tiny experiment, stored in this test's folder."""
    return lambda values=None: tiny_experiment(tmp_path / "runs", values)


@pytest.fixture
def experiment(make_experiment: MakeExperiment) -> Experiment:
    return make_experiment()


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """Digits, a teacher trained for three epochs and three view columns of its logits. Read only."""
    experiment = tiny_experiment(tmp_path_factory.mktemp("session"), {"train.epochs": 3})
    return prepare(experiment, CPU, Silent(), complete=True)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset(Data(dataset="digits"))


@pytest.fixture(scope="session")
def toy() -> Dataset:
    """66 noisy images [1, 8, 8] of three textures: rows, columns, a chessboard. 50 to fit, 16 to validate."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(66) % 3
    images = torch.randint(0, 120, (66, 1, 8, 8), generator=generator, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    textures = torch.stack([y % 2, x % 2, (y + x) % 2])  # [3, 8, 8]
    images += (100 * textures[labels]).to(torch.uint8).unsqueeze(1)
    numbers = torch.arange(66)
    return Dataset(
        name="digits",
        classes=("rows", "columns", "chessboard"),
        images=images,
        labels=labels,
        given=labels,
        test=Images(images[:12], labels[:12]),
        fit=numbers[numbers % 4 != 2],
        validation=numbers[numbers % 4 == 2],
        mean=(0.4,),
        std=(0.25,),
        fingerprint=hashlib.sha256(images.numpy().tobytes()).hexdigest(),
    )


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """moto's S3 server, in this process."""
    with running() as store:
        yield store


@pytest.fixture
def s3(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An empty bucket of this test's own; claims of it are settled, and waited for, in fractions of a second."""
    monkeypatch.setattr(bucket, "SETTLE_S", 0.1)
    monkeypatch.setattr(bucket.Bucket, "patience", 0.05)
    return bucket_of(object_store)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Writes an experiment file."""

    def write_file(content: str | bytes) -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file
