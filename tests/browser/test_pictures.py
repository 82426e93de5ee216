"""Figures as PNG files, drawn by Chromium."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from kdtune.cli import app
from kdtune.report.run import load_run
from kdtune.report.sections import sections_of

pytestmark = pytest.mark.browser


def test_every_figure_of_a_report_becomes_a_png_with_something_on_it(folder: Path, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["report", str(folder), "--png", str(tmp_path)])
    assert told.exit_code == 0, told.output
    figures = {name: one for section in sections_of(load_run(folder)) for name, one in section.figures.items()}
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.png" for name in figures}
    assert f"Figures: {len(figures)} PNG files" in told.stdout
    for name, figure in figures.items():
        content = (tmp_path / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", content[16:24])
        assert width in (1440, 2200)
        assert height == 2 * figure.layout.height
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).reshape(-1, 3)
        drawn = (pixels != pixels[0]).any(axis=1).mean()
        assert 0.005 < drawn < 0.95, name
        assert (pixels[0] == 255).all(), name  # on white, for papers
