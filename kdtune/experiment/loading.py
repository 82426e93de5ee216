"""Experiment file -> `Experiment`, with every mistake reported at once.

`load(path, overrides)` reads YAML, applies `--set path=value`, and raises one `ExperimentError` that lists each
problem with its dotted path, what was given, what is allowed, and the nearest known name. `with_values` gives the
experiment of one trial; `dump` writes what `load` reads back to the same experiment.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kdtune.errors import ExperimentError, Problem, nearest
from kdtune.experiment import chain, space
from kdtune.experiment.midway import check_population
from kdtune.experiment.models import Experiment
from kdtune.experiment.sampling import sampler_problems
from kdtune.experiment.stopping import readable
from kdtune.experiment.values import ROW_SECTIONS, plain, row, with_values
from kdtune.experiment.wording import problem, short

LARGEST_FILE = 1_000_000  # bytes; an experiment file is a page of text
NOT_LEARNING = ("random", "grid")  # samplers to which former trials are nothing
MOST_VALUES = 100_000  # once every alias is written out


def load(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Experiment of a YAML file. Raises ExperimentError with every mistake in it."""
    raw = read_yaml(path)
    problems = []
    for override in overrides:
        try:
            _override(raw, override)
        except ValueError as error:
            problems.append(Problem("--set", str(error)))
    if problems:
        raise ExperimentError(str(path), problems)
    return parse(raw, str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Mapping of a YAML file. Raises ExperimentError naming line and column of a syntax error."""

    def refuse(message: str) -> ExperimentError:
        return ExperimentError(str(path), [Problem("", message)])

    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise refuse("too large for an experiment file (1 MB)")
        raw = yaml.load(content.decode("utf-8"), _UniqueKeys)
    except FileNotFoundError:
        raise refuse("no such file" + _neighbours(path)) from None
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise refuse(f"is not UTF-8 text (byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise refuse(f"YAML error at {where}{error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: impossible dates and the like
        raise refuse(f"YAML error: {str(error) or type(error).__name__}") from error
    if not isinstance(raw, dict):
        raise refuse(
            "expected a mapping with name, data, teacher, student, ... "
            + ("but the file is empty" if raw is None else f"but it holds a {type(raw).__name__}")
        )
    try:
        _check_size(raw)
    except ValueError as error:
        raise refuse(str(error)) from None
    return raw


def _check_size(value: object) -> None:
    """Raises ValueError where aliases make a document larger than any memory."""
    try:
        too_many = _unfolded(value, {}) > MOST_VALUES
    except RecursionError:
        too_many = True
    if too_many:
        raise ValueError(f"unfolds to more than {MOST_VALUES:,} values, or contains itself; check its anchors (&, *)")


def _unfolded(value: object, sizes: dict[int, int]) -> int:
    """How many values a document holds with every alias written out. One that contains itself recurses for ever."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in sizes:
        inner = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_unfolded(one, sizes) for one in inner)
    return sizes[id(value)]


class _UniqueKeys(yaml.SafeLoader):
    """YAML allows a key twice and keeps the last silently; here it is an error. Keys are strings."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} appears twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


def _neighbours(path: Path) -> str:
    try:
        names = [file.name for file in path.parent.glob("*.yaml")]
    except OSError:
        return ""
    return "." + nearest(path.name, names) if names else ""


def _override(raw: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    parts = path.split(".")
    if not separator or not all(parts):
        raise ValueError(f"expected path=value such as train.epochs=30, given {override!r}")
    try:
        value = yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError(f"the value of {path} is not YAML: {text!r}") from None
    parts = _keys(parts)
    _check_size(value)
    if parts[0] == "teacher" and len(parts) > 1 and isinstance(name := raw.get("teacher"), str):
        raise ValueError(f"{path}: `teacher` is the name {name!r}; set teachers.{name}.{'.'.join(parts[1:])}")
    here = raw
    for part in parts[:-1]:
        inner = here.get(part)
        if not isinstance(inner, dict):
            # a schedule written as a number takes fields: --set distill.alpha.end=0.5
            inner = {"start": inner} if _is_number(inner) else {}
            here[part] = inner
        here = inner
    here[parts[-1]] = value
    if parts[-2:] == ["stopper", "kind"]:  # another kind has no use for the fields of the one before
        for name in here.keys() - readable(here).keys():
            del here[name]


def _keys(parts: list[str]) -> list[str]:
    """Paths that are keys hold dots themselves: those of a space, --set search.space.distill.alpha={uniform: [0, 1]},
    the same of an assistant's search, and those of a row, --set final.rows.short.train.epochs=3.
    """
    if parts[:2] == ["final", "rows"] and len(parts) > 2:
        k = next((k for k in range(3, len(parts)) if parts[k] in ROW_SECTIONS), len(parts))
        return ["final", "rows", ".".join(parts[2:k]), *([".".join(parts[k:])] if k < len(parts) else [])]
    for k in (2, 3, 4):  # search.space, teacher.search.space, teachers.name.search.space
        if parts[k - 2 : k] == ["search", "space"] and len(parts) > k:
            return [*parts[:k], ".".join(parts[k:])]
    return parts


def _is_number(value: object) -> bool:
    """Whether pydantic would read it as one: YAML takes 1e1 for text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        float(value)
    except (ValueError, OverflowError):
        return False
    return True


