"""A search as a Ray job: submitted to the head's job server, followed, stopped.

    with connected(head, token) as client:
        job = next_job(client, shipment)
        submit(client, job, shipment, archive, nodes)
    for text in follow(head, token, job): print(text, end="")

`follow` outlives the connection: a laptop that slept makes tunnel and stream anew, and goes on where it was.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import aiohttp
import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from kdtune.cluster.files import nodes_json
from kdtune.cluster.shipping import EXPERIMENT, PACKAGE, Shipment
from kdtune.cluster.ssh import Head, UnreachableError
from kdtune.errors import ClusterError

NAME, DIGEST = "kdtune_search", "kdtune_experiment"  # in a job's metadata
# `ray job stop` reads these in the job's supervisor, which has the job's own environment variables: SIGINT lets the
# driver write down what a resumed run needs, for which Ray's own 3 s do not always suffice.
STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "120"}
STOP_S = 150.0  # how long a stop may take before it is called one that failed
LOST = (UnreachableError, ConnectionError, requests.exceptions.RequestException, aiohttp.ClientError, TimeoutError)
PATIENCE_S = 1800.0  # of trying to reach the head again; a sleeping laptop's clock stands still
PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
LEADING_ELSEWHERE = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # Ray prefers these to the address that it is given
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
REFUSED = re.compile(r"Request failed with status code (\d+)")  # how Ray's client begins what it says of all but 200
TAKEN = "already exists"  # what the job server says of a submission id that it has had
Tell = Callable[[str], None]


@contextmanager
def connected(head: Head, token: str | None) -> Iterator[JobSubmissionClient]:
    """A client of the head's job server. Raises UnreachableError, or ClusterError where the token will not do.

    In the block too: UnreachableError where the server has trouble of its own, ClusterError where it refuses.
    """
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with head.tunnel() as address:
        try:
            yield _client(address, token)
        except requests.exceptions.RequestException as error:
            raise UnreachableError(f"the connection to the head's dashboard was lost: {error}") from error
        except RuntimeError as error:
            status = _status(error)
            if status is None:
                raise
            kind = UnreachableError if status >= 500 else ClusterError
            raise kind(f"the head's job server answers: {error}") from error


def _status(error: RuntimeError) -> int | None:
    """The HTTP status that Ray's client tells of, which has one type of error for all of them."""
    found = REFUSED.match(str(error))
    return int(found[1]) if found else None


class NoRayError(UnreachableError):
    """The head is there, but no Ray runs on it."""


