"""Pages as people meet them: they render, fit the screen, tell the numbers, and can be used without a mouse."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from kdtune.report import live
from kdtune.report.compare import Compared, write_comparison
from kdtune.report.live import serving
from kdtune.report.page import write_report
from kdtune.report.run import load_run
from tests.browser.conftest import WIDTHS, Open, Opened
from tests.example_run import write_run
from tests.pages import UNICODE, nasty_run

pytestmark = pytest.mark.browser

PAPER = 704  # pixels: 44rem, within the margins of A4 and Letter
DRAWN = ".canvas .main-svg, .canvas .parcoords"


def overflow(opened: Opened) -> list[str]:
    """What is wider than the window, boxes that scroll on their own left out."""
    wider: list[str] = opened.page.evaluate(
        """() => document.documentElement.scrollWidth <= innerWidth ? [] :
           [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > innerWidth + 1
             && !one.closest(".scroll, .sideways, pre")).map((one) => one.tagName + "." + one.className)"""
    )
    return wider


def cells(opened: Opened, section: str) -> list[list[str]]:
    found: list[list[str]] = opened.page.eval_on_selector_all(
        f"#{section} tbody tr",
        "(rows) => rows.map((row) => [...row.cells].map((one) => one.firstChild?.textContent.trim() ?? ''))",
    )
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_is_drawn_without_a_network_and_fits(folder: Path, opened: Open, width: int, scheme: str) -> None:
    shown = opened((folder / "report.html").as_uri(), width=width, scheme=scheme)
    assert shown.said == []
    assert overflow(shown) == []
    empty = shown.page.evaluate(
        f"""() => [...document.querySelectorAll(".canvas")].filter((one) => !one.querySelector("{DRAWN}"))
            .map((one) => one.id)"""
    )
    assert empty == []
    for name in ("results", "curves", "temperature"):
        box = shown.page.locator(f"#plot-{name}").bounding_box()
        assert box is not None
        assert width * 0.6 < box["width"] <= width or width > 400


def test_tables_tell_the_numbers_of_the_summary(folder: Path, opened: Open) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    shown = opened((folder / "report.html").as_uri())
    assert shown.page.inner_text(".verdict p") == summary["verdict"]
    expected = [
        [row["name"], f"{row['mean']:.2%}", "" if row["std"] is None else f"{row['std']:.2%}", f"{row['parameters']:,}"]
        for row in summary["results"]
    ]
    assert [[row[0], row[1], row[2], row[6]] for row in cells(shown, "results")] == expected


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_people_out(folder: Path, opened: Open, scheme: str) -> None:
    """Rules of axe-core: names, roles, contrast, landmarks, order of headings."""
    shown = opened((folder / "report.html").as_uri(), scheme=scheme)
    shown.page.eval_on_selector_all("details", "(all) => all.forEach((one) => { one.open = true; })")
    found: dict[str, Any] = Axe().run(shown.page).response
    problems = [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found["violations"]]
    assert problems == []


def test_tab_reaches_what_it_should_and_keys_zoom(folder: Path, opened: Open) -> None:
    shown = opened((folder / "report.html").as_uri())
    reached = []
    for _ in range(150):
        shown.page.keyboard.press("Tab")
        reached.append(
            shown.page.evaluate(
                """() => { const one = document.activeElement;
                   return one.dataset.figure ?? one.dataset.copy ?? one.getAttribute("href") ?? one.tagName; }"""
            )
        )
        if reached[-1] == "experiment-file":
            break
    assert reached[0] == "#main"  # the skip link
    assert {"#results", "#experiment", "results", "curves", "map", "parallel", "time", "SUMMARY"} <= set(reached)
    shown.page.focus("#plot-curves")
    before = shown.page.evaluate("document.getElementById('plot-curves').layout.xaxis.range")
    shown.page.keyboard.press("+")
    shown.page.keyboard.press("Shift+ArrowRight")
    after = shown.page.evaluate("document.getElementById('plot-curves').layout.xaxis.range")
    assert after[1] - after[0] == pytest.approx(0.7 * (before[1] - before[0]))
    assert sum(after) > sum(before)
    outline = shown.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_colours_follow_the_reader_s_choice(folder: Path, opened: Open) -> None:
    shown = opened((folder / "report.html").as_uri())
    paper = "document.getElementById('plot-curves').layout.paper_bgcolor"
    light = shown.page.evaluate(paper)
    shown.page.emulate_media(color_scheme="dark")
    shown.page.wait_for_function(f"{paper} !== {light!r}")
    shown.page.emulate_media(color_scheme="light")
    shown.page.wait_for_function(f"{paper} === {light!r}")


def test_on_paper_plots_are_light_and_no_wider_than_it_and_afterwards_as_before(folder: Path, opened: Open) -> None:
    """A plot that was wider made Chromium print everything three quarters as large."""
    shown = opened((folder / "report.html").as_uri(), width=1400, scheme="dark")
    widths = "[...document.querySelectorAll('.canvas')].map((one) => one.layout.width ?? one._fullLayout.width)"
    papers = "[...new Set([...document.querySelectorAll('.canvas')].map((one) => one.layout.paper_bgcolor))]"
    before = shown.page.evaluate(widths), shown.page.evaluate(papers)
    shown.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    shown.page.emulate_media(media="print")
    shown.page.set_viewport_size({"width": PAPER, "height": 1000})
    assert overflow(shown) == []
    assert max(shown.page.evaluate(widths)) <= PAPER
    assert shown.page.evaluate(papers) == ["#ffffff"] != before[1]
    shown.page.emulate_media(media="screen", color_scheme="dark")
    shown.page.set_viewport_size({"width": 1400, "height": 900})
    shown.page.evaluate("dispatchEvent(new Event('afterprint'))")
    shown.page.wait_for_function(
        f"JSON.stringify({papers}) === {json.dumps(json.dumps(before[1], separators=(',', ':')))}"
    )
    shown.page.wait_for_function(
        f"JSON.stringify({widths}) === {json.dumps(json.dumps(before[0], separators=(',', ':')))}"
    )


def test_the_experiment_file_is_copied(folder: Path, opened: Open) -> None:
    shown = opened((folder / "report.html").as_uri())
    shown.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown.page.click("button[data-copy]")
    shown.page.wait_for_function("document.getElementById('copied').textContent === 'Copied.'")
    assert (
        shown.page.evaluate("navigator.clipboard.readText()").strip()
        == (folder / "experiment.yaml").read_text().strip()
    )


def test_markup_in_names_does_nothing(tmp_path: Path, opened: Open) -> None:
    page = write_report(load_run(nasty_run(tmp_path)))
    asked = []
    shown = opened(page.as_uri(), width=400)
    shown.page.on("dialog", lambda dialog: asked.append(dialog.message))
    assert (shown.said, asked, overflow(shown)) == ([], [], [])
    labels = shown.page.eval_on_selector_all(
        "#plot-confusion-before .xtick text", "(all) => all.map((t) => t.textContent)"
    )
    assert labels[0].startswith('<b>&amp;"x"</b>')
    assert labels[1] == UNICODE


@pytest.mark.parametrize("width", WIDTHS)
def test_a_thousand_trials_stay_usable(long_folder: Path, opened: Open, width: int) -> None:
    assert (long_folder / "report.html").stat().st_size < 8_000_000
    began = time.monotonic()
    shown = opened((long_folder / "report.html").as_uri(), width=width)
    assert time.monotonic() - began < 30
    assert (shown.said, overflow(shown)) == ([], [])


@pytest.mark.parametrize("width", WIDTHS)
def test_runs_compared_are_a_page_too(folder: Path, tmp_path: Path, opened: Open, width: int) -> None:
    other = write_run(tmp_path)
    page = write_comparison(Compared.of([load_run(folder), load_run(other)]), tmp_path / "compare.html")
    shown = opened(page.as_uri(), width=width)
    assert (shown.said, overflow(shown)) == ([], [])
    assert len(cells(shown, "compared-results")) == 8
    found: dict[str, Any] = Axe().run(shown.page).response
    assert [one["id"] for one in found["violations"]] == []


def test_a_live_page_changes_in_place_and_keeps_zoom_scroll_and_what_is_open(
    tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "PAUSES", 0)
    folder = write_run(tmp_path, finished=False)
    whole = write_run(tmp_path / "whole")
    with serving(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            shown = opened(server.url, offline=False)
            page = shown.page
            page.focus("#plot-curves")
            page.keyboard.press("+")
            zoomed = page.evaluate("document.getElementById('plot-curves').layout.xaxis.range")
            page.eval_on_selector("#curves details", "(one) => { one.open = true; }")
            page.evaluate("window.scrollTo(0, 700)")
            marked = page.evaluate("window.kept = document.getElementById('plot-curves'), scrollY")
            (folder / "trials.jsonl").write_text((whole / "trials.jsonl").read_text())
            page.wait_for_function(
                "document.querySelector('#curves').textContent.includes('1 diverged')", timeout=20_000
            )
            assert page.evaluate("document.getElementById('plot-curves') === window.kept")
            assert page.evaluate("document.getElementById('plot-curves').layout.xaxis.range") == pytest.approx(zoomed)
            assert page.evaluate("document.querySelector('#curves details').open")
            assert page.evaluate("document.activeElement.id") == "plot-curves"
            assert abs(page.evaluate("scrollY") - marked) < 60
            for name in ("final.jsonl", "summary.json"):
                (folder / name).write_text((whole / name).read_text())
            page.wait_for_selector("#results .canvas .main-svg", timeout=20_000)
            assert shown.said == []
        finally:
            server.shutdown()
            thread.join()
    page.wait_for_function("document.getElementById('live-state').textContent.startsWith('Not live')", timeout=20_000)
