"""PNG files of a report: what is wanted for them and missing is said. Tests of the browser draw them."""

import sys
from pathlib import Path

import pytest
from choreographer.browsers.chromium import Chromium

from kdtune.errors import RunError
from kdtune.report.pictures import write_pictures
from kdtune.report.run import load_run
from tests.pages import single_run


def test_without_kaleido_its_installation_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(RunError, match=r"PNG files take kaleido: pip install 'kdtune\[png\]'"):
        write_pictures(load_run(single_run(tmp_path)), tmp_path / "png")
    assert not (tmp_path / "png").exists()


def test_without_chrome_two_ways_to_get_it_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chromium, "find_browser", lambda **how: None)
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    with pytest.raises(RunError, match=r"Chrome, which was not found\. .*apt-get install chromium.*plotly_get_chrome"):
        write_pictures(load_run(single_run(tmp_path)), tmp_path / "png")
