"""Where a search runs, and that it is always said: here, at a running Ray, or on the cluster of a cluster file."""

import sys
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
import yaml

from kdtune.cli import main
from kdtune.cluster import finding
from kdtune.cluster.finding import Here, Joined, There, choose
from kdtune.cluster.ssh import SshHead
from kdtune.errors import ClusterError
from tests.object_store import ENVIRONMENT, ObjectStore

TOP = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chosen(
    folder: Path, *, local: bool = False, cluster: Path | None = None, address: str | None = None
) -> Here | Joined | There:
    return choose(folder, local=local, cluster=cluster, address=address)


def write(folder: Path, raw: object) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


AWS = {"cluster_name": "mine", "provider": {"type": "aws", "region": "us-west-2"}}


def test_without_a_cluster_file_a_search_runs_here(folder: Path) -> None:
    assert chosen(folder) == Here("here, on this machine: there is no cluster.yaml in this folder")


def test_what_was_asked_for_decides(folder: Path) -> None:
    write(folder, AWS)
    assert chosen(folder, local=True) == Here("here, on this machine (--local)")
    found = chosen(folder, address="auto")
    assert isinstance(found, Joined)
    assert found.address == "auto"


def test_two_wishes_exclude_each_other(folder: Path) -> None:
    with pytest.raises(ClusterError, match="--local and --address exclude each other"):
        chosen(folder, local=True, address="auto")


def test_the_file_as_it_comes_with_kdtune_asks_nobody_and_waits_for_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "cluster.yaml").write_text((TOP / "cluster.yaml").read_text())
    monkeypatch.setattr("subprocess.run", None)
    monkeypatch.setitem(sys.modules, "boto3", None)
    found = chosen(folder)
    assert isinstance(found, Here)
    assert "cluster.yaml is still to be filled in (YOUR-AMI, YOUR-BUCKET)" in found.why
    with pytest.raises(ClusterError, match="still to be filled in: YOUR-AMI, YOUR-BUCKET"):
        chosen(folder, cluster=folder / "cluster.yaml")


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has `ray get-head-ip` run a piece of Python instead."""

    def answers(code: str) -> None:
        monkeypatch.setattr(finding, "RAY", [sys.executable, "-c", f"import sys\n{code}"])

    return answers


NO_HEAD = "sys.exit('RuntimeError: Head node of cluster (mine) not found!')"
DENIED = "sys.exit('botocore.exceptions.NoCredentialsError: Unable to locate credentials')"


def test_a_running_cluster_of_this_folder_is_taken(folder: Path, provider: Callable[[str], None]) -> None:
    write(folder, AWS)
    provider("print('Fetched IP'); print('10.1.2.3')")
    found = chosen(folder)
    assert isinstance(found, There)
    assert isinstance(found.head, SshHead)
    assert found.head.host == "10.1.2.3"
    assert found.why == "on the cluster mine (AWS, cluster.yaml in this folder), head 10.1.2.3"


def test_a_cluster_that_its_provider_knows_not_to_run_leaves_the_search_here_and_says_how_to_start_it(
    folder: Path, provider: Callable[[str], None]
) -> None:
    path = write(folder, AWS)
    provider(NO_HEAD)
    found = chosen(folder)
    assert isinstance(found, Here)
    assert "the cluster mine (AWS) is not running; `ray up cluster.yaml` starts it" in found.why
    with pytest.raises(ClusterError, match=r"is not running; `ray up cluster\.yaml` starts it"):
        chosen(folder, cluster=path)


def test_a_cluster_that_cannot_be_asked_is_no_reason_to_search_here(
    folder: Path, provider: Callable[[str], None]
) -> None:
    write(folder, AWS)
    provider(DENIED)
    with pytest.raises(ClusterError, match=r"(?s)Unable to locate credentials.*--local searches on this machine"):
        chosen(folder)


def test_without_the_providers_client_the_way_on_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, AWS)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ClusterError, match=r"(?s)pip install boto3.*--local"):
        chosen(folder)


def test_machines_that_do_not_answer_are_no_reason_to_search_here_either(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    (folder / "ssh").write_text("#!/bin/sh\necho 'ssh: connect to host box port 22: No route to host' >&2; exit 255\n")
    (folder / "ssh").chmod(0o755)
    write(folder, {"cluster_name": "mine", "provider": {"type": "local", "head_ip": "box", "worker_ips": []}})
    with pytest.raises(ClusterError, match=r"(?s)No route to host.*may be running"):
        chosen(folder)


def test_ray_itself_says_what_runs_at_aws(
    folder: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://{object_store.host}"}.items():
        monkeypatch.setenv(name, value)
    write(folder, AWS)
    found = chosen(folder)
    assert isinstance(found, Here), "moto's AWS is empty"
    assert "is not running" in found.why


def test_a_head_that_ray_did_not_set_up_to_its_end_costs_and_is_not_called_absent(
    folder: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://{object_store.host}"}.items():
        monkeypatch.setenv(name, value)
    cloud = boto3.client("ec2", region_name="us-west-2")
    tags = {"ray-cluster-name": "half", "ray-node-type": "head", "ray-node-status": "update-failed"}
    marks = [{"Key": key, "Value": value} for key, value in tags.items()]
    image = cloud.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    cloud.run_instances(
        ImageId=image, MinCount=1, MaxCount=1, TagSpecifications=[{"ResourceType": "instance", "Tags": marks}]
    )
    write(folder, {**AWS, "cluster_name": "half"})
    told = r"(?s)head of half is there, and costs, .*\(update-failed\): `ray up cluster\.yaml` again, .*--local"
    with pytest.raises(ClusterError, match=told):
        chosen(folder)


def test_a_cluster_yaml_that_is_none_names_the_way_to_search_here(folder: Path) -> None:
    write(folder, {"data": {"dataset": "digits"}})
    with pytest.raises(ClusterError, match=r"(?s)--cluster CLUSTER-FILE.*--local searches on this machine"):
        chosen(folder)


def test_a_search_says_where_it_runs_before_anything_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["search", "--set", "storage=/proc/none"])
    assert ended.value.code == 2
    assert "where     here, on this machine: there is no cluster.yaml in this folder" in capsys.readouterr().out


def test_down_without_a_cluster_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["search", "--down"])
    assert "--down is for searches on a cluster, but this one runs here" in capsys.readouterr().err


def test_an_address_where_nobody_answers_is_told_at_once(folder: Path) -> None:
    with pytest.raises(ClusterError, match=r"nothing answers at 127\.0\.0\.1:1 .*`auto` finds"):
        chosen(folder, address="127.0.0.1:1")
