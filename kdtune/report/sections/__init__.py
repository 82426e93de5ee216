"""Sections of the report, in its order: what each says, and the figures that it shows.

A section is a function of a run, and None where the run has nothing for it. Adding one: the function, a line in
`SECTIONS`, and a template of its name.
"""

from collections.abc import Callable

from kdtune.report.run import Run
from kdtune.report.sections.outcome import (
    calibration,
    confusion,
    experiment,
    results,
    schedules,
    terms,
    time,
    verdict,
)
from kdtune.report.sections.section import Section
from kdtune.report.sections.trials import curves, fidelity, importances, parallel, pareto, temperature

__all__ = ["SECTIONS", "Section", "sections_of"]

SECTIONS: tuple[Callable[[Run], Section | None], ...] = (
    verdict, results, curves, temperature, parallel, importances, schedules, terms, confusion, calibration, fidelity,
    time, pareto, experiment,
)  # fmt: skip


def sections_of(run: Run) -> list[Section]:
    """Those that there are for this run."""
    return [section for make in SECTIONS if (section := make(run)) is not None]
