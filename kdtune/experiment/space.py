"""The search space: a flat map from a dotted config path to a distribution.

    distill.temperature.kind:      {choice: [fixed, exponential]}
    distill.temperature.end_ratio: {loguniform: [0.125, 4], when: {distill.temperature.kind: exponential}}
    distill.feature_weight:        {choice: [0, {loguniform: [0.01, 10]}]}

    teacher:                       {choice: [direct, assisted]}        # names of `teachers`
    student.model:                 {choice: [resnet8, resnet14]}
    student.options.dropout:       {uniform: [0, 0.5], when: {student.model: mlp-800-800}}

`parse` turns it into `Parameter`s, one flat dimension each: a distribution inside a choice becomes a parameter of
its own (`distill.feature_weight@1`) that is active only when that option is picked. `active` turns a sample of all
labels into `{path: value}`; `check` finds every mistake before anything starts.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from kdtune.errors import Problem, nearest
from kdtune.experiment.models import Experiment
from kdtune.experiment.schedule import Schedule, fields_of
from kdtune.experiment.train import Train

Distribution = Literal["choice", "uniform", "loguniform", "integer"]
SEARCHABLE = ("train", "distill")
TEACHER = "teacher"  # searched whole: a choice among the names of `teachers`
STUDENT = "student"  # of which the architecture is searched
MOST_CORNERS = 256
WHOLE_NUMBERS = frozenset(f"train.{name}" for name, info in Train.model_fields.items() if info.annotation is int)


@dataclass(frozen=True)
class Parameter:
    """One dimension. A choice is sampled as the index of its option, the others as numbers in [low, high]."""

    label: str
    path: str
    kind: Distribution
    low: float = 0.0
    high: float = 0.0
    options: tuple[object, ...] = ()
    when: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    option_of: str | None = None  # label of the choice that this distribution is an option of
    option: int = -1

    def encode(self, given: object) -> float | int | None:
        """`given` as the sampler sees it, or None where it lies outside the distribution."""
        if self.kind == "choice":
            return next((k for k, o in enumerate(self.options) if _same(o, given)), None)
        if isinstance(given, str):  # YAML reads 1e-3 as text
            try:
                given = float(given)
            except ValueError:
                return None
        if isinstance(given, bool) or not isinstance(given, int | float) or not self.low <= given <= self.high:
            return None
        if self.kind == "integer":
            return int(given) if float(given).is_integer() else None
        return given

    def middle(self) -> float | int:
        """Stands for an inactive parameter in a full point."""
        if self.kind == "choice":
            return 0
        if self.kind == "loguniform":
            return math.sqrt(self.low * self.high)
        middle = (self.low + self.high) / 2
        return round(middle) if self.kind == "integer" else middle


class _Nested:
    """Marks the option of a choice whose value is another parameter's."""


NESTED = _Nested()


def _same(one: object, other: object) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return one == other


def parse(space: Mapping[str, Mapping[str, object]]) -> tuple[list[Parameter], list[Problem]]:
    """Parameters of a space, and what is wrong with distributions that could not be read."""
    parameters: list[Parameter] = []
    problems: list[Problem] = []
    for path, given in space.items():
        try:
            parameters += _parse_one(path, given)
        except ValueError as error:
            problems.append(Problem(f"search.space.{path}", str(error)))
    return parameters, problems


def _parse_one(path: str, given: Mapping[str, object]) -> list[Parameter]:
    body = {name: value for name, value in given.items() if name != "when"}
    if len(body) != 1:
        raise ValueError(f"expected one of {_forms()}, given {dict(given)}")
    ((kind, bounds),) = body.items()
    when = _parse_when(given.get("when"))
    if kind == "choice":
        return _parse_choice(path, bounds, when)
    if kind not in ("uniform", "loguniform", "integer"):
        raise ValueError(
            f"unknown distribution {kind!r}; known: {_forms()}."
            + nearest(str(kind), ["choice", "uniform", "loguniform", "integer"])
        )
    low, high = _parse_bounds(kind, bounds)
    return [Parameter(label=path, path=path, kind=kind, low=low, high=high, when=when)]  # type: ignore[arg-type]


def _forms() -> str:
    return "{choice: [a, b]}, {uniform: [low, high]}, {loguniform: [low, high]}, {integer: [low, high]}"


def _parse_when(given: object) -> dict[str, tuple[object, ...]]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"`when` takes {{path: value}}, given {given!r}")
    return {str(path): tuple(v) if isinstance(v, list) else (v,) for path, v in given.items()}


def _parse_bounds(kind: str, bounds: object) -> tuple[float, float]:
    numbers = bounds if isinstance(bounds, list) and len(bounds) == 2 else []
    try:
        low, high = (float(number) for number in numbers if not isinstance(number, bool))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{kind} takes two numbers [low, high], given {bounds!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{kind} needs a finite low below high, given {bounds!r}")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"loguniform needs a low above 0, given {bounds!r}")
    if kind == "integer" and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"integer takes whole numbers, given {bounds!r}")
    return low, high


