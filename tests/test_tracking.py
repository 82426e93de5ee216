"""Tools are told every epoch once, whatever happens to the search or to them."""

import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kdtune.errors import ExperimentError
from kdtune.experiment import parse
from kdtune.records import EpochRecord, append_line
from kdtune.search import tracking
from kdtune.search.board import Board, Row
from kdtune.search.trackers import TRACKERS, Place, Point, Run
from kdtune.search.tracking import check_tracking, tracked
from kdtune.trial.run_folder import claim
from tests.conftest import MakeExperiment
from tests.experiments import problems_of, raw_with
from tests.hosts.waiting import wait_until
from tests.tracking_readers import READERS, Shown

EPOCHS = 3
CONFIG = {"distill.alpha.start": 0.5, "distill.temperature.kind": "fixed"}
TOOLS = list(TRACKERS)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of MLflow's without runs; making its tables takes seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _tools_of_this_test(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name in ("MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(tracking, "EVERY_S", 0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def record(epoch: int, loss: float = 1.5) -> dict[str, Any]:
    terms = {"cross_entropy": 0.5 * loss, "distillation": 0.5 * loss}
    return EpochRecord(epoch, EPOCHS, loss, terms, epoch / 10, 1.0, 0.1, 0.25, 0.0, 4.0, 0.5, 0.0).to_json()


def append(folder: Path, trial: str, *epochs: int, loss: float = 1.5) -> None:
    for epoch in epochs:
        append_line(folder / "trials.jsonl", {"trial": trial, "config": CONFIG, "at": 1.0, **record(epoch, loss)})


def tell(folder: Path, tool: str, statuses: dict[str, str], *, over: bool = False) -> None:
    """All that is in the records, by a process of its own; `statuses` is what the board of the search says."""
    board = Board(8, EPOCHS, {name: Row(name, CONFIG, status=status) for name, status in statuses.items()})
    with tracked(
        folder,
        parse(raw_with({"tracking": tool})),
    ) as told:
        told.trials_run(board)
        if over:
            told.trials_are_over()


def epochs_of(shown: Shown) -> list[tuple[int, float]]:
    """TensorBoard keeps float32."""
    return [(step, round(value, 6)) for step, value in shown.curves["val_accuracy"]]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_shows_every_number_of_every_epoch_the_configuration_and_the_end(folder: Path, tool: str) -> None:
    append(folder, "0000", 1)
    append(folder, "0001", 1)
    append(folder, "0000", 2, 3)
    tell(folder, tool, {"0000": "complete", "0001": "stopped"})
    shown = READERS[tool](folder)
    assert set(shown) == {"0000", "0001"}
    assert epochs_of(shown["0000"]) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert epochs_of(shown["0001"]) == [(1, 0.1)]
    assert {name: curve[0][1] for name, curve in shown["0001"].curves.items()} == pytest.approx(
        {"val_accuracy": 0.1, "val_loss": 1.0, "loss": 1.5, "learning_rate": 0.1, "temperature": 4.0, "alpha": 0.5,
         "feature_weight": 0.0, "seconds": 0.25, "terms/cross_entropy": 0.75, "terms/distillation": 0.75}
    )  # fmt: skip
    assert shown["0001"].config == {"distill.alpha.start": "0.5", "distill.temperature.kind": "fixed"}
    assert [run.ended for run in shown.values()] == ["FINISHED", "FINISHED"]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_search_that_is_taken_up_goes_on_in_the_same_runs(folder: Path, tool: str) -> None:
    append(folder, "0000", 1)
    tell(folder, tool, {"0000": "running"})
    if tool != "wandb":  # whose files end with a process, whatever is sent of them later
        assert READERS[tool](folder)["0000"].ended == ""
    second = int(time.time())
    while tool == "wandb" and int(time.time()) == second:
        time.sleep(0.05)  # W&B names a file by the second
    append(folder, "0000", 2, 3)
    tell(folder, tool, {"0000": "complete"})
    (shown,) = READERS[tool](folder).values()
    assert epochs_of(shown) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert shown.ended == "FINISHED"


