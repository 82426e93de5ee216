"""The `student`, `teacher` and `teachers` sections: networks, and who teaches whom.

teacher: {model: resnet56, weights: resnet56.pth}        # brought along
teacher: {model: resnet56, train: {epochs: 100}}         # trained here once
teacher: {model: resnet20, taught_by: large}             # an assistant; `large` is one of `teachers`
teacher: {ensemble: [large, wide]}                       # averaged probabilities
teacher: {peers: [resnet20]}                             # online: trained beside the student
teacher: large                                           # one of `teachers`
"""

import itertools
import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from kdtune.errors import nearest
from kdtune.experiment.objective import Distill
from kdtune.experiment.search import Search
from kdtune.experiment.section import Section, Seed
from kdtune.experiment.train import Train

MODEL_NAMES = (
    "cnn-8", "cnn-12", "cnn-16", "cnn-4-8", "cnn-8-16", "cnn-16-32", "cnn-32-64", "cnn-32-64-64",
    "mlp-800-800", "mlp-1200-1200",
    "plain-cnn-2", "plain-cnn-4", "plain-cnn-6", "plain-cnn-8", "plain-cnn-10", "cnn-5-layer",
    "resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet8x4", "resnet32x4",
    "preresnet110", "wrn-16-2", "wrn-40-1", "wrn-40-2", "wrn-28-10", "resnext29-8x64", "densenet100-12",
    "vgg8", "vgg13", "mobilenetv2-half", "shufflenetv2",
    "resnet18", "resnet34", "resnet50", "resnet152",
    "resnet18-cifar", "resnet34-cifar", "resnet50-cifar", "resnet152-cifar",
)  # fmt: skip
FROM_ELSEWHERE = re.compile(r"timm:[\w.-]+|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
TEACHER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
INLINE = "teacher"  # name of a teacher that is written out under `teacher:`
Options = dict[str, bool | int | float | str]


def _check_name(name: str) -> str:
    if name not in MODEL_NAMES and not FROM_ELSEWHERE.fullmatch(name):
        raise ValueError(
            f"given {name!r}, expected a name from `kdtune list models`, timm:name or module:function."
            f"{nearest(name, MODEL_NAMES)}"
        )
    return name


ModelName = Annotated[
    str,
    AfterValidator(_check_name),
    WithJsonSchema({"anyOf": [{"enum": list(MODEL_NAMES)}, {"type": "string", "pattern": FROM_ELSEWHERE.pattern}]}),
]


def _check_taps(taps: tuple[str, ...]) -> tuple[str, ...]:
    if twice := [tap for tap in dict.fromkeys(taps) if taps.count(tap) > 1]:
        raise ValueError(f"names {', '.join(twice)} twice; each tap has one partner")
    return taps


Taps = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_check_taps)]


class Model(Section):
    """A network by name: of the zoo, `timm:name`, or `module:function` of your own."""

    model: ModelName = Field(description="A name from `kdtune list models`, `timm:name`, or `module:function`.")
    options: Options = Field(
        default_factory=dict, description="Keyword arguments of the model, such as {dropout: 0.5}."
    )
    taps: Taps | None = Field(
        None, description="Modules whose outputs a feature loss compares; null takes the model's own stages."
    )


class Student(Model):
    """The network that is trained."""


