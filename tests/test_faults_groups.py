"""What is lost in the middle of trials of two workers on a cluster, and that nothing finished is lost.

They take minutes: `pytest -m faults`.
"""

import os
import signal
from pathlib import Path

import pytest

from tests.clusters import EXPERIMENT, Nodes, beyond, check_whole, cluster
from tests.test_groups import processes_of_ray

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

# with a dashboard, as clusters have: Ray Train asks it whether a group's trial is still there, to clear up after it
IN_PAIRS = EXPERIMENT.replace("resources: {", "resources: {workers_per_trial: 2, ")


def at_work(nodes: Nodes) -> list[int]:
    """The two workers of the one trial that fits."""
    found = nodes.processes()
    return found if len(found) == 2 else []


def test_a_trials_process_and_a_node_are_lost_in_the_middle_of_trials_of_two_workers(tmp_path: Path) -> None:
    with cluster(tmp_path, workers=3, dashboard=True) as nodes:
        search = nodes.search(IN_PAIRS)
        search.wait_until(lambda: beyond(nodes, 3) and bool(at_work(nodes)))
        (trial,) = processes_of_ray("ray::_Inner")  # what Tune calls a trainable with parameters
        os.kill(trial.pid, signal.SIGKILL)
        search.wait_for("was lost after epoch")  # what its group held is free, or the next group would never start
        search.wait_for("trial 0000 complete")
        search.wait_until(lambda: bool(at_work(nodes)))
        (node, *_) = {nodes.node_of(pid).node_id: nodes.node_of(pid) for pid in at_work(nodes)}.values()
        nodes.cluster.remove_node(node, allow_graceful=False)
        output = search.end()
        retried = {one["trial"]: one for one in check_whole(nodes)["search"]["retried"]}
        assert "died" in retried["0000"]["error"]
        assert any(trial != "0000" for trial in retried), output


def test_a_node_with_notice_has_a_trial_of_two_workers_saved_and_the_next_driver_takes_it_up(tmp_path: Path) -> None:
    with cluster(
        tmp_path, workers=3, save_every=600, dashboard=True
    ) as nodes:  # saved because of the notice or not at all
        search = nodes.search(IN_PAIRS)
        search.wait_until(lambda: beyond(nodes, 2) and bool(at_work(nodes)))
        leaving = nodes.node_of(at_work(nodes)[0])
        nodes.give_notice(leaving, seconds=60)
        search.wait_until(lambda: bool(list((nodes.run / "states").glob("*.pt"))))
        search.kill()
        nodes.cluster.remove_node(leaving, allow_graceful=False)
        nodes.search(IN_PAIRS).end()
        check_whole(nodes)
