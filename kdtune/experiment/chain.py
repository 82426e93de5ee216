"""Who has to be there before whom: teachers in the order in which they can be had, and assistants as students.

An assistant is a student that becomes a teacher. `assistant(experiment, name)` is the experiment that trains it, or
searches for its settings; `settled` puts what such a search has found in the place of the search.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kdtune.experiment import space
from kdtune.experiment.models import Experiment
from kdtune.experiment.networks import Student, Teacher
from kdtune.experiment.objective import Distill
from kdtune.experiment.search import Search
from kdtune.experiment.values import row, with_values

BEFORE = "(generation before)"  # no file can name a teacher so


def teachers_of_students(experiment: Experiment) -> list[str]:
    """Names of the teachers that some trial or row of the experiment learns from, its own first."""
    names = [experiment.teacher_name]
    parameters, _ = space.parse(experiment.search.space)
    names += [str(option) for p in parameters if p.path == space.TEACHER for option in p.options]
    for changes in experiment.final.rows.values():
        changed, alone = row(experiment, changes)
        names += [] if alone or changed.own_teacher.peers else [changed.teacher_name]
    return list(dict.fromkeys(names))


def configurations(experiment: Experiment) -> list[Experiment]:
    """The file's own configuration, its rows, and the corners of its search."""
    parameters, _ = space.parse(experiment.search.space)
    found = [experiment]
    for changes in experiment.final.rows.values():
        changed, alone = row(experiment, changes)
        found.append(changed.model_copy(update={"distill": Distill()}) if alone else changed)  # no features to match
    return found + [with_values(experiment, values) for values in space.corners(parameters, experiment)]


def in_order(experiment: Experiment) -> list[str]:
    """Names of all teachers that are needed, each after those that it depends on; peers are none."""
    return _ordered(experiment, lambda teacher: teacher.depends_on)


def _ordered(experiment: Experiment, depends_on: Callable[[Teacher], tuple[str, ...]]) -> list[str]:
    teachers = experiment.all_teachers
    ordered: list[str] = []

    def visit(name: str) -> None:
        for other in depends_on(teachers[name]):
            visit(other)
        if name not in ordered and not teachers[name].peers:
            ordered.append(name)

    for name in teachers_of_students(experiment):
        visit(name)
    return ordered


def assistant(experiment: Experiment, name: str) -> Experiment:
    """The experiment whose student is the assistant `name`; without a search of its own it trains as written."""
    config = experiment.all_teachers[name]
    assert config.model is not None
    assert config.taught_by is not None
    every = experiment.all_teachers
    teachers = {other: every[other] for other in every if name not in _below(every, other)}
    return experiment.model_copy(
        update={
            "name": f"{experiment.name}.{name}",
            "teachers": teachers,
            "teacher": config.taught_by,
            "student": Student(model=config.model, options=config.options, taps=config.taps),
            "train": config.train,
            "distill": config.distill or Distill(),
            "search": config.search or Search(trials=0),
            "final": experiment.final.model_copy(update={"rows": {}}),
        }
    )


def _below(teachers: Mapping[str, Teacher], name: str) -> set[str]:
    """A teacher and all on which it may depend."""
    found, waiting = {name}, [name]
    while waiting:
        above = teachers[waiting.pop()].may_depend_on
        waiting += [other for other in above if other in teachers and other not in found]
        found.update(waiting)
    return found


def next_generation(experiment: Experiment, name: str) -> Experiment:
    """The experiment of a teacher that one of its own architecture teaches: itself, a generation before."""
    config = experiment.all_teachers[name]
    before = Teacher(model=config.model, options=config.options, taps=config.taps)
    again = config.model_copy(update={"taught_by": BEFORE})
    two = {"teachers": {BEFORE: before, name: again}, "teacher": BEFORE}
    return assistant(experiment.model_copy(update=two), name)


def searched_assistants(experiment: Experiment) -> list[str]:
    """Names of the needed assistants that have a search of their own, in the order in which they can be had."""
    names = _ordered(experiment, lambda teacher: teacher.may_depend_on)  # one search may choose the fruit of another
    return [name for name in names if experiment.all_teachers[name].search is not None]


def settled(experiment: Experiment, name: str, found: Mapping[str, Any]) -> Experiment:
    """The experiment with the values that its search found for the assistant `name`, instead of that search."""
    winner = with_values(assistant(experiment, name), found)
    config = experiment.all_teachers[name].model_copy(
        update={"search": None, "train": winner.train, "distill": winner.distill, "taught_by": winner.teacher_name}
    )
    if isinstance(experiment.teacher, Teacher) and name == experiment.teacher_name:
        return experiment.model_copy(update={"teacher": config})
    return experiment.model_copy(update={"teachers": {**experiment.teachers, name: config}})


def searching(experiment: Experiment) -> Iterator[tuple[str, Experiment]]:
    """Every assistant's own experiment that searches, with the path of its section."""
    for name, config in experiment.all_teachers.items():
        if config.search is not None:
            yield (f"teachers.{name}" if name in experiment.teachers else name), assistant(experiment, name)
