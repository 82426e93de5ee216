"""The report while a search runs: served to this machine, drawn again when the run has gone on."""

import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from markupsafe import escape

from kdtune.errors import RunError
from kdtune.report import live, page
from kdtune.report.live import LOOPBACK, Server, serving
from tests.example_run import write_run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(page, "_plotly", lambda: "/* plotly */")
    return write_run(tmp_path, finished=False)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, path: str, **headers: str) -> tuple[int, str, str | None]:
    """Status, text and ETag."""
    connection = http.client.HTTPConnection(LOOPBACK, server.server_address[1])
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), answer.getheader("ETag")
    connection.close()
    return found


def test_the_page_follows_the_run(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PAUSES", 0)
    status, text, _ = ask(server, "/")
    lines = (folder / "trials.jsonl").read_text().splitlines()
    assert (status, f"Not finished: 8 of 8 trials begun, {len(lines)} epochs" in text) == (200, True)
    _, _, tag = ask(server, "/content")
    assert tag is not None
    assert (tag[0], tag[-1]) == ('"', '"')
    assert f'data-live="{escape(tag)}"' in text
    assert ask(server, "/content", If_None_Match=tag)[0] == 304
    (folder / "trials.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    status, text, later = ask(server, "/content", If_None_Match=tag)
    assert (status, f"{len(lines) - 1} epochs" in text, later != tag) == (200, True, True)


def test_a_run_that_has_gone_on_is_not_drawn_again_at_once(server: Server, folder: Path) -> None:
    """Drawing a long run must not take a search's time."""
    server.drawing.again = float("inf")
    _, _, tag = ask(server, "/content")
    (folder / "errors.jsonl").write_text("")
    assert ask(server, "/content")[2] == tag


def test_what_is_wrong_with_a_run_is_answered(server: Server, folder: Path) -> None:
    (folder / "trials.jsonl").write_text("nonsense\n")
    status, text, _ = ask(server, "/content")
    assert status == 500
    assert "edited or damaged" in text


def test_a_bug_in_drawing_is_answered_and_its_traceback_logged(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*given: object, **settings: object) -> str:
        raise ZeroDivisionError("of a figure")

    monkeypatch.setattr(live, "render", broken)
    status, text, _ = ask(server, "/")
    assert status == 500
    assert "The report was not drawn" in text
    assert "of a figure" in caplog.text


def test_only_this_machine_s_own_names_and_pages_are_answered(server: Server) -> None:
    assert ask(server, "/", Host="evil.example:80")[0] == 403
    assert ask(server, "/", Host="[evil")[0] == 403
    assert ask(server, "/", Host=f"localhost:{server.server_address[1]}")[0] == 200
    assert ask(server, "/", Host="localhost")[0] == 200  # as of port 80
    assert ask(server, "/../experiment.yaml")[0] == 404


def test_a_port_that_is_taken_is_refused_where_it_was_asked_for_and_else_another_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"port {port}.*--port"), serving(folder, port):
            pass
        monkeypatch.setattr(live, "USUAL_PORT", port)
        with serving(folder) as server:
            assert server.server_address[1] != port


def test_what_is_no_run_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"), serving(tmp_path, 0):
        pass
