"""The cluster files at the top of the repository do what their comments say, and what a laptop reads of such files."""

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

from kdtune.cluster.files import PLACEHOLDER, ClusterFile, read_cluster_file
from kdtune.errors import ClusterError

TOP = Path(__file__).parents[1]
OF_RAY_UP = ("cluster.yaml", "cluster.gcp.yaml")
KUBERAY = "cluster.kuberay.yaml"
RAY = "2.60.0"
Write = Callable[[str | bytes], Path]


def raw(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((TOP / name).read_text())
    return found


@pytest.mark.parametrize("name", OF_RAY_UP)
def test_ray_up_takes_the_file_and_adds_no_command_of_its_own(name: str) -> None:
    given = raw(name)
    prepared = prepare_config(given)
    validate_config(prepared)
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        own = given["setup_commands"] if commands != "setup_commands" else []
        assert prepared[commands] == own + given[commands], "defaults would install a nightly build of Ray"


@pytest.mark.parametrize("name", OF_RAY_UP)
def test_a_small_head_on_demand_and_spot_workers_from_none_to_a_maximum(name: str) -> None:
    types, head_type = raw(name)["available_node_types"], raw(name)["head_node_type"]
    head, (worker,) = types[head_type], [one for kind, one in types.items() if kind != head_type]
    assert head["resources"]["CPU"] == 0
    assert "GPU" not in head["resources"]
    assert head["max_workers"] == 0
    assert worker["min_workers"] == 0
    assert 0 < worker["max_workers"] <= raw(name)["max_workers"]
    assert worker["resources"]["GPU"] >= 1
    spot = yaml.safe_dump(worker["node_config"]).lower()
    assert "spot" in spot
    assert "spot" not in yaml.safe_dump(head["node_config"]).lower()
    assert raw(name)["idle_timeout_minutes"] <= 10


@pytest.mark.parametrize("name", OF_RAY_UP)
def test_the_token_is_asked_for_and_the_dashboard_is_the_heads_own(name: str) -> None:
    file = raw(name)
    assert file["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    starts = {kind: start_of(file[f"{kind}_start_ray_commands"]) for kind in ("head", "worker")}
    for start in starts.values():
        assert "RAY_AUTH_MODE=token" in start[: start.index("ray")]
        assert not [part for part in start if "0.0.0.0" in part]
    (head_storage, worker_storage) = (storage_of(start) for start in starts.values())
    assert head_storage == worker_storage
    assert re.match(r"(s3|gs)://", head_storage)
    assert "--dashboard-host=127.0.0.1" in starts["head"]
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(starts["head"])


def start_of(commands: list[str]) -> list[str]:
    """The words of the command line that starts Ray, its variables included."""
    (start,) = [command for command in commands if "ray start" in command]
    return shlex.split(start.replace(";", " "))


def storage_of(start: list[str]) -> str:
    (storage,) = [part.removeprefix("KDTUNE_STORAGE=") for part in start if part.startswith("KDTUNE_STORAGE=")]
    return storage


@pytest.mark.parametrize("name", OF_RAY_UP)
def test_every_dependency_of_kdtune_is_installed_in_one_version(name: str) -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    wanted = {name_of(dependency) for dependency in project["dependencies"]}
    (pip,) = [command for command in raw(name)["setup_commands"] if "pip install" in command]
    installed = [part for part in shlex.split(pip) if "==" in part]
    assert wanted <= {name_of(part) for part in installed}
    assert f"ray[default,train,tune]=={RAY}" in installed
    assert len([part for part in shlex.split(pip)[2:] if not part.startswith("-")]) == len(installed), "all are pinned"


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=]", requirement)[0].lower()


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An account at moto's AWS, as the README's commands leave it; a client of its machines."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("HOME", str(tmp_path))  # ray up writes its key pair to ~/.ssh
    with mock_aws():
        iam = boto3.client("iam")
        for service, command, *options in asked_of_aws(tmp_path):
            if service == "iam" and command != "create-service-linked-role":
                names = [option.removeprefix("--").title().replace("-", "") for option in options[::2]]
                getattr(iam, command.replace("-", "_"))(**dict(zip(names, options[1::2], strict=True)))
        yield boto3.client("ec2", region_name="us-west-2")


def asked_of_aws(folder: Path) -> list[list[str]]:
    """The words of every call of AWS's command line that the README's block makes in a shell, in order."""
    _, _, section = (TOP / "README.md").read_text().partition("### An AWS account\n")
    block = textwrap.dedent("\n".join(re.findall(r"^ {4}.*", section.partition("###")[0], re.MULTILINE)))
    record = folder / "asked"
    program = folder / "bin" / "aws"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\nopen({str(record)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
    )
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-euc", block], check=True, env={"PATH": path}, timeout=60)
    return [json.loads(line) for line in record.read_text().splitlines()]


def test_the_readmes_commands_give_the_worker_its_bucket_and_the_head_its_workers(aws: Any, tmp_path: Path) -> None:
    asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    region = raw("cluster.yaml")["provider"]["region"]
    assert ["s3", "mb", "s3://YOUR-BUCKET", "--region", region] in asked
    assert ["iam", "create-service-linked-role", "--aws-service-name", "spot.amazonaws.com"] in asked
    worker, head = rights("kdtune-worker"), rights("kdtune-head")
    objects = {f"s3:{name}" for name in ("GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload")}
    assert worker == {"bucket": {*objects, "s3:ListBucket"}}
    starting = {"ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags", "ec2:Describe*", "iam:PassRole"}
    assert head == {**worker, "workers": starting}


def rights(role: str) -> dict[str, set[str]]:
    """Actions that a role may take, by policy; it can be had by EC2's machines through its instance profile."""
    iam = boto3.client("iam")
    (profile,) = iam.list_instance_profiles_for_role(RoleName=role)["InstanceProfiles"]
    assert profile["InstanceProfileName"] == role
    trust = iam.get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]
    assert trust["Statement"][0]["Principal"] == {"Service": "ec2.amazonaws.com"}
    found = {}
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        statements = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]["Statement"]
        actions = [one["Action"] for one in statements]
        found[name] = {one for some in actions for one in ([some] if isinstance(some, str) else some)}
    return found


