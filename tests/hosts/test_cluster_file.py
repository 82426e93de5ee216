"""cluster.local.yaml as it lies in the repository; what it does is tested on hosts."""

import re
import tomllib
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.hosts.cluster_file import SOURCE
from tests.hosts.machines import REPOSITORY

STARTS = ["head_start_ray_commands", "worker_start_ray_commands"]


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(SOURCE.read_text())
    return found


def test_ray_accepts_it(content: dict[str, Any]) -> None:
    validate_config(prepare_config(content))


def test_ray_would_refuse_a_key_that_it_does_not_know(content: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="unknown_key"):
        validate_config(prepare_config(content | {"unknown_key": 1}))


def test_nodes_get_what_kdtune_needs_with_rays_version_pinned(content: dict[str, Any]) -> None:
    needed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    installed = re.findall(r"'([^']+)'", next(line for line in content["setup_commands"] if "pip install" in line))
    pinned = [one for one in installed if "==" in one]
    assert [one.partition("==")[0] for one in pinned] == ["ray[default,train,tune]"]
    assert {one for one in installed if one not in pinned} == {one for one in needed if not one.startswith("ray[")}


@pytest.mark.parametrize("commands", STARTS)
def test_every_node_asks_for_the_token_and_knows_the_storage(content: dict[str, Any], commands: str) -> None:
    (start,) = [line for line in content[commands] if "ray start" in line]
    before, _, _ = start.partition("ray start")
    assert "export RAY_AUTH_MODE=token" in before
    assert "KDTUNE_STORAGE=" in before
    assert content["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
