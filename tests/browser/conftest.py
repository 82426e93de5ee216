"""Chromium, and a page in it that has been drawn; what a page says on its console is kept."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from kdtune.report.page import write_report
from kdtune.report.run import load_run
from tests.example_run import write_run
from tests.pages import long_run

WIDTHS = (400, 1600)


@dataclass
class Opened:
    page: Page
    said: list[str] = field(default_factory=list)  # errors of its console and its scripts, and requests that failed

    def wait(self) -> None:
        self.page.wait_for_selector("html[data-drawn=yes]", timeout=60_000)


Open = Callable[..., Opened]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    assert program is not None, "these tests take Chromium: apt-get install chromium"
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*sandbox, "--enable-unsafe-swiftshader"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """`opened(address, width=400, scheme="dark")`: the page, drawn."""
    contexts = []

    def open_page(
        address: str, *, width: int = 1600, scheme: Literal["light", "dark"] = "light", offline: bool = True
    ) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=offline)
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.on("console", lambda said: found.said.append(said.text) if said.type == "error" else None)
        found.page.on("pageerror", lambda error: found.said.append(str(error)))
        found.page.on("requestfailed", lambda request: found.said.append(f"failed: {request.url}"))
        found.page.goto(address)
        found.wait()
        return found

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its report. Read only."""
    folder = write_run(tmp_path_factory.mktemp("runs"))
    write_report(load_run(folder))
    return folder


@pytest.fixture(scope="session")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand trials, two objectives and 200 classes."""
    folder = long_run(tmp_path_factory.mktemp("long"), trials=1000)
    write_report(load_run(folder))
    return folder