def test_at_google_ray_starts_once_the_gpu_has_its_driver() -> None:
    (wait,) = raw("cluster.gcp.yaml")["worker_setup_commands"]
    begin, limit, *shell = shlex.split(wait)
    assert (begin, int(limit) >= 300, shell[:2]) == ("timeout", True, ["bash", "-c"])
    assert shell[2].startswith("until nvidia-smi ")


def test_at_aws_the_file_makes_a_head_and_a_spot_worker_to_which_only_ssh_is_open(aws: Any, tmp_path: Path) -> None:
    image = aws.describe_images()["Images"][0]["ImageId"]
    text = (TOP / "cluster.yaml").read_text().replace("YOUR-AMI", image).replace("YOUR-BUCKET", "bucket")
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    config = bootstrap_aws(prepare_config(yaml.safe_load(text)))  # type: ignore[no-untyped-call]
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])  # type: ignore[no-untyped-call]
    for kind, role in (("head", "head"), ("gpu_worker", "worker")):
        tags = {"ray-node-type": role, "ray-user-node-type": kind, "ray-node-status": "up-to-date"}
        provider.create_node(config["available_node_types"][kind]["node_config"], tags, 1)

    machines = {
        one["InstanceType"]: one for group in aws.describe_instances()["Reservations"] for one in group["Instances"]
    }
    head, worker = machines["m6i.xlarge"], machines["g5.xlarge"]
    assert head.get("InstanceLifecycle") is None
    assert worker["InstanceLifecycle"] == "spot"
    for machine, role in ((head, "kdtune-head"), (worker, "kdtune-worker")):
        assert machine["IamInstanceProfile"]["Arn"].endswith(f"/{role}")
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert [group["GroupName"] for group in machine["SecurityGroups"]] == ["kdtune"]
    (group,) = aws.describe_security_groups(GroupNames=["kdtune"])["SecurityGroups"]
    open_ports = [(rule["FromPort"], rule["ToPort"]) for rule in group["IpPermissions"] if rule["IpRanges"]]
    assert open_ports == [(22, 22)]
    among_itself = [pair["GroupId"] for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]]
    assert among_itself == [group["GroupId"]]
    assert [str(key) for key in read_cluster_file(path).keys] == [config["auth"]["ssh_private_key"]]