@pytest.mark.parametrize("tool", ["tensorboard", "mlflow"])  # W&B leaves out what it has when files are sent
def test_a_driver_that_is_killed_before_it_has_noted_what_it_told_tells_no_epoch_twice(folder: Path, tool: str) -> None:
    append(folder, "0000", 1)
    tell(folder, tool, {"0000": "running"})
    before = (folder / "tracking.json").read_text()
    append(folder, "0000", 2)
    tell(folder, tool, {"0000": "running"})
    (folder / "tracking.json").write_text(before)
    append(folder, "0000", 3)
    tell(folder, tool, {"0000": "complete"})
    (shown,) = READERS[tool](folder).values()
    assert epochs_of(shown) == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_an_event_file_that_was_cut_by_a_crash_is_mended(folder: Path) -> None:
    append(folder, "0000", 1, 2)
    tell(folder, "tensorboard", {"0000": "running"})
    (file,) = (folder / "tensorboard" / "0000").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    (folder / "tracking.json").write_text(json.dumps({"key": "a", "told": {}}))
    append(folder, "0000", 3)
    tell(folder, "tensorboard", {"0000": "complete"})
    assert epochs_of(READERS["tensorboard"](folder)["0000"]) == [(1, 0.1), (2, 0.2), (3, 0.3)]


@pytest.mark.parametrize("tool", ["tensorboard", "mlflow"])
def test_a_trial_that_diverged_has_failed_and_what_a_budget_ended_has_not(folder: Path, tool: str) -> None:
    append(folder, "0000", 1)
    append(folder, "0000", 2, loss=float("nan"))
    append(folder, "0001", 1)
    append(folder, "0002", 1)
    append_line(folder / "errors.jsonl", {"trial": "0002", "error": "RuntimeError: no", "times": 0, "at": 1.0})
    tell(folder, tool, {"0000": "diverged"}, over=True)
    shown = READERS[tool](folder)
    assert {name: run.ended for name, run in shown.items()} == {"0000": "FAILED", "0001": "FINISHED", "0002": "FAILED"}
    assert [step for step, _ in shown["0000"].curves["loss"]] == [1]  # NaN is no number to show


@pytest.mark.parametrize("tool", ["tensorboard", "mlflow"])
def test_runs_of_the_final_stage_are_told_with_their_accuracy_on_test_images(folder: Path, tool: str) -> None:
    line = {"name": "student alone", "seed": 2, "made_of": "abc", "test_accuracy": 0.875, "diverged": False}
    line["config"] = {"train.learning_rate": 0.1, "train.milestones": [0.5, 0.75]}
    append_line(folder / "final.jsonl", {**line, "epochs": [record(epoch) for epoch in (1, 2, 3)]})
    tell(folder, tool, {})
    ((name, shown),) = READERS[tool](folder).items()
    assert name == "final-student-alone-2-abc"
    assert shown.curves["test_accuracy"] == [(3, 0.875)]
    assert len(shown.curves["loss"]) == 3
    assert shown.ended == "FINISHED"
    assert shown.config == {
        "row": "student alone", "seed": "2" if tool == "mlflow" else "2.0", "train.learning_rate": "0.1",
        "train.milestones": "[0.5, 0.75]",
    }  # fmt: skip


def test_a_search_of_the_same_name_in_another_folder_has_runs_of_its_own(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        append(tmp_path / name, "0000", 1)
        tell(tmp_path / name, "mlflow", {"0000": "running"})
    client = MlflowClient()
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 2


class Down:
    """A tool that does not answer until told to."""

    up = False
    asked = 0
    got: list[tuple[str, int]]

    def __init__(self, place: Place) -> None:
        Down.asked += 1

    def epochs(self, run: Run, points: list[Point]) -> None:
        if not Down.up:
            raise ConnectionError("no route to host")
        Down.got += [(run.name, point.epoch) for point in points]

    def ended(self, run: Run, status: str) -> None:
        Down.got.append((status, 0))

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch) -> type[Down]:
    monkeypatch.setitem(TRACKERS, "mlflow", Down)
    Down.up, Down.asked, Down.got = False, 0, []
    return Down


def test_a_tool_that_fails_ends_nothing_is_told_of_once_and_hears_later_what_it_missed(
    folder: Path, down: type[Down], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "PAUSE_S", 0.02)
    board = Board(8, EPOCHS)
    with tracked(folder, parse(raw_with({"tracking": "mlflow"}))) as told:
        told.trials_run(board)
        append(folder, "0000", 1, 2)
        wait_until(lambda: down.asked >= 3, 60, lambda: f"asked {down.asked} times")
        assert len([line for line in caplog.messages if "no route to host" in line]) == 1
        down.up = True
        append(folder, "0000", 3)
        wait_until(lambda: ("complete", 0) in down.got, 60, lambda: str(down.got))
    assert down.got == [("0000", 1), ("0000", 2), ("0000", 3), ("complete", 0)]


