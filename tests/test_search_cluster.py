"""What a search does otherwise on a cluster, as far as it can be told without one."""

import os
import pickle
import queue
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray
import torch
from ray._private.state import state

from kdtune.cache import LogitCache
from kdtune.data import Dataset
from kdtune.errors import CacheError, ExperimentError, Problem, RunError, StorageError
from kdtune.search import notice
from kdtune.search.away import Telling, _heard, _prepare, _told
from kdtune.search.crew import Crew
from kdtune.search.placing import Node
from kdtune.search.session import nodes, session
from kdtune.search.sharing import check_seen, leave_link, on_cluster
from kdtune.teacher import Teacher
from kdtune.trial import Progress, Silent
from tests.conftest import CPU, MakeExperiment

# --- where runs lie


@pytest.mark.parametrize(
    ("shared", "given", "found"),
    [
        ("/nfs/kdtune", "runs", "/nfs/kdtune/runs"),
        ("/nfs/kdtune", "/data/runs", "/data/runs"),
        ("/nfs/kdtune", "s3://other/runs", "s3://other/runs"),
        ("file:///nfs/kdtune", "runs", "/nfs/kdtune/runs"),
        ("s3://bucket/kdtune?region=x", "runs", "s3://bucket/kdtune/runs?region=x"),
    ],
)
def test_a_relative_storage_lies_below_the_one_that_the_nodes_share(
    shared: str, given: str, found: str, make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDTUNE_STORAGE", shared)
    experiment = on_cluster(make_experiment({"storage": given, "cache.storage": given}))
    assert (experiment.storage, experiment.cache.storage) == (found, found)


def test_without_a_shared_one_it_lies_in_the_home(
    make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KDTUNE_STORAGE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    experiment = on_cluster(make_experiment({"storage": "runs"}))
    assert (experiment.storage, experiment.cache.storage) == (str(tmp_path / "kdtune" / "runs"), None)


@pytest.mark.parametrize("changes", [{"storage": "runs"}, {"storage": "/nfs/runs", "cache.storage": "caches"}])
def test_the_home_will_not_do_for_a_cluster_that_may_grow(
    changes: dict[str, Any], make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KDTUNE_STORAGE", raising=False)
    monkeypatch.setenv("KDTUNE_NODES", '[{"cpus": 4, "gpus": 1, "count": 8}]')
    with pytest.raises(StorageError, match=r"home folder.*Set KDTUNE_STORAGE"):
        on_cluster(make_experiment(changes))
    given = {"storage": "/nfs/runs", "cache.storage": "s3://bucket/caches"}
    found = on_cluster(make_experiment(given))
    assert {"storage": found.storage, "cache.storage": found.cache.storage} == given
    monkeypatch.setenv("KDTUNE_STORAGE", "/nfs")
    assert on_cluster(make_experiment({"storage": "runs"})).storage == "/nfs/runs"


@pytest.mark.parametrize(
    ("shared", "what"), [("nfs/kdtune", "absolute folder"), ("hdfs://x/y", "s3://"), ("s3://a:secret@b", "secret key")]
)
def test_a_shared_storage_that_will_not_do_is_named(
    shared: str, what: str, make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDTUNE_STORAGE", shared)
    with pytest.raises(StorageError, match=f"KDTUNE_STORAGE.*{what}"):
        on_cluster(make_experiment())


def test_a_link_leads_from_the_runs_name_to_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for storage in ("old", "new"):
        leave_link(tmp_path / storage / "digits")
    links = tmp_path / ".kdtune" / "runs"
    assert os.listdir(links) == ["digits"]
    assert (links / "digits").readlink() == tmp_path / "new" / "digits"


class Asked:
    """A Ray task on one node, as `check_seen` asks for it."""

    answers: ClassVar[dict[str, Any]] = {}

    def __init__(self, act: Any, name: str = "") -> None:
        self.act = act
        self.name = name

    def options(self, scheduling_strategy: Any) -> "Asked":
        assert not scheduling_strategy.soft
        return Asked(self.act, scheduling_strategy.node_id)

    def remote(self, marker: Path) -> Any:
        assert self.act(marker)  # this machine sees it
        return self.answers[self.name]


def test_nodes_that_do_not_see_the_storage_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    names = [character * 56 for character in "abcd"]
    nodes = [{"NodeID": name, "NodeManagerAddress": f"10.0.0.{k}", "Alive": True} for k, name in enumerate(names)]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"NodeID": "e", "NodeManagerAddress": "gone", "Alive": False}])
    monkeypatch.setattr(ray, "remote", lambda **asked: Asked if asked["num_cpus"] == 0 else None)
    monkeypatch.setattr(ray, "get", get)
    lost = ray.exceptions.RayError()
    monkeypatch.setattr(Asked, "answers", dict(zip(names, (True, False, lost, False), strict=True)))
    with pytest.raises(StorageError, match=r"2 of 4 nodes cannot see or write: 10\.0\.0\.1, 10\.0\.0\.3\."):
        check_seen(tmp_path)
    monkeypatch.setattr(Asked, "answers", dict.fromkeys(names, True))
    check_seen(tmp_path)
    assert not list(tmp_path.iterdir())


# --- processes on slots


class Actor:
    """What a crew asks of an actor; its own reference says that it has arrived."""

    def __init__(self) -> None:
        self.__ray_ready__ = self.end = self
        self.left = False

    def remote(self) -> "Actor":
        return self


class Place:
    """Where actors arrive, die and are killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived: list[Any] = []  # in this order; an exception stands for one that ends as it starts
        self.killed: list[Actor] = []
        self.started: list[Actor] = []
        monkeypatch.setattr(ray, "wait", self.wait)
        monkeypatch.setattr(ray, "get", self.get)
        monkeypatch.setattr(ray, "kill", self.killed.append)

    def start(self) -> Actor:
        self.started.append(Actor())
        return self.started[-1]

    def wait(self, asked: list[Any], num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
        ready = [one for one in asked if one in self.arrived][:num_returns]
        return ready, [one for one in asked if one not in ready]

    def get(self, given: Any) -> None:
        if isinstance(given, Actor) and given.left:
            raise ray.exceptions.ActorDiedError


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(monkeypatch)


def test_work_is_given_to_who_has_arrived_and_nobody_waits_for_who_never_does(place: Place) -> None:
    crew = Crew(place.start, most=3)
    crew.call(2)
    crew.call(5)
    one, two, three = place.started
    place.arrived = [two]
    assert crew.next([]) is None
    assert crew.idle == [two]
    place.arrived = ["what two says"]
    assert crew.next(["what two says"]) == "what two says"
    crew.end()
    assert set(place.killed) == {one, two, three}


def test_who_is_lost_is_replaced_and_who_is_retired_keeps_its_place(place: Place) -> None:
    crew = Crew(place.start, most=2)
    crew.call(2)
    place.arrived = list(place.started)
    crew.next([])
    crew.next([])
    crew.retire(crew.idle.pop())
    crew.call(2)
    assert len(place.started) == 2
    crew.idle.pop()
    crew.lost()
    crew.call(2)
    assert len(place.started) == 3
    with pytest.raises(RunError, match="all 2 places"):
        crew.retire(place.started[-1])


def test_where_nobody_comes_or_all_end_as_they_start_that_is_told(place: Place) -> None:
    crew = Crew(place.start, most=1)
    crew.call(1)
    with pytest.raises(RunError, match="no process could be started in 20 minutes"):
        crew.next([])

    def start_again() -> None:
        crew.call(1)
        place.started[-1].left = True
        place.arrived = list(place.started)
        crew.next([])

    for _ in range(3):
        start_again()
    with pytest.raises(RunError, match="processes end as they start"):
        start_again()
    assert len(place.started) == 4


# --- what crosses from a slot to the driver


class Heard(Silent):
    """Progress that writes down what it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def dataset_ready(self, dataset: Dataset) -> None:
        fit, test = len(dataset.fit), len(dataset.test.labels)
        self.lines.append(f"{dataset.name} {dataset.shape} {fit} {test} {len(dataset.images)}")

    def teacher_epoch(self, name: str, record: Any) -> None:
        self.lines.append(f"{name} {record.epoch}")

    def teacher_ready(self, name: str, teacher: Teacher, dataset: Dataset) -> None:
        self.lines.append(f"{name} {teacher.model} {len(dataset.validation)}")

    def cache_ready(self, cache: LogitCache) -> None:
        self.lines.append(f"{cache.there()} of {cache.views}, {cache.rows_checked} checked")


@pytest.fixture
def crossing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's references are the things themselves."""
    monkeypatch.setattr(ray, "get", lambda reference: reference)


@pytest.mark.usefixtures("crossing")
def test_what_preparing_tells_is_heard_here_without_the_pixels(make_experiment: MakeExperiment) -> None:
    heard = Heard()
    experiment = make_experiment({"teacher.train.epochs": 3})

    def work(progress: Progress, device: torch.device) -> Any:
        return _prepare(experiment, None, progress, device)

    materials = _heard(_told(work, CPU, 1), heard)
    assert heard.lines == [
        "digits (1, 8, 8) 1211 450 0",
        "teacher 1",
        "teacher 2",
        "teacher 3",
        "teacher cnn-8-16 136",
        "1 of 2, 0 checked",
    ]
    assert len(materials.dataset.images) == 1347
    teacher = materials.teachers["teacher"]
    for file in Path(teacher.folder).iterdir():
        file.unlink()
    assert teacher.load(CPU)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.usefixtures("crossing")
@pytest.mark.parametrize(
    "error",
    [CacheError("damaged"), ExperimentError("x.yaml", [Problem("a.b", "is wrong")]), OSError(28, "No space", "/disk")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_a_user_can_mend_is_raised_here_as_it_was_there(error: Exception) -> None:
    def work(progress: Progress, device: torch.device) -> None:
        raise pickle.loads(pickle.dumps(error))

    with pytest.raises(type(error)) as raised:
        _heard(_told(work, CPU, 1), Silent())
    assert str(raised.value) == str(error)


@pytest.mark.usefixtures("crossing")
def test_a_bug_keeps_its_traceback() -> None:
    def faulty(progress: Progress, device: torch.device) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        _heard(_told(faulty, CPU, 1), Silent())
    assert raised.traceback[-1].name == "faulty"


def test_words_about_files_do_not_flood_the_driver() -> None:
    said: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
    telling = Telling(said)
    for done in range(1001):
        telling.files_read(done, 1000)
    assert 2 <= said.qsize() < 100


# --- a node's notice


def test_a_node_is_asked_about_once_in_a_while_and_knows_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{}, {"a": 0}, {"b": 12}])
    asked = []

    def draining() -> dict[str, int]:
        asked.append(next(answers))
        return asked[-1]

    class Context:
        def get_node_id(self) -> str:
            return "a"

    monkeypatch.setattr(state, "get_draining_nodes", draining)
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setattr(notice, "_seen", (float("-inf"), frozenset()))
    assert not notice.draining()
    assert not notice.draining()
    assert asked == [{}]
    monkeypatch.setattr(notice, "LOOK_EVERY_S", -1.0)
    assert notice.draining()
    assert not notice.draining()
    monkeypatch.setattr(notice, "LOOK_EVERY_S", 60.0)
    assert notice.draining("c", "b")


@pytest.mark.parametrize("count", [1, 2])
def test_errors_of_a_machine_are_held_back_where_there_are_others_and_bugs_never(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[float] = []
    monkeypatch.setattr(time, "sleep", held.append)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": False}, *[{"Alive": True}] * count])
    errors: list[tuple[Exception, bool]] = [
        (OSError(28, "No space"), True),
        (CacheError("out of reach"), True),
        (torch.AcceleratorError("an illegal memory access was encountered"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RunError("workers are lost"), False),
        (ZeroDivisionError(), False),
    ]
    for error, of_a_machine in errors:
        held.clear()
        with pytest.raises(type(error)), notice.held_back():
            raise error
        assert len(held) == (of_a_machine and count > 1)


# --- no cluster


@pytest.mark.parametrize("given", ["eight", "[8]", '[{"cpu": 8}]', "{}x"])
def test_nodes_that_cannot_be_understood_are_shown(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDTUNE_NODES", given)
    with pytest.raises(RunError, match=r"KDTUNE_NODES is .*expected all nodes"):
        nodes()


def test_nodes_that_a_cluster_may_grow_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDTUNE_NODES", '[{"cpus": 8, "gpus": 1, "count": 4}, {"cpus": 2, "gpus": 0}]')
    assert nodes() == [Node(8, 1, 4), Node(2, 0, 1)]


def test_where_no_cluster_answers_that_is_told(
    make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(**given: object) -> None:
        raise ConnectionError(f"nobody at {given['address']}")

    monkeypatch.setattr(ray, "init", nobody)
    with (
        pytest.raises(RunError, match=r"no Ray cluster answers at 'auto': nobody at auto.*ray start --head"),
        session(make_experiment().resources, "auto"),
    ):
        raise AssertionError