class Teacher(Section):
    """Whose answers the student learns: a network brought along or trained here, an assistant, several, or peers."""

    model: ModelName | None = Field(None, description="As of the student; not for `ensemble` and `peers`.")
    options: Options = Field(default_factory=dict, description="Keyword arguments of the model.")
    taps: Taps | None = Field(
        None, description="Modules whose outputs a feature loss compares; null takes the model's own stages."
    )
    weights: str | None = Field(
        None, description="A checkpoint (.pt, .pth, .safetensors), or null to train the teacher here."
    )
    train: Train = Field(default_factory=Train, description="How the teacher is trained when it has no weights.")
    seed: Seed = Field(0, description="Initial weights and order of the images.")
    stop_at: int | None = Field(
        None, ge=1, description="Early-stopped teacher: ends after so many of the planned train.epochs."
    )
    labels: Literal["all", "kept"] = Field(
        "all", description="Labels that the teacher learns from where data.labels_kept is below 1."
    )
    taught_by: str | None = Field(None, description="Teacher assistant: who teaches this one, by name.")
    distill: Distill | None = Field(None, description="An assistant's own objective; null is textbook KD.")
    search: Search | None = Field(None, description="An assistant's own search; null trains it once, as written.")
    generations: int = Field(
        1, ge=1, le=20, description="Self-distillation: the network teaches its next generation, so many in all."
    )
    ensemble: Annotated[tuple[str, ...], Field(min_length=2)] | None = Field(
        None, description="Names of teachers whose probabilities are averaged."
    )
    peers: Annotated[tuple[ModelName, ...], Field(min_length=1)] | None = Field(
        None, description="Online: models that learn beside the student, all from each other."
    )

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        kinds = [kind for kind in ("model", "ensemble", "peers") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"takes exactly one of model, ensemble, peers; given: {', '.join(kinds) or 'none'}")
        if kinds != ["model"]:
            fields = type(self).model_fields
            extra = [
                name
                for name in fields.keys() - set(kinds)
                if getattr(self, name) != fields[name].get_default(call_default_factory=True)
            ]
            if extra:
                raise ValueError(f"{kinds[0]} stands alone; remove {', '.join(sorted(extra))}")
        return self

    @model_validator(mode="after")
    def _has_no_idle_fields(self) -> Self:
        taught = self.taught_by is not None or self.generations > 1
        for name in ("distill", "search"):
            if getattr(self, name) is not None and not taught:
                raise ValueError(f"`{name}` is for an assistant: say who teaches it (taught_by), or remove it")
        if self.weights is not None and (taught or self.stop_at is not None):
            raise ValueError("weights are brought along as they are: remove taught_by, generations and stop_at")
        if self.stop_at is not None and self.stop_at > self.train.epochs:
            raise ValueError(f"stop_at is {self.stop_at}, but train.epochs plans only {self.train.epochs}")
        if self.search is not None and self.generations > 1:
            raise ValueError("a search for each generation is not possible; name the generations in `teachers` instead")
        if self.search is not None and self.stop_at is not None and "train.epochs" in self.search.space:
            raise ValueError("stop_at counts the planned train.epochs, which the search varies; remove one of them")
        if self.search is not None and not self.search.space:
            raise ValueError("the assistant's search has an empty space; remove `search` to train it as written")
        return self

    @property
    def named(self) -> str:
        """What the results table and the model card call it."""
        return self.model or " + ".join(self.ensemble or self.peers or ())

    @property
    def depends_on(self) -> tuple[str, ...]:
        """Names of the teachers that must be there first."""
        return self.ensemble or ((self.taught_by,) if self.taught_by else ())

    @property
    def may_depend_on(self) -> tuple[str, ...]:
        """Those, and the ones among which an assistant's own search chooses."""
        given = self.search.space.get("teacher", {}).get("choice") if self.search else None
        options = given if isinstance(given, list) else []
        return (*self.depends_on, *(name for name in options if isinstance(name, str)))


def check_teachers(teachers: Mapping[str, Teacher]) -> list[str]:
    """What is wrong with who teaches whom: unknown names, circles, peers in the middle of a chain."""
    problems = []
    for name, teacher in teachers.items():
        for other in teacher.depends_on:
            if other not in teachers:
                known = ", ".join(teachers)
                problems.append(f"{name} refers to teacher {other!r}; known: {known}.{nearest(other, list(teachers))}")
        for other in dict.fromkeys(teacher.may_depend_on):
            if other in teachers and teachers[other].peers:
                problems.append(f"{name} refers to {other}, whose peers exist only while the student is trained")
        problems += _useless(teachers, name)
        circle = _circle(teachers, name)
        if circle and name == min(circle):
            problems.append(f"a circle of teachers: {' -> '.join([*circle, circle[0]])}")
    return problems


def _useless(teachers: Mapping[str, Teacher], name: str) -> list[str]:
    """What a teacher asks of others that they cannot give: features of an ensemble, a second opinion of the same."""
    teacher = teachers[name]
    above = teachers.get(teacher.taught_by or "")
    if above and above.ensemble and teacher.distill and not teacher.distill.feature_weight.is_zero:
        return [
            f"{name}: distill.feature_weight is not 0, but its teacher {teacher.taught_by} is an ensemble and has no "
            f"feature maps to match"
        ]
    return [
        f"{name}: its members {one} and {other} are the same teacher; give one of them another seed"
        for one, other in itertools.combinations(teacher.ensemble or (), 2)
        if teachers.get(one) == teachers.get(other) and one in teachers
    ]


def _circle(teachers: Mapping[str, Teacher], start: str) -> list[str]:
    """The names on a way from `start` back to it, or none."""
    paths: list[list[str]] = [[start]]
    while paths:
        path = paths.pop()
        for other in teachers[path[-1]].depends_on if path[-1] in teachers else ():
            if other == start:
                return path
            if other not in path:
                paths.append([*path, other])
    return []