def _parse_choice(path: str, options: object, when: dict[str, tuple[object, ...]]) -> list[Parameter]:
    if not isinstance(options, list) or not options:
        raise ValueError(f"choice takes a list of options, given {options!r}")
    nested: list[Parameter] = []
    values: list[object] = []
    for k, option in enumerate(options):
        if not isinstance(option, Mapping):
            values.append(option)
            continue
        inner = _parse_one(path, option)
        if len(inner) != 1 or inner[0].kind == "choice" or inner[0].when:
            raise ValueError(f"option {k} of a choice is a value or a plain range, given {dict(option)}")
        values.append(NESTED)
        nested.append(
            Parameter(
                label=f"{path}@{k}",
                path=path,
                kind=inner[0].kind,
                low=inner[0].low,
                high=inner[0].high,
                option_of=path,
                option=k,
                when=when,
            )
        )
    return [Parameter(label=path, path=path, kind="choice", options=tuple(values), when=when), *nested]


def active(parameters: Sequence[Parameter], sample: Mapping[str, Any], base: Experiment | None) -> dict[str, Any]:
    """`{path: value}` of the parameters whose conditions hold; the rest of the sample means nothing.

    `base` answers conditions on paths that are not searched. `Any`: values are whatever the options of a choice are.
    """
    values: dict[str, Any] = {}
    for parameter in conditions_first(parameters):
        if not all(
            _same_any(values[path] if path in values else base and value_in(base, path), allowed)
            for path, allowed in parameter.when.items()
        ):
            continue
        raw = sample[parameter.label]
        if parameter.kind == "choice":
            option = parameter.options[int(raw)]
            if option is not NESTED:
                values[parameter.path] = option
        elif parameter.option_of is None or int(sample[parameter.option_of]) == parameter.option:
            values[parameter.path] = round(raw) if parameter.kind == "integer" else float(raw)
    return values


def _same_any(value: object, allowed: Sequence[object]) -> bool:
    return any(_same(value, one) for one in allowed)


