"""Numbers and YAML as a page shows them."""

import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup, escape

from kdtune.report.verdict import p_value

LINE = re.compile(r"^(\s*(?:- )*)([^\s:#'\"][^:]*|'[^']*'|\"[^\"]*\")(:)(\s.*)?$")
ITEM = re.compile(r"^(\s*(?:- )+)(.*)$")
NUMBER = re.compile(r"^[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?$")
NOTHING = ""


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share:.2%}"


def points(difference: float | None, digits: int = 2) -> str:
    """Of accuracy: a hundredth is a point."""
    return NOTHING if difference is None else f"{difference * 100:+.{digits}f}"


def megabytes(size: float | None) -> str:
    if size is None:
        return NOTHING
    return f"{size:,.1f} MB" if size >= 1 else f"{size * 1000:.1f} kB"


def milliseconds(value: float) -> str:
    return f"{value:.2f} ms"


def amount(count: float | None) -> str:
    """`18.8 k`, `5.94 M`; nothing where an earlier version did not count."""
    if count is None:
        return NOTHING
    for factor, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return f"{count:g}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def value(given: Any) -> str:  # whatever was sampled
    if given is None:
        return "null"  # as the file has it
    if isinstance(given, dict):
        return ", ".join(f"{name} {value(inner)}" for name, inner in given.items())
    if isinstance(given, list | tuple):
        return " ".join(map(value, given))
    return f"{given:.4g}" if isinstance(given, float) else str(given)


def short_path(path: str) -> str:
    return path.removeprefix("distill.")


def breakable(path: str) -> Markup:
    """`short_path`, which may go on in another line after each dot."""
    return Markup(".<wbr>").join(short_path(path).split("."))


def coloured(source: str) -> Markup:
    """YAML as `experiment.dump` writes it, with keys, text, numbers and comments told apart."""
    return Markup("\n").join(map(_line, source.splitlines()))


def _line(line: str) -> Markup:
    if line.lstrip().startswith("#"):
        return Markup('<span class="c">{}</span>').format(line)
    keyed = LINE.match(line)
    if keyed:
        before, key, colon, rest = keyed.groups()
        return Markup('{}<span class="k">{}</span>{}{}').format(before, key, colon, _value(rest or ""))
    item = ITEM.match(line)
    return Markup("{}{}").format(item[1], _value(item[2])) if item else escape(line)


def _value(rest: str) -> Markup:
    bare = rest.strip()
    if not bare:
        return escape(rest)
    kind = "n" if NUMBER.match(bare) or bare in ("true", "false", "null") else "s"
    space = rest[: len(rest) - len(rest.lstrip())]
    return Markup('{}<span class="{}">{}</span>').format(space, kind, bare)


FILTERS: dict[str, Callable[..., str]] = {
    one.__name__: one for one in (percent, points, p_value, megabytes, milliseconds, amount, duration, value, breakable)
}
