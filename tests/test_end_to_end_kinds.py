"""Searches with real Ray: with a cache in a bucket, and with columns that several nodes compute.

They take minutes: `pytest -m slow`.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from kdtune.cache import open_cache
from kdtune.cache.store import store_at
from kdtune.records import read_trials
from kdtune.search.columns import compute_columns
from kdtune.search.session import session
from kdtune.storage import below, names_below
from kdtune.trial import Silent, prepare
from tests.conftest import CPU, MakeExperiment
from tests.object_store import S3
from tests.typed import kdtune_

pytestmark = pytest.mark.slow


# --- a search whose cache lies on an object store


FROM_A_BUCKET = """
name: bucket
data: {dataset: digits, validation: 0.2, augment: crop-flip, crop_padding: 1}
teacher: {model: "counted:teacher", train: {epochs: 2, batch_size: 32, learning_rate: 0.05}}
student: {model: cnn-4-8}
train: {epochs: 3, batch_size: 32, learning_rate: 0.1}
search:
  trials: 3
  space: {distill.temperature.start: {loguniform: [1, 8]}}
  stopper: {kind: asha, grace_epochs: 1}
final: {seeds: 1, baselines: [student alone]}
cache: {copies: copies}
"""
COUNTED = """
import os, traceback
from torch import nn

class Counted(nn.Sequential):
    def forward(self, images):
        asking = {frame.name for frame in traceback.extract_stack() if "kdtune/cache" in frame.filename}
        if "_compute" in asking:  # and not while it is trained, measured, or rows are checked
            with open(os.environ["COUNTED"], "a") as file:
                file.write(f"{len(images)}\\n")
        return super().forward(images)

def teacher(image_shape, classes):
    channels, height, width = image_shape
    return Counted(nn.Flatten(), nn.Linear(channels * height * width, 32), nn.ReLU(), nn.Linear(32, classes))
"""


def test_a_search_with_its_cache_in_a_bucket_asks_the_teacher_once_for_each_view(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "bucket.yaml").write_text(FROM_A_BUCKET)
    (tmp_path / "counted.py").write_text(COUNTED)
    asked, storage = tmp_path / "asked", f"cache.storage={s3.address()}"
    kdtune_(tmp_path, "search", "bucket.yaml", "--set", storage, COUNTED=str(asked))
    assert len(read_trials(tmp_path / "runs" / "bucket" / "trials.jsonl")) == 3
    (cache,) = names_below(s3.address())
    columns = [f"{view:05d}.arrow" for view in range(3)]
    assert {*columns, "manifest.json"} <= store_at(below(s3.address(), cache)).sizes().keys()
    images = map(int, asked.read_text().split())
    # two images tell each process that loads it whether the network takes channels last
    assert sum(count for count in images if count > 2) == 3 * 1347
    assert sorted(file.name for file in (tmp_path / "copies").rglob("*.arrow")) == columns
    assert [s3.count("GET", column) for column in columns] == [1, 1, 1]
    assert not list((tmp_path / "runs").rglob("*.arrow"))


# --- columns of a cache, computed side by side


@pytest.fixture
def two_nodes() -> Iterator[None]:
    """A Ray cluster of two nodes with a CPU each, on this machine."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, logging_level=logging.ERROR)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("two_nodes")
def test_columns_are_computed_by_tasks_on_every_node_and_each_of_them_once(make_experiment: MakeExperiment) -> None:
    # slow enough that the first task is not done before the second has started
    slow = {"model": "resnet8", "train": {"epochs": 1, "batch_size": 32, "learning_rate": 0.1}}
    experiment = make_experiment({"train.epochs": 24, "teacher": slow})
    materials = prepare(experiment, CPU, Silent())
    heard: list[tuple[int, int]] = []
    with session(experiment.resources) as slots:
        assert slots.concurrent == 2
        compute_columns(experiment, materials, slots, lambda there, views: heard.append((there, views)))
    assert heard[-1] == (24, 24)
    cache = open_cache(materials.caches["teacher"], views=24)
    assert cache.columns() == list(range(24))
    assert cache.bad_columns() == []
    seals = [cache.seal(view) for view in range(24)]
    assert len({seal.by for seal in seals if seal is not None}) == 3  # this process made the first, two tasks the rest
