"""What a search takes along to a cluster, what it leaves behind, and where its checkpoints come to lie."""

import zipfile
from pathlib import Path

import pytest
import yaml

from kdtune.cluster import shipping
from kdtune.cluster.shipping import EXPERIMENT, pack, resolve
from kdtune.errors import ClusterError, ExperimentError
from kdtune.experiment import Experiment, load
from tests.conftest import MakeExperiment


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder like people's, with something of everything."""
    work = tmp_path / "work"
    texts = {
        ".gitignore": "*.log\n/big/\n",
        "nets.py": "code",
        "notes.log": "",
        "big/blob": "",
        "sub/.gitignore": "secret*\n",
        "sub/secret.txt": "",
        "sub/kept.txt": "kept",
        "sub/big/kept.txt": "the rule above was for the top alone",
        ".rayignore": "not-for-ray\n",
        "not-for-ray": "",
        ".git/config": "",
        "__pycache__/nets.pyc": "",
        "env/pyvenv.cfg": "",
        "env/lib/python.py": "",
        "runs/digits/summary.json": "",
        "photos/cat.jpeg": "",
        "models/teacher.pth": "weights",
        "caches/a/00000.arrow": "",
        "sub/copies/a/00000.arrow": "",
        ".ssh/id_ed25519": "secret",
        ".aws/credentials": "secret",
        ".ray/auth_token": "secret",
        ".kdtune/known_hosts": "",
        ".env": "secret",
        "sub/login.pem": "secret",
        "sub/server.key": "secret",
    }
    for name, text in texts.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    (work / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    return work


def shipped(experiment: Experiment, folder: Path) -> dict[str, bytes]:
    archive = folder.parent / "shipped.zip"
    pack(resolve(experiment, folder), folder, archive)
    with zipfile.ZipFile(archive) as content:
        return {name: content.read(name) for name in content.namelist()}


def test_only_what_a_cluster_has_a_use_for_is_shipped(folder: Path, make_experiment: MakeExperiment) -> None:
    kept = {"storage": str(folder / "caches"), "copies": "sub/copies"}
    experiment = make_experiment({"storage": "runs", "cache": kept})
    experiment = experiment.model_copy(
        update={"data": experiment.data.model_copy(update={"root": str(folder / "photos")})}
    )
    assert set(shipped(experiment, folder)) == {
        ".gitignore", ".rayignore", "nets.py", "sub/.gitignore", "sub/kept.txt", "sub/big/kept.txt",
        "models/teacher.pth", EXPERIMENT,
    }  # fmt: skip


def test_what_a_repository_ignores_is_not_shipped_from_a_folder_inside_it(
    folder: Path, make_experiment: MakeExperiment
) -> None:
    (folder / "nets.swp").touch()
    (folder.parent / ".gitignore").write_text("*.swp\n/work/sub/\n")
    assert "nets.swp" in shipped(make_experiment(), folder), "the working folder is a repository of its own"
    (folder / ".git").rename(folder.parent / ".git")
    assert {"nets.swp", "sub/kept.txt"}.isdisjoint(shipped(make_experiment(), folder))
    assert "nets.py" in shipped(make_experiment(), folder)
    (folder.parent / ".gitignore").write_text("/work/\n")
    assert "nets.py" in shipped(make_experiment(), folder), "who searches from an ignored folder means what is in it"


def test_the_same_content_gives_the_same_bytes_so_that_it_is_uploaded_once(
    folder: Path, make_experiment: MakeExperiment
) -> None:
    shipment = resolve(make_experiment(), folder)
    archives = [folder.parent / name for name in ("one.zip", "two.zip")]
    pack(shipment, folder, archives[0])
    (folder / "nets.py").touch()
    pack(shipment, folder, archives[1])
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_a_checkpoint_inside_the_folder_stays_where_it_is_though_git_ignores_it(
    folder: Path, make_experiment: MakeExperiment
) -> None:
    (folder / ".gitignore").write_text("*.pth\n")
    experiment = make_experiment({"teacher.weights": "models/../models/teacher.pth"})
    found = shipped(experiment, folder)
    assert found["models/teacher.pth"] == b"weights"
    assert yaml.safe_load(found[EXPERIMENT])["teacher"]["weights"] == "models/teacher.pth"


def test_another_checkpoint_of_the_same_name_is_another_experiment(
    folder: Path, make_experiment: MakeExperiment
) -> None:
    experiment = make_experiment({"teacher.weights": "models/teacher.pth"})
    first = resolve(experiment, folder).digest
    assert first == resolve(experiment, folder).digest
    (folder / "models" / "teacher.pth").write_text("replaced")
    assert resolve(experiment, folder).digest != first


@pytest.mark.parametrize("relative", [True, False])
def test_a_checkpoint_from_elsewhere_travels_along_under_a_name_of_its_content(
    folder: Path, make_experiment: MakeExperiment, relative: bool
) -> None:
    outside = folder.parent / "far" / "resnet.pth"
    outside.parent.mkdir()
    outside.write_text("one")
    given = "../far/resnet.pth" if relative else str(outside)
    teachers = {"large": {"model": "cnn-8", "weights": given}, "small": {"model": "cnn-8"}}
    experiment = make_experiment({"teachers": teachers, "teacher": {"ensemble": ["large", "small"]}})
    first = resolve(experiment, folder)
    (place,) = first.files
    assert shipped(experiment, folder)[place] == b"one"
    assert first.experiment.teachers["large"].weights == place
    assert not Path(place).is_absolute()
    assert first.digest == resolve(experiment, folder).digest
    outside.write_text("two")
    assert resolve(experiment, folder).digest != first.digest, "another checkpoint is another experiment"


def test_a_checkpoint_that_only_the_cluster_has_is_left_alone(folder: Path, make_experiment: MakeExperiment) -> None:
    experiment = make_experiment({"teacher.weights": "/shared/teacher.pth"})
    assert resolve(experiment, folder).experiment == experiment


@pytest.mark.parametrize("where", ["runs/before", "../before", "/{folder}/../before"])
def test_of_a_former_search_the_records_travel_along(folder: Path, make_experiment: MakeExperiment, where: str) -> None:
    run = where.format(folder=folder)
    path = (folder / run).resolve()
    path.mkdir(parents=True)
    for name in ("experiment.yaml", "trials.jsonl", "summary.json"):
        (path / name).write_text(name)
    experiment = make_experiment({"search.warm_start": [run]})
    found = shipped(experiment, folder)
    (place,) = resolve(experiment, folder).experiment.search.warm_start
    assert not Path(place).is_absolute()
    assert {name for name in found if name.startswith(place)} == {f"{place}/experiment.yaml", f"{place}/trials.jsonl"}


def test_a_former_search_that_is_not_there_is_told_here(folder: Path, make_experiment: MakeExperiment) -> None:
    with pytest.raises(ExperimentError, match=r"search\.warm_start: no run in .*gone"):
        resolve(make_experiment({"search.warm_start": ["runs/gone"]}), folder)


def test_a_missing_checkpoint_is_told_here_and_not_on_the_cluster(
    folder: Path, make_experiment: MakeExperiment
) -> None:
    with pytest.raises(ExperimentError, match=r"teacher\.weights: no file .*gone\.pth"):
        resolve(make_experiment({"teacher.weights": "gone.pth"}), folder)


def test_the_shipped_experiment_is_the_one_with_its_overrides(
    folder: Path, tmp_path: Path, make_experiment: MakeExperiment
) -> None:
    experiment = make_experiment({"train.epochs": 7})
    path = tmp_path / "read.yaml"
    path.write_bytes(shipped(experiment, folder)[EXPERIMENT])
    assert load(path) == experiment


@pytest.mark.parametrize("compressible", [True, False])
def test_a_folder_that_is_too_large_is_refused_by_the_name_of_what_is_large(
    folder: Path, make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, compressible: bool
) -> None:
    limit = 1_000 if compressible else 1_000_000
    monkeypatch.setattr(shipping, "LARGEST", 50)
    monkeypatch.setattr(shipping, "TOO_LARGE_TO_TRY", limit)
    (folder / "sub" / "huge.bin").write_bytes(bytes(10_000))
    with pytest.raises(ClusterError, match=r"The largest parts of it:\n +0\.0 MB  sub/"):
        shipped(make_experiment(), folder)


def test_data_of_this_machine_are_not_shipped_silently(folder: Path, make_experiment: MakeExperiment) -> None:
    values: dict[str, object] = {"data": {"dataset": "cifar10", "root": "data"}}
    with pytest.raises(ClusterError, match=r"data\.root=/shared/data\), or .*data\.download=true"):
        resolve(make_experiment(values), folder)
    for elsewhere in ({"root": "/shared/data"}, {"root": "data", "download": True}):
        resolve(make_experiment({"data": {"dataset": "cifar10", **elsewhere}}), folder)
