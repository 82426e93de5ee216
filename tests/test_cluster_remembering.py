"""What a laptop keeps of a search on a cluster: by name, whole or absent, and never over a run of its own."""

import json
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import pytest
import typer

from kdtune.cli import main
from kdtune.cli.remote import begun_before, detachable, is_here, on_cluster
from kdtune.cluster import fetching, remote
from kdtune.cluster.fetching import FILES, fetch
from kdtune.cluster.files import ClusterFile
from kdtune.cluster.finding import There
from kdtune.cluster.remembering import Remembered, find, local_folder, recall
from kdtune.cluster.remote import Remote
from kdtune.cluster.shipping import resolve
from kdtune.errors import ClusterError, RunError
from kdtune.experiment import Experiment
from kdtune.report.summary import write_summary
from kdtune.trial import asked
from tests.conftest import MakeExperiment
from tests.fake_head import FakeHead


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def remembered(name: str, *, fetched: bool = False, digest: str = "") -> Remembered:
    folder = Path("runs", name).resolve()
    return Remembered(folder, name, Path("cluster.yaml").resolve(), f"kdtune-{name}-1", digest, fetched).write()


def test_a_search_is_found_again_by_its_name_its_folder_or_as_the_only_open_one() -> None:
    with pytest.raises(ClusterError, match="no search was sent to a cluster from this folder"):
        find(None)
    one, _ = remembered("one"), remembered("two", fetched=True)
    assert recall(one.folder) == one
    for name in ("one", "runs/one", str(one.folder), None):
        assert find(name).job == "kdtune-one-1"
    remembered("three")
    with pytest.raises(ClusterError, match=r"which search\? Give its name\. There are: one, three"):
        find(None)
    with pytest.raises(ClusterError, match=r"no search 'thre' was begun .* Did you mean 'three'"):
        find("thre")