RAY_JOB = {  # the fields of KubeRay 1.6 that the file uses
    "": {"entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
         "runtimeEnvYAML", "rayClusterSpec"},
    "rayClusterSpec": {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec",
                       "workerGroupSpecs"},
    "headGroupSpec": {"serviceType", "rayStartParams", "template"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}  # fmt: skip


def test_the_ray_job_has_kuberays_fields_and_says_the_same_twice_where_it_must() -> None:
    job = raw(KUBERAY)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    for where, fields in (("", job["spec"]), ("rayClusterSpec", cluster), ("headGroupSpec", cluster["headGroupSpec"]),
                          ("workerGroupSpecs", workers)):  # fmt: skip
        assert set(fields) == RAY_JOB[where]
    assert cluster["rayVersion"] == RAY
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "--address auto" in job["spec"]["entrypoint"]
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    (container,) = workers["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert yaml.safe_load(environment["KDTUNE_NODES"]) == [
        {"cpus": int(limits["cpu"]), "gpus": int(limits["nvidia.com/gpu"]), "count": workers["maxReplicas"]}
    ]
    for group in (cluster["headGroupSpec"], workers):
        (container,) = group["template"]["spec"]["containers"]
        assert environment["KDTUNE_STORAGE"] in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert group["template"]["spec"]["securityContext"] == {"runAsUser": 1000, "fsGroup": 1000}
    assert f"rayproject/ray:{RAY}-" in (TOP / KUBERAY).read_text()


@pytest.mark.parametrize("name", [*OF_RAY_UP, KUBERAY])
def test_what_is_to_be_filled_in_is_named_in_the_comments(name: str) -> None:
    text = (TOP / name).read_text()
    left = set(PLACEHOLDER.findall(yaml.safe_dump(raw(name))))
    assert left
    assert "YOUR-..." in text


# what a laptop reads of a cluster file


def cluster(changes: Mapping[str, object] | None = None) -> ClusterFile:
    types = {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "plain": {"resources": {"CPU": 16}, "max_workers": 10},
        "gpus": {"resources": {"CPU": 8, "GPU": 4}, "max_workers": 3},
    }
    base = {"cluster_name": "c", "provider": {"type": "aws"}, "head_node_type": "head", "available_node_types": types}
    return ClusterFile(Path("cluster.yaml"), {**base, "max_workers": 8, **(changes or {})})


def test_nodes_are_those_that_the_cluster_may_grow_to_gpus_first_within_the_limit_of_all() -> None:
    assert cluster().nodes() == [
        {"cpus": 8.0, "gpus": 4.0, "count": 3},
        {"cpus": 16.0, "gpus": 0.0, "count": 5},
    ]


def test_a_head_that_runs_trials_is_one_node_more() -> None:
    types = {"only": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 2}}
    found = cluster({"available_node_types": types, "head_node_type": "only"}).nodes()
    assert found == [{"cpus": 4.0, "gpus": 1.0, "count": 1}, {"cpus": 4.0, "gpus": 1.0, "count": 2}]


def test_a_node_type_that_does_not_say_what_it_has_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"available_node_types.w has no `resources`"):
        cluster({"available_node_types": {"w": {}}, "head_node_type": "w"}).nodes()


def test_machines_one_owns_say_nothing_of_their_nodes() -> None:
    assert ClusterFile(Path(), {"cluster_name": "c", "provider": {"type": "local"}}).nodes() is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("name: mine\nteacher: {}\n", "kdtune search EXPERIMENT --cluster"),
        ("- a list\n", "is no cluster file"),
        ("cluster_name: c\nprovider: {region: x}\n", "is no cluster file"),
        ("{", "is not YAML"),
        ("kind: RayJob\n", "kubectl apply"),
        ("cluster_name: c\nprovider: {type: aws}\ndocker: {image: x}\n", "containers"),
    ],
)
def test_a_file_that_is_no_cluster_file_says_what_to_do(write: Write, content: str, complaint: str) -> None:
    with pytest.raises(ClusterError, match=complaint):
        read_cluster_file(write(content))


def test_the_token_is_read_where_the_file_mounts_it_from(tmp_path: Path) -> None:
    token = tmp_path / "mine"
    file = cluster({"file_mounts": {"~/.ray/auth_token": str(token)}})
    with pytest.raises(ClusterError, match="get-auth-token --generate"):
        file.token()
    token.write_text("abc\n")
    assert file.token() == "abc"
