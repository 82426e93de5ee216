"""One search on a cluster, from this machine: begun or taken up again, followed to its end, brought home.

remote = Remote(cluster, head)
search = remote.begin(experiment, Path.cwd(), print)     # submits, or finds it running or finished
for text in remote.follow(search, print): ...
remote.bring_home(search)
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.job_submission import JobStatus, JobSubmissionClient

from kdtune.cluster.fetching import fetch
from kdtune.cluster.files import ClusterFile
from kdtune.cluster.finding import take_down
from kdtune.cluster.jobs import (
    DIGEST,
    PAUSE_S,
    Tell,
    connected,
    details,
    follow,
    jobs_of,
    next_job,
    nodes_alive,
    others_running,
    stop,
    submit,
)
from kdtune.cluster.remembering import Remembered, local_folder, recall
from kdtune.cluster.shipping import Shipment, pack, resolve
from kdtune.cluster.ssh import Head
from kdtune.errors import ClusterError
from kdtune.experiment import Experiment

JOINING_S = 180.0  # how long machines that `ray up` has set up may take to join


@dataclass(frozen=True)
class Remote:
    """A cluster that runs, and the way to its head."""

    cluster: ClusterFile
    head: Head

    def begin(self, experiment: Experiment, working_folder: Path, tell: Tell) -> Remembered:
        """The search as a job: the one that runs or has finished already, or a new one.

        Raises ClusterError where another experiment of that name is running there, or has a run folder here.
        """
        shipment = resolve(experiment, working_folder)
        folder = local_folder(experiment).resolve()
        search = Remembered(folder, experiment.name, self.cluster.path, "", shipment.digest)
        if recall(folder) is None and (folder / "experiment.yaml").exists():
            raise ClusterError(
                f"{folder} holds a run of this machine, which results from the cluster must not replace; choose "
                f"another name (--set name=...), or remove that folder"
            )
        with connected(self.head, self.cluster.token()) as client:
            jobs = jobs_of(client, experiment.name)
            job = self._going_on(jobs[-1], shipment, tell) if jobs else None
            if job is not None:
                return replace(search, job=job).write()
            self._wait_for_machines(client, tell)
            search = replace(search, job=next_job(client, shipment))
            size = self._submit(client, search, shipment, working_folder)
        taken_up = "; it takes up what an earlier job has left" if jobs else ""
        tell(f"shipped {working_folder} ({size / 1e6:,.1f} MB) as {search.job}{taken_up}")
        return search

    def _submit(self, client: JobSubmissionClient, search: Remembered, shipment: Shipment, folder: Path) -> int:
        """The bytes of what was shipped."""
        with tempfile.TemporaryDirectory() as temporary:
            archive = Path(temporary) / "folder.zip"
            pack(shipment, folder, archive)
            search.write()  # before there is a job: whoever is interrupted meanwhile finds it if it began all the same
            submit(client, search.job, shipment, archive, self.cluster.nodes())
            return archive.stat().st_size

    def _going_on(self, last: JobDetails, shipment: Shipment, tell: Tell) -> str | None:
        """The last job of that name, if it still does, or has done, what is asked for."""
        name, job = shipment.experiment.name, str(last.submission_id)
        same = (last.metadata or {}).get(DIGEST) == shipment.digest
        if not last.status.is_terminal():
            if not same:
                raise ClusterError(
                    f"{job} is running on {self.cluster.name} with another experiment of the name {name}; choose "
                    f"another name (--set name=...), or stop that one (kdtune stop {name})"
                )
            tell(f"attached to {job}, which is running")
            return job
        if same and last.status == JobStatus.SUCCEEDED:
            tell(f"{job} has finished")
            return job
        return None

    def _wait_for_machines(self, client: JobSubmissionClient, tell: Tell) -> None:
        """`ray up` is done once the head runs, but how many trials run at a time is settled when a search begins."""
        expected, token = self.cluster.machines, self.cluster.token()
        deadline, told = time.monotonic() + JOINING_S, False
        while expected is not None and (there := nodes_alive(client, token)) < expected:
            if time.monotonic() > deadline:
                tell(f"only {there} of {expected} machines have joined the cluster; the search does with them")
                return
            if not told:
                told = True
                tell(f"waiting for machines to join: {there} of {expected} have")
            time.sleep(PAUSE_S)

    def follow(self, search: Remembered, tell: Tell) -> Iterator[str]:
        """The log of the search to its end, whatever happens to the connection."""
        return follow(self.head, self.cluster.token(), search.job, tell)

    def bring_home(self, search: Remembered) -> Remembered:
        """Fetches the results of a search that has ended. Raises ClusterError where it ended without any."""
        job = self.details(search)
        if job.status == JobStatus.SUCCEEDED:
            fetch(self.head, search.name, search.folder)
            return search.with_results()
        again = "The same `kdtune search` takes it up again"
        if job.status == JobStatus.STOPPED:
            raise ClusterError(f"the search {search.name} was stopped. {again}")
        if job.status == JobStatus.FAILED:
            code = "" if job.driver_exit_code is None else f" with exit code {job.driver_exit_code}"
            told = "its last lines say why (kdtune logs)" if job.driver_exit_code is not None else str(job.message)
            raise ClusterError(f"the search {search.name} ended early{code}: {told}. {again}")
        raise ClusterError(f"the search {search.name} is still running; `kdtune attach {search.name}` waits for it")

    def details(self, search: Remembered) -> JobDetails:
        with connected(self.head, self.cluster.token()) as client:
            return details(client, search.job)

    def log(self, search: Remembered) -> str:
        """What the search has said so far."""
        with connected(self.head, self.cluster.token()) as client:
            details(client, search.job)
            return client.get_job_logs(search.job)

    def stop(self, search: Remembered) -> JobStatus:
        """Stops the search as Ctrl-C would; what has finished is kept."""
        with connected(self.head, self.cluster.token()) as client:
            return stop(client, search.job)

    def down(self, search: Remembered) -> None:
        """Takes the cluster down. Raises ClusterError while others use it."""
        with connected(self.head, self.cluster.token()) as client:
            others = others_running(client, search.job)
        if others:
            raise ClusterError(f"{self.cluster.name} is left running, since others use it: {', '.join(others)}")
        take_down(self.cluster)
