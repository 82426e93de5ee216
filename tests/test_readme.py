"""The README is true: its links lead somewhere, its map names every file, its commands and files can be read."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer import main as typer_main

from kdtune.cli import app
from kdtune.experiment import parse
from tests.experiments import MINIMAL

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PLACES = {  # what stands for something of the reader's in commands
    "FILE": "search_spaces/digits.yaml", "RUN": "runs/digits", "DIR": "elsewhere", "NAME": "digits", "KEY": "012345",
    "ADDR": "auto", "STUDENT": "runs/digits/student", "DATA": "photographs", "image": "a.png",
    "search_spaces/<file>.yaml": "search_spaces/digits.yaml",
}  # fmt: skip


def blocks() -> Iterator[str]:
    """What is set as code: indented by four."""
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", README, flags=re.MULTILINE):
        yield "\n".join(line[4:] for line in block.splitlines()).strip("\n")


def commands() -> list[str]:
    """Every command line of kdtune, in blocks and in running text."""
    found = [part for block in blocks() for line in block.splitlines() for part in line.split("&&")]
    found += re.findall(r"`(kdtune [^`]+)`", README)
    lines = (re.sub(r"\s+#.*", "", part).strip() for part in found)
    return sorted({line for line in lines if re.match(r"kdtune [a-z]", line)})


def alternatives(command: str) -> Iterator[str]:
    """`status|stop [NAME]` is several commands, what is in brackets may be given, and dots stand for more."""
    command = command.replace("\\|", "|")  # as it is written in tables
    word = next((word for word in command.split() if re.fullmatch(r"[a-z]+(\|[a-z]+)+", word)), "")
    for choice in word.split("|"):
        line = command.replace(word, choice, 1) if word else command
        line = re.sub(r"\[([^\]]*)\]", lambda given: given[1].split("|")[0], line)
        yield re.sub(r"\s?\.\.\.", "", line)


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    if target.startswith("#"):
        assert target[1:] in {slug(heading) for heading in re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)}
    elif not target.startswith("https://"):
        assert (ROOT / target).exists()


@pytest.mark.parametrize("command", [one for command in commands() for one in alternatives(command)])
def test_commands_are_read_as_they_stand(command: str) -> None:
    _, *words = [PLACES.get(word, word) for word in shlex.split(command)]
    here: Any = typer_main.get_command(app)  # click's, which typer carries without types
    while words and hasattr(here, "commands"):
        assert words[0] in here.commands, command
        here = here.commands[words.pop(0)]
    if words == ["--help"] or hasattr(here, "commands"):
        return
    here.make_context(here.name, list(words))


def test_the_table_of_commands_has_every_command() -> None:
    told = {word for line in commands() for one in alternatives(line) for word in one.split()[1:2]}
    known: Any = typer_main.get_command(app)
    assert set(known.commands) <= told


def test_the_map_names_every_file_of_the_package() -> None:
    map_of = next(block for block in blocks() if block.startswith("kdtune/"))
    named, folder = set(), Path()
    for line in map_of.splitlines():
        depth, entry = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folder = Path(*folder.parts[:depth])
        if entry.endswith("/"):
            folder = folder / entry
        else:
            named.add((folder / entry).as_posix())
    files = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "kdtune").rglob("*.py") if not path.name.startswith("__")
    }
    assert named == files


@pytest.mark.parametrize("block", [block for block in blocks() if re.match(r"(import|from) ", block)])
def test_python_is_python(block: str) -> None:
    ast.parse(block)


def experiments() -> list[str]:
    """Blocks of YAML: files as a whole, and sections to put into one."""
    return [block for block in blocks() if re.match(r"[a-z]+: *([{\[\"\n]|[a-z-]+\n)", block) and "..." not in block]


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Sections of `over` within those of `base`."""
    both = {key: merged(base[key], over[key]) for key in base.keys() & over.keys() if isinstance(base[key], dict)}
    return {**base, **over, **both}


@pytest.mark.parametrize("block", experiments())
def test_experiments_are_read_as_they_stand(block: str) -> None:
    for document in yaml.safe_load_all(re.sub(r"^(\w+):(?=.*\n\1:)", r"---\n\1:", block, flags=re.MULTILINE)):
        parse(merged(MINIMAL, document))
