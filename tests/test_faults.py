"""What is killed, lost, taken away or full in the middle of a search on a cluster, and that nothing finished is lost.

Each test kills something real. They take minutes: `pytest -m faults`.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import EPOCHS, EXPERIMENT, RUNS, TRIALS, Nodes, beyond, check_whole, cluster, trained

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with cluster(tmp_path) as running:
        yield running


def test_killed_processes_of_preparing_searching_and_the_final_stage_are_followed_by_others(nodes: Nodes) -> None:
    slow_teacher = 'teacher: {model: "slow:student", train: {epochs: 3,'
    search = nodes.search(EXPERIMENT.replace("teacher: {model: cnn-8-16, train: {epochs: 3,", slow_teacher))
    search.wait_for("teacher   epoch 1/3")
    os.kill(nodes.processes()[0], signal.SIGKILL)
    search.wait_for("and its work is taken up by another")
    search.wait_until(lambda: beyond(nodes, 6))
    os.kill(nodes.processes()[0], signal.SIGKILL)
    search.wait_for("final     1 of 4")
    before = nodes.steps()
    search.wait_until(lambda: bool(nodes.processes(since=before)))
    os.kill(nodes.processes(since=before)[0], signal.SIGKILL)
    output = search.end()
    retried, run = check_whole(nodes)["search"]["retried"]
    assert retried["times"] == run["times"] == 1
    assert "seed" in run["trial"]
    assert "died" in retried["error"]
    assert f"trial {retried['trial']} was lost after epoch" in output
    assert f"Trial {retried['trial']} was taken up again 1 time;" in output
    # final runs see validation images too; the teacher has 3 epochs, and at most 3 before it was lost
    assert trained(nodes) < TRIALS * EPOCHS + RUNS * EPOCHS * 1.3 + 3 + 6


def test_a_driver_that_is_killed_is_followed_by_one_that_repeats_nothing_finished(nodes: Nodes) -> None:
    for event in ("trial 0001 complete", "final     2 of 4"):
        search = nodes.search()
        search.wait_for(event)
        search.kill()
    output = nodes.search().end()
    check_whole(nodes)
    assert "teacher   epoch" not in output
    assert not [line for line in output.splitlines() if " complete " in line]
    # each driver leaves at most two trials or runs that are under way, which go on from their last epoch
    assert trained(nodes) < TRIALS * EPOCHS + RUNS * EPOCHS * 1.3 + 2 * 2 * 2


def test_nodes_that_leave_with_and_without_notice_take_no_trial_with_them(tmp_path: Path) -> None:
    with cluster(tmp_path, save_every=600) as nodes:  # saved because of the notice or not at all
        search = nodes.search()
        search.wait_until(lambda: beyond(nodes, 3) and len(nodes.processes()) == 2)
        leaving = nodes.node_of(nodes.processes()[0])
        nodes.give_notice(leaving, seconds=60)
        search.wait_until(lambda: bool(list((nodes.run / "states").glob("*.pt"))))
        nodes.cluster.remove_node(leaving, allow_graceful=False)
        search.wait_for("was lost after epoch")
        nodes.add()
        before = nodes.steps()
        search.wait_until(lambda: len(nodes.processes(since=before)) == 2)
        nodes.cluster.remove_node(nodes.node_of(nodes.processes(since=before)[0]), allow_graceful=False)
        nodes.add()
        search.end()
        assert sum(one["times"] for one in check_whole(nodes)["search"]["retried"]) == 2
        # the one with notice goes on where it was, the other, a trial or a final run, from its beginning at worst
        assert trained(nodes) < TRIALS * EPOCHS + RUNS * EPOCHS * 1.3 + 2.5 + EPOCHS