def parse(raw: Mapping[str, Any], source: str = "experiment") -> Experiment:
    """Validated experiment of a mapping. Raises ExperimentError with every mistake."""
    problems: list[Problem] = []
    experiment = None
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        problems += [problem(detail, Experiment) for detail in error.errors(include_url=False)]
    except RecursionError:
        problems.append(Problem("", "nested too deeply"))
    problems += space.check(raw)
    if experiment is not None and not problems:
        problems += _check_search(experiment)
        for path, assistant in chain.searching(experiment):
            searching = {"search": assistant.search.model_dump()}
            found = space.check(searching) or _check_search(assistant)
            problems += [Problem(f"{path}.{one.path}", one.message) for one in found]
            problems += [
                Problem(f"{path}.search.space.{searched}", "the architecture of a teacher is what its section says")
                for searched in assistant.search.space
                if space.is_architecture(searched)
            ]
    if problems or experiment is None:
        raise ExperimentError(source, list(dict.fromkeys(problems)))
    return experiment


def _check_search(experiment: Experiment) -> list[Problem]:
    """Mistakes that show only when values of the space are put into the (otherwise valid) experiment."""
    parameters, _ = space.parse(experiment.search.space)
    problems = space.idle(parameters, experiment) + sampler_problems(experiment)
    if parameters and not experiment.search.trials:
        problems.append(Problem("search.trials", "is 0, but search.space is not empty; remove one of them"))
    if experiment.search.warm_start and experiment.search.sampler in NOT_LEARNING:
        problems.append(
            Problem(
                "search.warm_start",
                f"does nothing: the sampler {experiment.search.sampler} learns from no trial; choose another, or "
                f"remove this field",
            )
        )
    second = experiment.search.second_objective
    if second is not None and not any(space.is_architecture(parameter.path) for parameter in parameters):
        problems.append(
            Problem(
                "search.second_objective",
                f"is {second}, which is the same for every trial: nothing in search.space changes the student. Add "
                f"student.model: {{choice: [...]}} (or student.options.NAME) to it, or remove this field",
            )
        )
    try:
        for values in space.corners(parameters, experiment):
            try:
                with_values(experiment, values)
            except ExperimentError as error:
                tried = ", ".join(f"{path}={short(value)}" for path, value in values.items())
                problems += [Problem("search.space", f"with {tried}: {problem}") for problem in error.problems]
    except ValueError as error:
        problems.append(Problem("search.space", str(error)))
    if experiment.search.stopper.kind == "population" and not problems:
        problems += check_population(parameters, experiment)
    for k, point in enumerate(experiment.search.points):
        try:
            space.full_point(parameters, point, experiment)
        except ValueError as error:
            problems.append(Problem(f"search.points.{k}", str(error)))
    for name, changes in experiment.final.rows.items():
        try:
            row(experiment, changes)
        except ExperimentError as error:
            problems += [Problem(f"final.rows.{name}", str(problem)) for problem in error.problems]
    return problems


def check_searchable(experiment: Experiment) -> None:
    """Raises ExperimentError where trials are asked for that would all be alike."""
    if experiment.search.trials and not experiment.search.space:
        message = (
            "is empty: there is nothing to search. `kdtune train` trains the one configuration of the file, "
            "--set search.trials=0 compares it with its baselines"
        )
        raise ExperimentError(experiment.name, [Problem("search.space", message)])


def dump(experiment: Experiment) -> str:
    """YAML with every default written out; loading it gives an equal experiment."""
    return yaml.safe_dump(plain(experiment), sort_keys=False, allow_unicode=True, width=110)


def differences(one: Experiment, other: Experiment) -> list[str]:
    """`path: this against that` for every field that differs, in the order of the file."""
    first, second = _flat(plain(one)), _flat(plain(other))
    paths = list(dict.fromkeys([*first, *second]))
    return [
        f"{path}: {short(first.get(path))} against {short(second.get(path))}"
        for path in paths
        if first.get(path) != second.get(path)
    ]


def _flat(raw: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in raw.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def json_schema() -> str:
    """JSON Schema (draft 2020-12) of experiment files."""
    schema = Experiment.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schedule = schema["$defs"]["Schedule"]
    schema["$defs"]["Schedule"] = {"anyOf": [{"type": "number", "description": "Fixed at this value."}, schedule]}
    return json.dumps(schema, indent=2)