@pytest.mark.parametrize("content", ["{}", '{"name": "o', "[]", "\\udcff"])
def test_a_damaged_note_says_so_and_hides_no_other(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    note = remembered("one").folder / "cluster.json"
    note.write_text(content, errors="surrogateescape")
    with pytest.raises(ClusterError, match="was edited or damaged"):
        find("one")
    with pytest.raises(ClusterError, match="was edited or damaged"):
        find(None)
    remembered("two", fetched=True)
    assert find("two").name == "two"
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "one/cluster.json was edited or damaged" in said
    assert "finished; results in" in said


@pytest.mark.parametrize("storage", ["mine", "out/runs"])
def test_a_search_with_a_storage_of_its_own_is_found_by_its_name_unless_two_have_it(
    storage: str, make_experiment: MakeExperiment
) -> None:
    folder = local_folder(make_experiment({"storage": storage}))
    mine = Remembered(folder, "tiny", Path("cluster.yaml"), "kdtune-tiny-1", "").write()
    assert find("tiny") == mine
    assert find(None) == mine
    remembered("tiny")
    with pytest.raises(ClusterError, match=f"several searches are called tiny: .*{folder}"):
        find("tiny")
    assert find(str(folder)) == mine


def test_a_file_is_the_run_folder_of_no_search() -> None:
    Path("experiment.yaml").touch()
    with pytest.raises(ClusterError, match=r"no search 'experiment\.yaml' was begun"):
        find("experiment.yaml")


def test_results_come_to_the_storage_of_this_machine_or_to_runs(make_experiment: MakeExperiment) -> None:
    assert local_folder(make_experiment({"storage": "mine"})) == Path("mine/tiny")
    assert local_folder(make_experiment({"storage": "/shared/all"})) == Path("runs/tiny")
    assert local_folder(make_experiment({"storage": "s3://bucket/all"})) == Path("runs/tiny")


@pytest.fixture
def head(tmp_path: Path) -> FakeHead:
    return FakeHead(tmp_path / "home", port=1)


def run_on(head: FakeHead, files: dict[str, str]) -> Path:
    """A run folder behind the link that the driver leaves."""
    run, link = head.home / "storage" / "digits", head.home / ".kdtune" / "runs" / "digits"
    for name, text in files.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(run)
    return run


WHOLE = {"summary.json": "{}", "student/student.safetensors": "new", "student/config.json": "{}",
         "final/best.safetensors": "new", "final/winner.json": "{}", "final/0/state": "x", "trials.jsonl": "",
         "errors.jsonl": "", "experiment.yaml": "",
         "ray/huge": "x"}  # fmt: skip


def test_results_replace_older_ones_and_nothing_else_comes_or_goes(head: FakeHead, folder: Path) -> None:
    run_on(head, WHOLE)
    here = folder / "runs" / "digits"
    (here / "student").mkdir(parents=True)
    (here / "student" / "old.safetensors").write_text("old")
    (here / "notes.txt").write_text("mine")
    fetch(head, "digits", here)
    assert sorted(path.name for path in here.iterdir()) == [
        "errors.jsonl", "experiment.yaml", "final", "notes.txt", "student", "summary.json", "trials.jsonl",
    ]  # fmt: skip
    assert [path.name for path in sorted((here / "student").iterdir())] == ["config.json", "student.safetensors"]
    kept = {"best.safetensors", "winner.json"}
    assert {path.name for path in (here / "final").iterdir()} == kept, "kdtune export and report read them"


def test_a_run_without_results_changes_nothing_here(head: FakeHead, folder: Path) -> None:
    run_on(head, {"trials.jsonl": ""})
    here = folder / "runs" / "digits"
    with pytest.raises(ClusterError, match="has no results yet"):
        fetch(head, "digits", here)
    assert not list(here.iterdir())


def test_a_connection_that_breaks_in_the_middle_leaves_no_part(
    head: FakeHead, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on(head, WHOLE)
    whole = head.output

    def cut(command: str, into: IO[bytes]) -> None:
        whole(command, into)
        into.truncate(into.tell() // 2)

    monkeypatch.setattr(head, "output", cut)
    here = folder / "runs" / "digits"
    with pytest.raises(ClusterError, match="arrived damaged"):
        fetch(head, "digits", here)
    assert not list(here.iterdir())


def test_the_summary_comes_last(head: FakeHead, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_on(head, WHOLE)
    moved: list[str] = []
    monkeypatch.setattr(fetching, "_replace", lambda part, file, folder: moved.append(file))
    fetch(head, "digits", folder / "runs" / "digits")
    assert moved == list(FILES)
    assert moved[-1] == "summary.json"


def test_a_run_of_this_machine_is_never_replaced(head: FakeHead, folder: Path, make_experiment: MakeExperiment) -> None:
    experiment = make_experiment({"storage": "runs"})
    (folder / "runs" / "tiny").mkdir(parents=True)
    (folder / "runs" / "tiny" / "experiment.yaml").touch()
    cluster = ClusterFile(folder / "cluster.yaml", {"cluster_name": "c", "provider": {"type": "local"}})
    with pytest.raises(ClusterError, match="holds a run of this machine"):
        Remote(cluster, head).begin(experiment, folder, print)


def test_a_search_stays_where_it_was_begun(make_experiment: MakeExperiment) -> None:
    experiment = make_experiment({"storage": "runs"})
    assert begun_before(experiment, local=True, cluster=None) is None
    before = remembered("tiny")
    assert begun_before(experiment, local=False, cluster=None) == before
    assert begun_before(experiment, local=False, cluster=Path("cluster.yaml")) == before
    with pytest.raises(RunError, match="for one on this machine choose another name"):
        begun_before(experiment, local=True, cluster=None)
    with pytest.raises(RunError, match=r"for one on other\.yaml choose another name"):
        begun_before(experiment, local=False, cluster=Path("other.yaml"))


def test_fetched_results_are_of_this_very_experiment_or_refused(make_experiment: MakeExperiment, folder: Path) -> None:
    experiment = make_experiment({"storage": "runs"})
    digest = resolve(experiment, folder).digest
    assert not is_here(remembered("tiny", digest=digest), experiment)
    done = remembered("tiny", fetched=True, digest=digest)
    assert is_here(done, experiment)
    with pytest.raises(RunError, match="holds the results of another experiment"):
        is_here(done, make_experiment({"storage": "runs", "train.epochs": 9}))


def test_fetched_results_are_not_all_where_more_trials_are_asked_for(
    make_experiment: MakeExperiment, folder: Path
) -> None:
    space = {"distill.alpha": {"uniform": [0.1, 0.9]}}
    few, more = (make_experiment({"storage": "runs", "search.space": space, "search.trials": n}) for n in (3, 9))
    done = remembered("tiny", fetched=True, digest=resolve(few, folder).digest)
    write_summary(done.folder, {"search": {"asked": asked(few)}, "best": {}, "results": []})
    assert is_here(done, few)
    assert not is_here(done, more)
    all_of_them = remembered("tiny", fetched=True, digest=resolve(more, folder).digest)
    write_summary(done.folder, {"search": {"asked": asked(more)}, "best": {}, "results": []})
    with pytest.raises(RunError, match="holds the results of another experiment"):  # trials are never taken back
        is_here(all_of_them, few)


def test_ctrl_c_detaches_and_says_how_to_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, detachable(remembered("one"), down=True):
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    said = capsys.readouterr().err
    for word in ("goes on", "kdtune attach one", "kdtune status one", "kdtune stop one", "not been taken down"):
        assert word in said


class Submitting:
    """A job server that has had no jobs, and to which submitting one ends in `error`."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.submitted = error, list[str]()

    def list_jobs(self) -> list[object]:
        return []

    def submit_job(self, *, submission_id: str, **others: object) -> str:
        self.submitted.append(submission_id)
        raise self.error


def begin_at(server: Submitting, experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = ClusterFile(Path("cluster.yaml").resolve(), {"cluster_name": "c", "provider": {"type": "aws"}})
    head: Any = None  # nobody asks it
    monkeypatch.setattr(remote, "connected", lambda head, token: nullcontext(server))
    on_cluster(There(cluster, head, "on a cluster of this test's"), experiment, down=False)


def test_ctrl_c_while_the_search_is_submitted_leaves_it_known(
    make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server, experiment = Submitting(KeyboardInterrupt()), make_experiment({"storage": "runs"})
    with pytest.raises(typer.Exit) as ended:
        begin_at(server, experiment, monkeypatch)
    assert ended.value.exit_code == 130
    assert "kdtune status tiny" in capsys.readouterr().err
    assert [find("tiny").job] == server.submitted


def test_a_job_is_named_for_its_experiment_and_one_that_is_there_already_is_attached_to(
    make_experiment: MakeExperiment, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = "Request failed with status code 400: ValueError: Job with submission_id x already exists. Please use."
    server, experiment = Submitting(RuntimeError(taken)), make_experiment({"storage": "runs"})
    with pytest.raises(ClusterError, match="the same `kdtune search` attaches to it"):
        begin_at(server, experiment, monkeypatch)
    assert server.submitted == [f"kdtune-tiny-{resolve(experiment, folder).digest[:6]}-1"]


def test_status_tells_of_every_search_though_one_cluster_cannot_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    remembered("gone")
    remembered("here", fetched=True)
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "not known: the search gone has a cluster file that cannot be used" in said
    assert f"finished; results in {Path('runs/here')}" in said


def test_the_command_line_comes_at_once() -> None:
    code = "import sys, kdtune.cli; print([name for name in ('ray', 'torch', 'boto3', 'yaml') if name in sys.modules])"
    done = subprocess.run(["python", "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
