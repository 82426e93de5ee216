"""An object store on this machine: moto's S3 server in this process, and what it was asked for.

`object_store` (a fixture of the whole session, in conftest.py) runs one server; `bucket_of(store)` makes a bucket.
What other processes do to it is here too, as functions that a fresh process can import.
"""

import hashlib
import logging
import multiprocessing
import os
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdtune.cache import Answers, LogitCache, Place, begin_cache, bucket, describe, identify
from kdtune.cache.bucket import Bucket
from kdtune.data import Dataset, Images
from kdtune.experiment import Data
from kdtune.teacher import Teacher

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "NO_PROXY": "127.0.0.1",
}
DATA = Data(dataset="digits", augment="crop-flip", crop_padding=2, view_seed=11)
ROWS, CLASSES = 24, 3

fresh = multiprocessing.get_context("forkserver")  # processes in which nothing of S3 has begun
fresh.set_forkserver_preload(["tests.object_store"])


class ObjectStore:
    """A running server. `asked` has the method and path of every request, in order."""

    def __init__(self, server: Any) -> None:  # moto has no types
        host, port = server.get_host_and_port()
        self.host = f"{host}:{port}"
        self.asked: list[tuple[str, str]] = []
        self.app = server._server.app
        server._server.app = self._recorded

    def _recorded(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Any:  # WSGI
        self.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        return self.app(environ, respond)

    def request(self, method: str, path: str, content: bytes | None = None) -> None:
        kind = {"Content-Type": "application/octet-stream"}
        asked = urllib.request.Request(
            f"http://{self.host}/{path.lstrip('/')}", method=method, data=content, headers=kind
        )
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=20).close()


@contextmanager
def running() -> Iterator[ObjectStore]:
    """A server on a free port, gone with the block, and an environment that leads nowhere else."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        server.start()
        try:
            yield ObjectStore(server)
        finally:
            listening: Any = server._server  # which moto leaves open
            server.stop()
            listening.server_close()


@dataclass(frozen=True)
class S3:
    """One bucket of the server."""

    store: ObjectStore
    name: str

    def address(self, path: str = "caches") -> str:
        return f"s3://{self.name}/{path}?endpoint_override={self.store.host}&scheme=http&region=us-east-1"

    def count(self, method: str, ending: str = "") -> int:
        """Requests for objects of this bucket whose names end so."""
        asked = [path for asked, path in self.store.asked if asked == method]
        return sum(path.startswith(f"/{self.name}/") and path.endswith(ending) for path in asked)


def bucket_of(store: ObjectStore) -> S3:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    store.request("PUT", name)
    return S3(store, name)


# --- a cache of a small teacher that writes down how often it is asked


class Counted(nn.Module):
    """A teacher that appends a line with the number of its images to a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(64, CLASSES, generator=generator), requires_grad=False)
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        with self.path.open("a") as file:
            file.write(f"{len(images)}\n")
        return images.flatten(1) @ self.weight


def passes(path: Path) -> int:
    return sum(map(int, path.read_text().split())) if path.exists() else 0


def a_dataset() -> Dataset:
    images = torch.randint(0, 256, (ROWS, 1, 8, 8), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    labels = torch.arange(ROWS) % CLASSES
    return Dataset(
        name="digits",
        classes=("a", "b", "c"),
        images=images,
        labels=labels,
        given=labels,
        test=Images(images[:6], labels[:6]),
        fit=torch.arange(18),
        validation=torch.arange(18, ROWS),
        mean=(0.4,),
        std=(0.25,),
        fingerprint=hashlib.sha256(images.numpy().tobytes()).hexdigest(),
    )


def a_cache(address: str, folder: Path, views: int = 3, network: nn.Module | None = None) -> LogitCache:
    """Begun or opened, with a teacher at hand; copies and the teacher's counts are in `folder`."""
    dataset = a_dataset()
    network = network or Counted(folder / "asked")
    teacher = Teacher("", "cnn-8-16", (1, 8, 8), CLASSES, "a fingerprint", 0.9, trained_here=True)
    manifest = describe(identify(dataset, DATA, teacher), dataset, teacher)
    place = Place(address, str(folder / "copies"))
    return begin_cache(place, manifest, views=views, teacher=Answers(lambda: network, dataset, DATA))


# --- what other processes do


def _alone() -> None:
    """A process that a forkserver makes has the environment in which that server began, perhaps for other tests."""
    os.environ.update(ENVIRONMENT)


def hurried(dead: float) -> None:
    """Claims of this process, and what it thinks of others', live for fractions of a second."""
    _alone()
    bucket.BEAT_S, bucket.DEAD_S, bucket.Bucket.patience = dead / 10, dead, 0.05


def ensure_columns(address: str, folder: Path, views: int, dead: float) -> None:
    hurried(dead)
    cache = a_cache(address, folder, views)
    for view in range(views):
        cache.ensure(view)
        cache.teacher_logits(view, torch.arange(ROWS))


def fetch(address: str, folder: Path, views: int) -> None:
    _alone()
    cache = a_cache(address, folder, views)
    for view in range(views):
        cache.teacher_logits(view, torch.arange(ROWS))


class Stopped(nn.Module):
    """A teacher that says that it was asked, and never answers."""

    def __init__(self, asked: Any) -> None:  # an Event of multiprocessing
        super().__init__()
        self.asked = asked

    def forward(self, images: Tensor) -> Tensor:
        self.asked.set()
        time.sleep(600)
        raise AssertionError


def compute_for_ever(address: str, folder: Path, dead: float, asked: Any) -> None:
    hurried(dead)
    a_cache(address, folder, 1, Stopped(asked)).ensure(0)


def write_for_ever(address: str, begun: Any) -> None:
    _alone()
    with Bucket(address).writing("00000.arrow") as file:
        file.write(b"x" * (24 << 20))
        begun.set()
        time.sleep(600)
