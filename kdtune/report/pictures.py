"""The figures of a report as PNG files, for papers and slides: `write_pictures(run, folder)`."""

from pathlib import Path

import plotly.graph_objects as go

from kdtune.errors import RunError
from kdtune.report.run import Run
from kdtune.report.sections import sections_of

WIDTH, WIDE, SCALE = 720, 1100, 2  # pixels on a screen, and how many of a file make one of these
CHROME = (
    "PNG files are drawn by Chrome, which was not found. Install it (Debian, Ubuntu: apt-get install chromium), or let "
    "kaleido fetch its own: plotly_get_chrome"
)


def write_pictures(run: Run, folder: Path) -> list[Path]:
    """FOLDER/<figure>.png for each figure of the report. Raises RunError where kaleido or Chrome is missing."""
    try:
        import kaleido  # type: ignore[import-not-found,unused-ignore]
        from choreographer.errors import ChromeNotFoundError  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise RunError(f"PNG files take kaleido: pip install 'kdtune[png]' ({error})") from error
    figures = {name: one for section in sections_of(run) for name, one in section.figures.items()}
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [_job(one, name, folder) for name, one in figures.items()]
    try:
        kaleido.write_fig_from_object_sync(jobs)
    except ChromeNotFoundError as error:
        raise RunError(CHROME) from error
    return [folder / f"{name}.png" for name in figures]


def _job(one: go.Figure, name: str, folder: Path) -> dict[str, object]:
    wide = any(trace.type == "parcoords" for trace in one.data)
    size = {"width": WIDE if wide else WIDTH, "height": one.layout.height, "scale": SCALE, "format": "png"}
    return {"fig": one.to_dict(), "path": str(folder / f"{name}.png"), "opts": size}
