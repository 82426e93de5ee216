"""A log that is followed comes whole and once, however its stream ends: streams as they may come, without a cluster."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.job_submission import JobStatus

from kdtune.cluster import jobs
from kdtune.cluster.jobs import connected, follow
from kdtune.cluster.ssh import UnreachableError
from kdtune.errors import ClusterError

LOG = "".join(f"line {k}\n" for k in range(12)) + "no newline"
HEAD: Any = None  # nobody asks it


class Scripted:
    """A job server whose k-th stream says `LOG[: ends[k]]` in chunks, then breaks off, or ends as if it were over."""

    def __init__(self, ends: list[tuple[int, bool]], chunk: int) -> None:
        self.ends, self.chunk = [*ends, (len(LOG), False)], chunk
        self.streams = 0

    def tail(self) -> Generator[str, None, None]:
        end, broken = self.ends[self.streams]
        self.streams += 1
        for start in range(0, end, self.chunk):
            yield LOG[start : min(end, start + self.chunk)]
        if broken:
            raise UnreachableError("cut")

    def get_job_info(self, job: str) -> Any:
        last = self.streams == len(self.ends)
        return SimpleNamespace(status=JobStatus.SUCCEEDED if last else JobStatus.RUNNING)

    def get_job_logs(self, job: str) -> str:
        return LOG


@contextmanager
def scripted(server: Scripted) -> Iterator[None]:
    @contextmanager
    def connected(head: object, token: object) -> Iterator[Scripted]:
        yield server

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "connected", connected)
        patch.setattr(jobs, "_tail", lambda client, job: server.tail())
        patch.setattr(jobs, "PAUSE_S", 0.0)
        yield


ends = st.lists(st.tuples(st.integers(0, len(LOG)), st.booleans()), max_size=5)


@given(ends=ends, chunk=st.integers(1, 40))
def test_whatever_breaks_off_wherever_every_character_comes_once(ends: list[tuple[int, bool]], chunk: int) -> None:
    told: list[str] = []
    with scripted(Scripted(ends, chunk)):
        assert "".join(follow(HEAD, None, "job", told.append)) == LOG
    assert sum("lost" in line for line in told) == sum("back" in line for line in told)


def test_a_stream_that_ended_politely_before_the_job_said_its_last_is_completed() -> None:
    server = Scripted([], chunk=7)
    server.ends = [(5, False)]  # the only stream, and the job is over after it
    with scripted(server):
        assert "".join(follow(HEAD, None, "job", print)) == LOG


def test_a_head_that_does_not_come_back_is_given_up_and_the_first_word_of_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextmanager
    def gone(head: object, token: object) -> Iterator[None]:
        raise UnreachableError("no route to host")
        yield

    monkeypatch.setattr(jobs, "connected", gone)
    monkeypatch.setattr(jobs, "PAUSE_S", 0.001)
    monkeypatch.setattr(jobs, "PATIENCE_S", 0.02)
    told: list[str] = []
    with pytest.raises(ClusterError, match="no route to host"):
        list(follow(HEAD, None, "job", told.append))
    assert told == ["connection lost, trying again; the search goes on (no route to host)"]


class Version(BaseHTTPRequestHandler):
    """As much of a dashboard as a client asks for at first."""

    def do_GET(self) -> None:  # http.server's name
        content = b'{"version": "4", "ray_version": "2.60.0"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Says nothing."""


def test_the_client_is_of_this_cluster_whatever_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Version) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            assert jobs._client(address, "token").get_address() == address
        finally:
            server.shutdown()
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


class Silent:
    """A job server that has said one thing, and from which Ctrl-C is all that comes then."""

    def __init__(self) -> None:
        self.closed = False

    async def tail_job_logs(self, job: str) -> AsyncGenerator[str, None]:
        try:
            yield "at work"
            loop = asyncio.get_running_loop()
            loop.call_soon(signal.raise_signal, signal.SIGINT)
            await loop.create_future()
        finally:
            self.closed = True


def test_ctrl_c_while_nothing_is_said_ends_the_waiting_at_once() -> None:
    server: Any = Silent()
    stream = jobs._tail(server, "job")
    assert next(stream) == "at work"
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert server.closed


def test_whoever_stops_following_leaves_no_stream_open() -> None:
    server: Any = Silent()
    stream = jobs._tail(server, "job")
    next(stream)
    stream.close()
    assert server.closed


class Answering(Version):
    """A job server with one answer to all that concerns jobs."""

    status, text = 200, ""

    def do_GET(self) -> None:
        if self.path == "/api/version":
            super().do_GET()
        else:
            self.send_error(self.status, self.text)

    def do_POST(self) -> None:
        self.do_GET()


@contextmanager
def answering(status: int, text: str) -> Iterator[Any]:
    """A client of such a server."""
    handler = type("Handler", (Answering,), {"status": status, "text": text})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        head: Any = SimpleNamespace(tunnel=lambda: nullcontext(f"http://127.0.0.1:{server.server_port}"))
        try:
            with connected(head, None) as client:
                yield client
        finally:
            server.shutdown()


ASKING: list[Callable[[Any], object]] = [
    lambda client: jobs.details(client, "job"),
    lambda client: jobs.jobs_of(client, "any"),
    lambda client: jobs.stop(client, "job"),
]


@pytest.mark.parametrize("ask", ASKING)
def test_trouble_of_the_job_server_is_waited_out_and_a_refusal_is_not(ask: Callable[[Any], object]) -> None:
    with pytest.raises(UnreachableError, match="503"), answering(503, "no agent yet, see line 404") as client:
        ask(client)
    with pytest.raises(ClusterError, match="400") as refused, answering(400, "not so") as client:
        ask(client)
    assert not isinstance(refused.value, UnreachableError)


@pytest.mark.parametrize("ask", [jobs.details, jobs.stop])
def test_a_job_that_the_cluster_does_not_know_did_not_begin_there(ask: Callable[[Any, str], object]) -> None:
    with pytest.raises(ClusterError, match="no job kdtune-x-1: it did not begin"), answering(404, "none") as client:
        ask(client, "kdtune-x-1")


def test_a_following_tries_again_quickly_once_something_new_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    with scripted(Scripted([(0, True), (0, False), (5, True), (5, True)], chunk=5)):
        monkeypatch.setattr(jobs, "PAUSE_S", 1.0)
        monkeypatch.setattr("time.sleep", paused.append)
        assert "".join(follow(HEAD, None, "job", lambda text: None)) == LOG
    assert paused == [1.0, 2.0, 1.0, 2.0]
