"""A toy teacher and its cache, for the tests of the cache in this process and in others.

bench = Bench(tmp_path / "cache")
cache = bench.build(3)
assert bench.heard == [0, 1, 2]      # the columns that the teacher was asked for
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdtune.cache import Answers, Identity, LogitCache, Place, begin_cache, describe, identify, open_cache
from kdtune.data import Dataset, Images, augment
from kdtune.experiment import Cache, Data
from kdtune.models import build_model
from kdtune.teacher import Teacher, fingerprint

ROWS = 66
DATA = Data(dataset="digits", augment="crop-flip", crop_padding=2, view_seed=11)
WHOLE, EIGHT_BITS = Cache(), Cache(bits=8)
TOP_2 = Cache.model_construct(top_k=2)  # experiments keep at least a hundred
FORMS = pytest.mark.parametrize("keep", [WHOLE, EIGHT_BITS, TOP_2], ids=["16 bits", "8 bits", "top 2"])


def a_network(seed: int, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_model("cnn-8-16", (1, 8, 8), classes).eval()
    return network.requires_grad_(requires_grad=False)


def described(network: nn.Module, classes: int = 3) -> Teacher:
    known = fingerprint("cnn-8-16", network.state_dict())
    return Teacher("", "cnn-8-16", (1, 8, 8), classes, known, 0.9, trained_here=True)


def noise(rows: int = ROWS, classes: int = 3) -> Dataset:
    """Images of nothing, the same in every process."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (rows, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels, numbers = torch.arange(rows) % classes, torch.arange(rows)
    return Dataset(
        name="digits",
        classes=tuple(f"class {k}" for k in range(classes)),
        images=images,
        labels=labels,
        given=labels,
        test=Images(images[:12], labels[:12]),
        fit=numbers[numbers % 4 != 2],
        validation=numbers[numbers % 4 == 2],
        mean=(0.4,),
        std=(0.25,),
        fingerprint=f"noise {rows} {classes}",
    )


class Counted(Answers):
    """A teacher at hand that counts how often it was loaded, and hears of each column before it answers."""

    def __init__(self, network: nn.Module, dataset: Dataset, data: Data, heard: Callable[[int], None]) -> None:
        self.loads = 0
        self.heard = heard

        def load() -> nn.Module:
            self.loads += 1
            return network

        super().__init__(load, dataset, data)

    def to(self, view: int, indices: Tensor) -> Iterator[Tensor]:
        self.heard(view)
        yield from super().to(view, indices)


@dataclass
class Bench:
    """A data set, an untrained teacher, a folder, and which columns were asked for."""

    folder: Path
    dataset: Dataset = field(default_factory=noise)
    network: nn.Module = field(default_factory=lambda: a_network(0))
    data: Data = DATA
    keep: Cache = WHOLE
    copies: Path | None = None
    heard: list[int] = field(default_factory=list)

    @property
    def teacher(self) -> Teacher:
        return described(self.network, len(self.dataset.classes))

    @property
    def identity(self) -> Identity:
        return identify(self.dataset, self.data, self.teacher, self.keep)

    @property
    def place(self) -> Place:
        return Place(str(self.folder), str(self.copies) if self.copies else None)

    def answers(self) -> Counted:
        return Counted(self.network, self.dataset, self.data, self.heard.append)

    def begin(self, views: int) -> LogitCache:
        """A new handle on the cache, with a teacher of its own."""
        manifest = describe(self.identity, self.dataset, self.teacher)
        return begin_cache(self.place, manifest, views=views, teacher=self.answers())

    def read(self) -> LogitCache:
        """A handle without a teacher."""
        return open_cache(self.place, self.identity)

    def build(self, views: int) -> LogitCache:
        cache = self.begin(views)
        for view in range(views):
            cache.ensure(view)
        return cache

    def logits(self, view: int) -> Tensor:
        """The teacher asked directly, step by step."""
        rows = torch.arange(len(self.dataset.labels))
        with torch.no_grad():
            answers: Tensor = self.network(self.dataset.normalise(augment(self.dataset.pixels, rows, view, self.data)))
        return answers

    def path(self, view: int) -> Path:
        return self.folder / f"{view:05d}.arrow"

    def seal(self, view: int) -> Path:
        return self.folder / f"{view:05d}.json"

    def stamps(self, *views: int) -> list[tuple[int, int]]:
        """What changes when a column or its seal is written again."""
        return [(self.path(view).stat().st_ino, self.seal(view).stat().st_ino) for view in views]


def flip_a_byte(path: Path) -> None:
    """In the middle; the size stays. In place, so that who has mapped the file sees it."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0xFF]))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00" * path.stat().st_size)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for what another thread or process brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


# Processes that start in milliseconds, from one that has imported torch already, and share nothing with this one.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.caches"])


def build_elsewhere(folder: Path, log: Path, order: list[int], rows: int, classes: int) -> None:
    """What another process does: ensures the columns in an order, and logs which it computes and how much it asked."""
    torch.set_num_threads(1)

    def hear(view: int) -> None:
        append(log, f"column {view}")

    network, dataset = a_network(0, classes), noise(rows, classes)
    bench = Bench(folder, dataset, network)
    answers = Counted(network, dataset, DATA, hear)
    cache = open_cache(bench.place, bench.identity, views=len(order), teacher=answers)
    for view in order:
        cache.ensure(view)
    append(log, f"asked {answers.asked}")


def append(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(line + "\n")


def told(log: Path, what: str) -> list[int]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith(what)]
