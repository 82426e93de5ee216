"""What a cache costs in memory: one copy of a column while it is computed, shared pages while it is read."""

from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdtune.cache import open_cache
from tests.caches import PROCESSES, Bench, a_network, noise

LINUX = Path("/proc/self/smaps")
needs_linux = pytest.mark.skipif(not LINUX.exists(), reason="only Linux tells of a process's pages")
ROWS, CLASSES = 100_000, 600
COLUMN = ROWS * CLASSES * 2  # 120 MB


class Wide(nn.Module):
    """A teacher of many classes that costs next to nothing."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :1] + torch.arange(CLASSES) / CLASSES


def resident(name: str) -> int:
    """A line of this process's status in bytes: VmHWM is the most that it ever had in memory, VmRSS what it has now."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def compute(folder: Path, told: Connection) -> None:
    torch.set_num_threads(1)
    Bench(folder / "small").build(1)  # what is loaded at first use
    dataset = noise(ROWS, CLASSES)
    cache = Bench(folder / "large", dataset, Wide()).begin(1)
    Path("/proc/self/clear_refs").write_text("5")  # the most from now on
    before = resident("VmRSS")
    cache.ensure(0)
    told.send(resident("VmHWM") - before)


@needs_linux
def test_computing_a_column_holds_one_copy_of_it(tmp_path: Path) -> None:
    here, there = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=compute, args=(tmp_path, there))
    process.start()
    there.close()
    grown = here.recv()
    process.join()
    assert (tmp_path / "large" / "00000.arrow").stat().st_size > COLUMN
    assert 0.9 * COLUMN < grown < 1.6 * COLUMN


def look(folder: Path, told: Connection, together: Barrier) -> None:
    torch.set_num_threads(1)
    cache = open_cache(Bench(folder).place)
    for part in cache.column(0).parts:
        part.float().sum()  # touches every page
    together.wait(60)
    told.send(pages_of(folder / "00000.arrow"))
    together.wait(60)  # neither ends before the other has looked


def pages_of(path: Path) -> dict[str, int]:
    """Kilobytes of the mapping of a file, from smaps."""
    pages: dict[str, int] = {}
    ours = False
    for line in LINUX.read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            ours = line.endswith(str(path))
        elif ours and rest[-1] == "kB":
            pages[first] = pages.get(first, 0) + int(rest[0])
    return pages


@needs_linux
def test_processes_that_read_a_column_share_its_pages(tmp_path: Path) -> None:
    classes = 100
    bench = Bench(tmp_path / "cache", noise(10_000, classes), a_network(0, classes))
    bench.build(1)
    size = bench.path(0).stat().st_size // 1024
    together = PROCESSES.Barrier(2)
    ends = []
    processes = []
    for _ in range(2):
        here, there = PROCESSES.Pipe(duplex=False)
        processes.append(PROCESSES.Process(target=look, args=(bench.folder, there, together)))
        processes[-1].start()
        there.close()
        ends.append(here)
    for pages in (here.recv() for here in ends):
        assert pages["Rss:"] > 0.95 * size
        assert pages["Pss:"] < 0.6 * pages["Rss:"]
        assert pages["Private_Dirty:"] == 0
    for process in processes:
        process.join()
        assert process.exitcode == 0