def _headers(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _client(address: str, token: str | None) -> JobSubmissionClient:
    elsewhere = {name: os.environ.pop(name) for name in LEADING_ELSEWHERE if name in os.environ}
    try:
        return JobSubmissionClient(address, headers=_headers(token))
    except ConnectionError as error:
        raise NoRayError("nothing answers at the head's dashboard: Ray does not run there") from error
    except AuthenticationError as error:
        given = "the token is another" if token else "there is no token"
        raise ClusterError(
            f"the cluster asks for its token, and {given} on this machine. It is the file that cluster files mount "
            f"(file_mounts, ~/.ray/auth_token): copy it from the machine that ran `ray up`"
        ) from error
    finally:
        os.environ.update(elsewhere)


def jobs_of(client: JobSubmissionClient, name: str) -> list[JobDetails]:
    """The jobs of the search `name` that this cluster has had, the latest last."""
    jobs = [job for job in client.list_jobs() if (job.metadata or {}).get(NAME) == name and job.submission_id]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def nodes_alive(client: JobSubmissionClient, token: str | None) -> int:
    """How many machines have joined the cluster."""
    answer = requests.get(f"{client.get_address()}/api/v0/nodes", headers=_headers(token), timeout=30)
    answer.raise_for_status()
    return sum(node["state"] == "ALIVE" for node in answer.json()["data"]["result"]["result"])


def others_running(client: JobSubmissionClient, job: str) -> list[str]:
    """What else runs on the cluster: jobs that were submitted, and drivers that joined it by themselves."""
    return [
        str(other.submission_id or other.job_id)
        for other in client.list_jobs()
        if not other.status.is_terminal() and other.submission_id != job
    ]


def next_job(client: JobSubmissionClient, shipment: Shipment) -> str:
    """The name of a job to come. A cluster that was started anew counts from 1 again, perhaps with another's search."""
    name = shipment.experiment.name
    return f"kdtune-{name}-{shipment.digest[:6]}-{len(jobs_of(client, name)) + 1}"


def submit(
    client: JobSubmissionClient,
    job: str,
    shipment: Shipment,
    archive: Path,
    nodes: list[dict[str, float]] | None,
) -> None:
    """Starts the search on the head. Packages that the cluster has already are not sent again.

    Raises ClusterError where the cluster has a job of that name: somebody began the same search a moment ago.
    """
    environment = {**STOPPING, **({"KDTUNE_NODES": nodes_json(nodes)} if nodes is not None else {})}
    try:
        client.submit_job(
            entrypoint=f"python -m kdtune search {EXPERIMENT} --address auto --shipped",
            submission_id=job,
            runtime_env={
                "working_dir": str(archive),
                "py_modules": [str(PACKAGE)],
                "excludes": ["__pycache__"],
                "env_vars": environment,
            },
            metadata={NAME: shipment.experiment.name, DIGEST: shipment.digest},
        )
    except RuntimeError as error:
        if _status(error) is None or TAKEN not in str(error):
            raise
        raise ClusterError(
            f"the cluster has a job {job} already, begun a moment ago; the same `kdtune search` attaches to it"
        ) from error


def follow(head: Head, token: str | None, job: str, tell: Tell) -> Iterator[str]:
    """The whole log of a job as it comes, to its end, every character once; `tell` hears of lost connections.

    Raises ClusterError where the job is not known, or the head has not been reached for half an hour.
    """
    seen, lost_since, pause = 0, 0.0, PAUSE_S
    while True:
        try:
            with connected(head, token) as client:
                if lost_since:
                    tell("connection is back")
                    lost_since = 0.0
                details(client, job)  # the stream of a job that is not known would break off again and again
                position = 0
                with closing(_tail(client, job)) as stream:
                    for text in stream:
                        fresh = text[max(0, seen - position) :]
                        position += len(text)
                        seen = max(seen, position)
                        if fresh:
                            pause = PAUSE_S
                            yield fresh
                if details(client, job).status.is_terminal():
                    rest = client.get_job_logs(job)[seen:]  # a stream that was cut politely looks like its end
                    if rest:
                        yield rest
                    return
        except LOST as error:
            now = time.monotonic()
            if not lost_since:
                lost_since = now
                tell(f"connection lost, trying again; the search goes on ({error})")
            elif now - lost_since > PATIENCE_S:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _tail(client: JobSubmissionClient, job: str) -> Generator[str, None, None]:
    """The job server's stream of the log from its beginning. Raises UnreachableError where it breaks off."""
    stream = client.tail_job_logs(job)

    async def part() -> str | None:
        return await anext(stream, None)

    with asyncio.Runner() as runner:  # Ctrl-C ends what it waits for, and the stream is closed with it
        while True:
            try:
                text = runner.run(part())
            except RuntimeError as error:  # what Ray makes of a stream that broke off
                raise UnreachableError(f"the log's stream broke off: {error}") from error
            if text is None:
                return
            yield text


def details(client: JobSubmissionClient, job: str) -> JobDetails:
    """Raises ClusterError where the cluster does not know the job: it did not begin, or not on this cluster."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if _status(error) != 404:
            raise
        raise ClusterError(
            f"the cluster has no job {job}: it did not begin, or the cluster was started anew since. The same `kdtune "
            f"search` begins it, and resumes what its storage keeps"
        ) from error


def stop(client: JobSubmissionClient, job: str) -> JobStatus:
    """Stops a job as Ctrl-C would, and waits until it has written down what a resumed run needs; how it ended."""
    details(client, job)
    client.stop_job(job)
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        status = details(client, job).status
        if status.is_terminal():
            return status
        time.sleep(0.5)
    raise ClusterError(f"{job} has not ended within {STOP_S:.0f} s; `kdtune status` tells when it has")
