"""`ray up cluster.local.yaml` on two hosts: who may connect, and from where."""

import urllib.error

import pytest

from tests.hosts.launching import DASHBOARD, Laptop, answers

pytestmark = pytest.mark.hosts
CONNECT = "import ray; ray.init('{address}', log_to_driver=False); print('CPUs', ray.cluster_resources()['CPU'])"


def test_both_hosts_are_nodes_of_the_cluster(laptop: Laptop) -> None:
    assert laptop.nodes() == sorted(host.address for host in laptop.hosts.all)


def test_with_the_token_a_program_on_a_host_connects_and_without_it_does_not(laptop: Laptop) -> None:
    head, worker = laptop.hosts.head, laptop.hosts.workers[0]
    program = f'python -c "{CONNECT.format(address=f"{head.address}:6379")}"'
    assert "CPUs" in laptop.hosts.run(worker, f"RAY_AUTH_MODE=token {program}")
    for wrong in ("RAY_AUTH_MODE=disabled", "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=wrong"):
        with pytest.raises(RuntimeError, match=r"Unauthenticated|AuthenticationError|InvalidAuthToken|authentication"):
            laptop.hosts.run(worker, f"{wrong} {program}")


def test_the_token_reaches_the_hosts_readable_by_its_user_only(laptop: Laptop) -> None:
    for host in laptop.hosts.all:
        assert laptop.hosts.run(host, "stat -c %a ~/.ray/auth_token; cat ~/.ray/auth_token") == f"600\n{laptop.token}"


def test_the_dashboard_answers_through_ssh_only_and_wants_the_token(laptop: Laptop) -> None:
    head = laptop.hosts.head
    assert answers(head.address, 22)
    assert not answers(head.address, DASHBOARD)
    assert laptop.ask("/api/version")["ray_version"]
    with pytest.raises(urllib.error.HTTPError, match=r"40[13]"):
        laptop.ask("/api/version", token="wrong")