def conditions_first(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Parameters in an order in which each comes after those that its `when` names (`check` refuses cycles)."""
    ordered: list[Parameter] = []
    waiting = list(parameters)
    while waiting:
        paths = {parameter.path for parameter in waiting}
        ready = [p for p in waiting if not (p.when.keys() & paths) - {p.path}]
        if not ready:
            raise ValueError("conditions of the search space depend on each other in a circle")
        ordered += ready
        waiting = [parameter for parameter in waiting if parameter not in ready]
    return ordered


def encoded(parameters: Sequence[Parameter], config: Mapping[str, Any]) -> dict[str, float]:
    """The sample of a configuration, of the labels that are active in it: `active` the other way round.

    A value that the space does not hold (of an earlier space, of a file) has no label.
    """
    codes: dict[str, float] = {}
    for parameter in parameters:
        code = parameter.encode(config[parameter.path]) if parameter.path in config else None
        if parameter.option_of is None and code is not None:
            codes[parameter.label] = code
        elif parameter.option_of is not None and code is not None and parameter.option_of not in codes:
            codes |= {parameter.option_of: parameter.option, parameter.label: code}
    return codes


def look_up(base: BaseModel, path: str) -> object:
    """Value of a dotted path in a validated experiment; None of an option that the student does not set."""
    value: object = base
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part)
    return value


def value_in(base: BaseModel, path: str) -> object:
    """Like `look_up`, but a fixed schedule counts as its number: what a parameter of that path would have been."""
    value = look_up(base, path)
    return value.start if isinstance(value, Schedule) and value.kind == "fixed" else value


def full_point(parameters: Sequence[Parameter], point: Mapping[str, object], base: Experiment) -> dict[str, float]:
    """A sample of every label for a partial point `{path: value}`; the rest comes from the experiment.

    Raises ValueError where a value that the point names lies outside its distribution.
    """
    full: dict[str, float] = {}
    unknown = point.keys() - {parameter.path for parameter in parameters}
    if unknown:
        known = [parameter.path for parameter in parameters]
        raise ValueError(f"{min(unknown)} is not in search.space.{nearest(min(unknown), known)}")
    for parameter in parameters:
        named = parameter.path in point
        given = point[parameter.path] if named else value_in(base, parameter.path)
        code = parameter.encode(given)
        if code is None and parameter.kind == "choice":  # the value may belong to a nested range
            code = next(
                (n.option for n in parameters if n.option_of == parameter.label and n.encode(given) is not None), None
            )
        if code is None and named and parameter.option_of is None:
            raise ValueError(f"{parameter.path}: {given!r} lies outside its distribution")
        full[parameter.label] = parameter.middle() if code is None else code
    return full


def check(raw: Mapping[str, Any]) -> list[Problem]:
    """Every mistake in `search.space` and `search.points` of a raw experiment, valid or not otherwise."""
    search = raw.get("search")
    space = search.get("space") if isinstance(search, Mapping) else None
    if not isinstance(space, Mapping):
        return []
    readable = {str(path): given for path, given in space.items() if isinstance(given, Mapping)}
    parameters, problems = parse(readable)
    for path in readable:
        problems += check_path(path, f"search.space.{path}")
    for parameter in parameters:
        if parameter.path in WHOLE_NUMBERS and parameter.kind in ("uniform", "loguniform"):
            low, high = f"{parameter.low:g}", f"{parameter.high:g}"
            problems.append(
                Problem(f"search.space.{parameter.path}", f"takes whole numbers: {{integer: [{low}, {high}]}}")
            )
        for condition in parameter.when:
            problems += check_path(condition, f"search.space.{parameter.path}.when")
    return list(dict.fromkeys(problems))


def check_path(path: str, where: str) -> list[Problem]:
    """Whether a dotted path exists in the experiment's models and may be searched."""
    model: type[BaseModel] = Experiment
    parts = path.split(".")
    if path == TEACHER or is_architecture(path):
        return []
    if parts[0] not in SEARCHABLE or len(parts) < 2:
        guess = nearest(path, list(_searchable_paths()))
        return [
            Problem(
                where,
                f"only fields of train and distill, teacher, student.model and student.options.NAME can be searched."
                f"{guess}",
            )
        ]
    for k, part in enumerate(parts):
        if part not in model.model_fields:
            guess = nearest(path, list(_searchable_paths()))
            return [Problem(where, f"no field {'.'.join(parts[: k + 1])!r}.{guess}")]
        inner = model.model_fields[part].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
        elif k < len(parts) - 1:
            return [Problem(where, f"{'.'.join(parts[: k + 1])} is a plain value and has no fields")]
    return []


def is_architecture(path: str) -> bool:
    """Whether what lies at a path decides what the student is, and not how it learns."""
    section, _, rest = path.partition(".")
    field, _, option = rest.partition(".")
    return section == STUDENT and (rest == "model" or (field == "options" and option.isidentifier()))


def _searchable_paths() -> Iterator[str]:
    yield from (TEACHER, f"{STUDENT}.model", f"{STUDENT}.options.dropout")
    for section in SEARCHABLE:
        model = Experiment.model_fields[section].annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for name, info in model.model_fields.items():
            yield f"{section}.{name}"
            if info.annotation is Schedule:
                yield from (f"{section}.{name}.{part}" for part in Schedule.model_fields)


def corners(parameters: Sequence[Parameter], base: Experiment) -> Iterator[dict[str, Any]]:
    """Configurations at the ends of every range and at every option, combined within a schedule and within train.

    Teacher and student belong together with the feature loss and its weight: not every teacher has features for each
    of them, nor every student. Where these are too many, there are still all students.
    """
    groups: dict[str, list[Parameter]] = {}
    for parameter in parameters:
        section, _, rest = parameter.path.partition(".")
        features = section in (TEACHER, STUDENT) or rest == "feature_loss"
        field = "feature_weight" if features else rest.split(".")[0]
        groups.setdefault("train" if section == "train" else f"distill.{field}", []).append(parameter)
        if section == STUDENT:
            groups.setdefault(STUDENT, []).append(parameter)
    for group in groups.values():
        involved = list(group)
        for parameter in group:  # what decides whether this one is active belongs to its corners
            involved += [p for p in parameters if p.path in parameter.when and p not in involved]
        ends = [range(len(p.options)) if p.kind == "choice" else (p.low, p.high) for p in involved]
        labels = [parameter.label for parameter in involved]
        for combination in itertools.islice(itertools.product(*ends), MOST_CORNERS):
            yield active(involved, dict(zip(labels, combination, strict=True)), base)


def idle(parameters: Sequence[Parameter], base: Experiment) -> list[Problem]:
    """Parameters that would do nothing: under a condition that never holds, or read by no kind of their schedule."""
    problems = []
    for parameter in parameters:
        for path, allowed in parameter.when.items():
            searched = [other for other in parameters if other.path == path]
            holds = any(other.encode(value) is not None for other in searched for value in allowed) or (
                not searched and _same_any(value_in(base, path), allowed)
            )
            if not holds:
                shown = " or ".join(map(str, allowed))
                problems.append(Problem(f"search.space.{parameter.path}.when", f"{path} is never {shown}"))
        owner, _, name = parameter.path.rpartition(".")
        if owner.count(".") != 1 or not isinstance(look_up(base, owner), Schedule):
            continue
        kind_path = f"{owner}.kind"
        kinds = next((p.options for p in parameters if p.path == kind_path), (look_up(base, kind_path),))
        kinds = parameter.when.get(kind_path, kinds)
        if not any(name in fields_of(str(kind)) for kind in kinds):
            problems.append(
                Problem(
                    f"search.space.{parameter.path}", f"has no effect: no {name} in kind {' or '.join(map(str, kinds))}"
                )
            )
    return problems
