"""The `search` section: how many trials, who proposes them, who stops them, and where they may lie."""

from typing import Literal

from pydantic import Field

from kdtune.experiment.section import Section, Seed
from kdtune.experiment.stopping import Stopper


class Budget(Section):
    """When a search ends before its number of trials: running ones end with their epoch, and no other begins."""

    epochs: int | None = Field(None, ge=1, description="Of all trials together.")
    seconds: float | None = Field(None, gt=0, description="Of the search, that before an interruption included.")
    gpu_hours: float | None = Field(None, gt=0, description="Held by trials while they trained.")
    accuracy: float | None = Field(None, gt=0, le=1, description="On validation images, of a trial that ran in full.")


# A distribution: `{uniform: [0.2, 0.99]}`, `{loguniform: [1, 20]}`, `{integer: [10, 30]}`, `{choice: [...]}`,
# with `when: {path: value}` beside it. `space.parse` checks it; choices may hold values or distributions.
Distribution = dict[str, object]


SamplerName = Literal["hyperopt+gp", "hyperopt", "gp", "random", "grid", "optuna"]
OptunaName = Literal["tpe", "gp", "cmaes", "nsga2", "qmc", "random"]
GRID_POINTS = 3


class Search(Section):
    """The search: how many trials, who proposes them, who stops them, and where they may lie."""

    trials: int = Field(60, ge=0, description="Configurations to try; 0 takes the file's own without a search.")
    sampler: SamplerName = Field(
        "hyperopt+gp",
        description="HyperOpt's TPE and a Gaussian process by turns, one of them, random, a grid, or one of Optuna's.",
    )
    grid_points: int | None = Field(
        None, ge=2, description=f"Values of each range in a grid, both ends among them; null is {GRID_POINTS}."
    )
    optuna_sampler: OptunaName | None = Field(None, description="Which of Optuna's samplers; null is tpe.")
    stopper: Stopper = Field(default_factory=Stopper, description="Which trials end early.")
    budget: Budget = Field(default_factory=Budget, description="Ends the search early; null is no limit.")
    second_objective: Literal["parameters", "latency"] | None = Field(
        None,
        description="Weighed against accuracy where the space changes the student: fewer parameters, or fewer "
        "milliseconds for one image. The best trial stays the most accurate one; the summary has the Pareto front.",
    )
    warm_start: tuple[str, ...] = Field(
        (), description="Run folders of former searches, whose trials the sampler knows from the start."
    )
    keep: int = Field(1, ge=0, description="Best trials whose last state stays on disk.")
    seed: Seed = Field(0, description="Of the sampler, and of every trial's weights and image order.")
    space: dict[str, Distribution] = Field(
        default_factory=dict,
        description="Dotted path of a field of train or distill, `teacher`, `student.model` or "
        "`student.options.NAME` -> its distribution.",
    )
    points: list[dict[str, object]] = Field(
        default_factory=list, description="Configurations tried first, after textbook KD."
    )

    @property
    def values_of_a_range(self) -> int:
        """In a grid."""
        return GRID_POINTS if self.grid_points is None else self.grid_points
