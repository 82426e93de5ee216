"""What pydantic finds, in words: what was given, what is allowed, the nearest known name."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from kdtune.errors import Problem, nearest

UNION_MEMBERS = ("literal['", "constrained-int", "constrained-float")


def problem(detail: ErrorDetails, whole: type[BaseModel]) -> Problem:
    """A pydantic error in words: what was given, what is allowed, the nearest known name."""
    # pydantic adds the member of a union that refused the value; a user knows only the field
    parts, unknown = [str(part) for part in detail["loc"]], detail["type"] == "extra_forbidden"
    own = len(parts) - 1 if unknown else None  # an unknown key is the user's word, whatever it begins with
    location = [part for k, part in enumerate(parts) if k == own or not part.startswith("(")]
    if location and location[-1].startswith(UNION_MEMBERS) and not unknown:
        location.pop()
    path = ".".join(location)
    given = detail.get("input")
    context = detail.get("ctx", {})
    if unknown:
        known = _known_fields(location[:-1], whole)
        elsewhere = [other for other in _paths(whole) if other.split(".")[-1] == location[-1]]
        meant = f" Did you mean {' or '.join(map(repr, elsewhere))}?" if elsewhere else nearest(location[-1], known)
        return Problem(path, f"unknown key.{meant or ' Known: ' + ', '.join(known) + '.'}")
    if detail["type"] == "model_type":
        fields = ", ".join(_known_fields(location, whole))
        return Problem(path, f"given {short(given)}, expected a section with some of: {fields}")
    if detail["type"] == "string_pattern_mismatch":
        return Problem(path, f"given {short(given)}, expected letters, digits, '.', '_' and '-', without spaces")
    if detail["type"] == "union_tag_invalid":
        return Problem(path, f"given {short(given)}, expected a teacher section or the name of one")
    if detail["type"] == "missing":
        return Problem(path, "is required")
    if detail["type"] == "literal_error":
        names = [name.strip("'") for name in str(context["expected"]).replace(" or ", ", ").split(", ")]
        return Problem(path, f"given {short(given)}, expected one of {', '.join(names)}.{nearest(str(given), names)}")
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message[0].lower() + message[1:]
    if detail["type"] == "value_error":
        return Problem(path, message)
    return Problem(path, f"given {short(given)}, {message}")


def _known_fields(location: Sequence[str], whole: type[BaseModel]) -> list[str]:
    annotation: Any = whole  # walked down by name; annotations are whatever the models say
    for part in location:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
            continue
        model = next(_models_in(annotation), None)
        if model is None or part not in model.model_fields:
            return []
        annotation = model.model_fields[part].annotation
    model = next(_models_in(annotation), None)
    return list(model.model_fields) if model else []


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of the fields of a model and of the sections in it, each section once."""
    for name, field in model.model_fields.items():
        yield prefix + name
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _paths(annotation, f"{prefix}{name}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:  # annotations are of many types
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."