def test_what_a_tool_missed_for_good_is_told_by_the_same_command(
    folder: Path, down: type[Down], caplog: pytest.LogCaptureFixture
) -> None:
    append(folder, "0000", 1, 2)
    tell(folder, "mlflow", {"0000": "stopped"})
    assert "mlflow was not told of everything; the same command goes on with that" in caplog.messages
    down.up = True
    tell(folder, "mlflow", {"0000": "stopped"})
    assert down.got == [("0000", 1), ("0000", 2), ("stopped", 0)]


def test_a_tool_that_is_slow_holds_a_search_up_for_so_long_and_no_longer(
    folder: Path, down: type[Down], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each line that it takes is a sign of life."""
    down.up = True
    taken = threading.Event()
    monkeypatch.setattr(down, "epochs", lambda self, run, points: taken.wait(0.05))
    for name, value in (("LINES", 1), ("LONGEST_END_S", 0.3)):
        monkeypatch.setattr(tracking, name, value)
    append(folder, "0000", *range(1, 1000))
    tell(folder, "mlflow", {})
    assert "mlflow was not told of everything; the same command goes on with that" in caplog.messages


@pytest.mark.parametrize("tool", TOOLS)
def test_a_row_may_be_named_as_one_likes(folder: Path, tool: str) -> None:
    append(folder, 'Bob\'s "best": 50% #1?', 1)
    append(folder, 'Bob\'s "best": 50% #2?', 1)
    tell(folder, tool, {'Bob\'s "best": 50% #1?': "complete", 'Bob\'s "best": 50% #2?': "complete"})
    assert [epochs_of(shown) for shown in READERS[tool](folder).values()] == [[(1, 0.1)], [(1, 0.1)]]


@pytest.mark.parametrize(("tool", "module"), [("mlflow", "mlflow.tracking"), ("wandb", "wandb")])
def test_a_tool_that_is_not_installed_is_told_before_anything_starts(
    folder: Path, tool: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    problems = problems_of(lambda: check_tracking(folder, parse(raw_with({"tracking": [tool]}))))
    assert f"{tool} is not installed" in problems["tracking"]
    assert f"pip install 'kdtune[{tool}]'" in problems["tracking"]
    assert not list(folder.iterdir())


def test_a_server_that_is_not_there_is_told_before_anything_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    problems = problems_of(lambda: check_tracking(folder, parse(raw_with({"tracking": "mlflow"}))))
    assert "mlflow cannot be used" in problems["tracking"]
    assert "MLFLOW_TRACKING_URI says where" in problems["tracking"]


def test_a_file_of_mlflow_in_the_working_folder_is_no_place_for_a_search_on_a_cluster(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ExperimentError, match="needs a server that its head node reaches"):
        check_tracking(folder, parse(raw_with({"tracking": "mlflow"})), away=True)


def test_wandb_without_a_key_is_told_before_anything_starts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    with pytest.raises(ExperimentError, match="WANDB_MODE=offline keeps everything"):
        check_tracking(folder, parse(raw_with({"tracking": "wandb"})))


def test_tools_are_one_or_a_list_and_tensorboard_where_nothing_is_said() -> None:
    assert parse(raw_with({})).tracking == ("tensorboard",)
    assert parse(raw_with({"tracking": "wandb"})).tracking == ("wandb",)
    assert parse(raw_with({"tracking": ["mlflow", "wandb", "mlflow"]})).tracking == ("mlflow", "wandb")
    assert parse(raw_with({"tracking": []})).tracking == ()
    ((path, message),) = problems_of(lambda: parse(raw_with({"tracking": "mlfow"}))).items()
    assert path.startswith("tracking")
    assert "mlflow" in message


def test_who_is_told_may_change_for_a_run_that_was_begun(make_experiment: MakeExperiment) -> None:
    folder = claim(make_experiment({"tracking": []}))
    (folder / "trials.jsonl").touch()
    assert claim(make_experiment({"tracking": "mlflow"})) == folder


def test_without_tools_nothing_is_written(folder: Path) -> None:
    append(folder, "0000", 1)
    with tracked(folder, parse(raw_with({"tracking": []}))):
        pass
    assert [file.name for file in folder.iterdir()] == ["trials.jsonl"]
