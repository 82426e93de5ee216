"""The report of a run, served on this machine's loopback and drawn again as the run goes on.

    with serving(folder) as server:
        print(server.url)
        server.serve_forever()

`/` is the page and `/content` its main part, whose ETag changes with the run's files: a page asks for it now and then,
and puts in place what has changed.
"""

import errno
import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from kdtune.errors import KdtuneError, RunError
from kdtune.report.page import content, render
from kdtune.report.run import load_run
from kdtune.report.sections import sections_of

log = logging.getLogger(__name__)

WATCHED = ("experiment.yaml", "trials.jsonl", "errors.jsonl", "final.jsonl", "final/winner.json", "summary.json")
LOOPBACK = "127.0.0.1"
USUAL_PORT = 8420
OURS = ("127.0.0.1", "localhost")  # names in an address; another leads a browser here by a trick
BROKEN = b"The report was not drawn: a bug, whose traceback is in the terminal that serves this page."
PAUSES = 3  # times as long as drawing takes there is none, so that a long run leaves time for the search


@dataclass(frozen=True)
class State:
    """A run as it was at one time."""

    tag: str  # of its files
    page: bytes
    content: bytes


class Drawing:
    """The newest state of a run folder, drawn once for all who ask."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self.known: State | None = None
        self.again = 0.0  # not drawn before this time

    def state(self) -> State:
        """Raises KdtuneError where the run cannot be read."""
        with self.lock:
            tag = self._tag()
            if self.known is None or (tag != self.known.tag and time.monotonic() >= self.again):
                began = time.monotonic()
                run = load_run(self.folder)
                self.known = State(tag, render(run, live=tag).encode(), content(sections_of(run)).encode())
                self.again = time.monotonic() + PAUSES * (time.monotonic() - began)
            return self.known

    def _tag(self) -> str:
        found = hashlib.sha256()
        for name in WATCHED:
            try:
                about = (self.folder / name).stat()
            except FileNotFoundError:
                continue
            found.update(f"{name} {about.st_mtime_ns} {about.st_size};".encode())
        return f'"{found.hexdigest()[:16]}"'  # an entity tag has its quotes (RFC 9110)


def _host(header: str) -> str | None:
    """Without its port, which the one of HTTP itself does not show."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:  # brackets of an address that do not match
        return None


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:  # the base class's name
        if _host(self.headers.get("Host", "")) not in OURS:
            self._answer(HTTPStatus.FORBIDDEN, b"This report is served to its own machine only.")
            return
        path = self.path.partition("?")[0]
        if path not in ("/", "/content"):
            self._answer(HTTPStatus.NOT_FOUND, b"There is only one page: /")
            return
        try:
            state = self.server.drawing.state()
        except KdtuneError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, str(error).encode())
            return
        except Exception:  # a connection that ends without an answer says nothing
            log.exception("the report of %s was not drawn", self.server.drawing.folder)
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, BROKEN)
            return
        if path == "/":
            self._answer(HTTPStatus.OK, state.page, "text/html")
        elif self.headers.get("If-None-Match") == state.tag:
            self._answer(HTTPStatus.NOT_MODIFIED, b"", tag=state.tag)
        else:
            self._answer(HTTPStatus.OK, state.content, "text/html", tag=state.tag)

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain", tag: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if tag is not None:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # the base class's name  # noqa: A002
        log.debug(format, *args)


class Server(ThreadingHTTPServer):
    daemon_threads = True  # a browser that holds its connection open must not hold Ctrl-C up

    def __init__(self, folder: Path, port: int) -> None:
        self.drawing = Drawing(folder)
        super().__init__((LOOPBACK, port), Handler)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}/"


@contextmanager
def serving(folder: Path, port: int | None = None) -> Iterator[Server]:
    """A server that listens; `serve_forever` answers. Without a port it is 8420, or any free one where that is taken.

    Raises RunError where the folder is no run, or the port that was asked for cannot be had.
    """
    load_run(folder)
    try:
        server = Server(folder, USUAL_PORT if port is None else port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        if port is not None:
            raise RunError(
                f"cannot serve at port {port}: {error.strerror}. Give another (--port), or none: a free one is found"
            ) from error
        server = Server(folder, 0)
    with server:
        yield server
