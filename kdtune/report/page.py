"""`report.html`: one file that shows a run, with everything in it and nothing asked of any network.

write_report(load_run(folder))    # RUN/report.html
render(run)                       # the same as text
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from kdtune.records import write_text
from kdtune.report.figures.style import DARK
from kdtune.report.run import Run
from kdtune.report.sections import Section, sections_of
from kdtune.report.wording import FILTERS

REPORT = "report.html"
# `unsafe-eval`: plotly's drawing on WebGL makes functions of text. A page that is served live asks its own server.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; connect-src {origin}; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Shown:
    """A section as the skeleton of a page takes it."""

    id: str
    title: str | None
    body: Markup


def write_report(run: Run) -> Path:
    """RUN/report.html, of a run that is finished or not."""
    path = run.folder / REPORT
    write_text(path, render(run))
    return path


def render(run: Run, live: str | None = None) -> str:
    """The page; `live` is the tag of this state, where a server tells of the next."""
    about = run.experiment
    subtitle = (
        f"{about.student.model} taught by {about.own_teacher.model or about.teacher_name} on {about.data.dataset}, "
        f"{about.train.epochs} epochs"
    )
    return assemble(sections_of(run), title=f"{about.name} · kdtune", heading=about.name, subtitle=subtitle, live=live)


def content(sections: Sequence[Section]) -> Markup:
    """The main part of a page."""
    shown = [Shown(one.name, one.title, _body(one)) for one in sections]
    return Markup(environment().get_template("content.html").render(sections=shown))


def assemble(sections: Sequence[Section], *, title: str, heading: str, subtitle: str, live: str | None = None) -> str:
    """A whole page around its sections."""
    return (
        environment()
        .get_template("page.html")
        .render(
            title=title,
            heading=heading,
            subtitle=subtitle,
            live=live,
            sections=[Shown(one.name, one.title, Markup()) for one in sections],
            content=content(sections),
            policy=POLICY.format(origin="'self'" if live else "'none'"),
            css=Markup(_file("page.css")),
            js=Markup(_file("page.js")),
            plotly=Markup(_plotly()),
            dark=as_json_text(DARK),
            version=version("kdtune"),
            drawn=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )


def _body(section: Section) -> Markup:
    drawn = {name: Markup(_in_script(one.to_json())) for name, one in section.figures.items()}
    template = environment().get_template(f"sections/{section.name}.html")
    return Markup(template.render(figures=drawn, **section.says))


def as_json_text(value: Any) -> Markup:  # whatever JSON takes
    import json

    return Markup(_in_script(json.dumps(value)))


def _in_script(text: str) -> str:
    """JSON within a script element, which a `<` could end."""
    return text.replace("<", "\\u003c")


@cache
def environment() -> Environment:
    """Every name is escaped, and one that is missing is an error."""
    made = Environment(
        loader=PackageLoader("kdtune.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= FILTERS
    return made


def _file(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text()


@cache
def _plotly() -> str:
    script: str = get_plotlyjs()
    return script
