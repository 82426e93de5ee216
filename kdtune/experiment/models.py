"""The experiment file as frozen pydantic models: every field, its default, its limits, a sentence on each.

One file a section; this one puts them together. Defaults live there and nowhere else. `kdtune schema` prints these
models as JSON Schema for editors. Names of models, data sets and losses are spelt out so that a misspelt one is found
without importing torch; tests hold them equal to the registries where the things live.
"""

import math
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from kdtune.experiment.caching import Cache, check_storage
from kdtune.experiment.images import Data
from kdtune.experiment.networks import INLINE, TEACHER_NAME, Student, Teacher, check_teachers
from kdtune.experiment.objective import Distill
from kdtune.experiment.search import Search
from kdtune.experiment.section import Section
from kdtune.experiment.train import Train

Baseline = Literal["student alone", "textbook KD"]
# Names of rows that the results table has anyway.
TAKEN = ("teacher", "student alone", "textbook KD", "best", "distilled")
LONGEST_NAME = 60  # of a row: part of the name of a file, whose characters may take four bytes each


class Final(Section):
    """After the search: the winner, its baselines and further rows, several seeds each, on the whole training set."""

    seeds: int = Field(5, ge=1, le=100, description="Runs of each configuration.")
    baselines: tuple[Baseline, ...] = Field(("student alone", "textbook KD"), description="Compared with.")
    rows: dict[str, dict[str, object]] = Field(
        default_factory=dict,
        description="Further rows of the table: name -> {dotted path of a field of train, distill or student: value}, "
        "changes to this file's own configuration; `teacher: name` is another of `teachers`, null the student alone.",
    )

    @field_validator("rows")
    @classmethod
    def _names_are_free(cls, rows: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
        for name in rows:
            if name in TAKEN or not name.strip() or not name.isprintable() or "/" in name or len(name) > LONGEST_NAME:
                raise ValueError(
                    f"a row cannot be called {name!r}: choose a name of at most {LONGEST_NAME} characters without `/` "
                    f"besides {', '.join(TAKEN)}"
                )
        return rows


class Resources(Section):
    """What one trial holds."""

    workers_per_trial: int = Field(1, ge=1, le=4096, description="Processes that train one student together.")
    cpus_per_worker: float = Field(1, gt=0, description="CPU cores of each.")
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        "auto", description="GPUs of each, fractions allowed; auto is 1 where there is a GPU, else 0."
    )
    trials_per_gpu: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        1,
        description="Trials that share a GPU, each with its own cores; auto tries 1, 2, 4 and 8 before the search "
        "starts, and takes the number that trains fastest and fits. Nothing on a CPU.",
    )

    @property
    def share_of_a_gpu(self) -> float:
        """What a worker holds of a GPU where there are GPUs; 1 until it is tried how many trials share one."""
        if self.gpus_per_worker != "auto":
            return self.gpus_per_worker
        return 1.0 if self.trials_per_gpu == "auto" else 1 / self.trials_per_gpu

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_or_a_fraction(cls, gpus: float | Literal["auto"]) -> float | Literal["auto"]:
        if gpus != "auto" and gpus > 1:
            raise ValueError("one worker drives at most one GPU")
        return gpus

    @model_validator(mode="after")
    def _gpus_are_shared_in_one_way(self) -> Self:
        if self.trials_per_gpu != 1 and self.gpus_per_worker != "auto":
            raise ValueError(
                f"trials_per_gpu is {self.trials_per_gpu} and gpus_per_worker {self.gpus_per_worker:g}: one of them "
                f"says how a GPU is shared. Leave out the other"
            )
        if self.trials_per_gpu != 1 and self.workers_per_trial > 1:
            raise ValueError(
                f"trials_per_gpu is {self.trials_per_gpu}, but trials of {self.workers_per_trial} workers want a GPU "
                f"for each worker (NCCL). Leave out trials_per_gpu"
            )
        return self

    @model_validator(mode="after")
    def _no_two_workers_of_a_trial_on_one_gpu(self) -> Self:
        if self.workers_per_trial > 1 and self.gpus_per_worker not in ("auto", 0, 1):
            raise ValueError(
                f"gpus_per_worker is {self.gpus_per_worker}, but NCCL, over which {self.workers_per_trial} workers of "
                f"a trial talk, wants a GPU for each of them: 1, or 0 to train on CPUs"
            )
        return self


# The tags stand in an error's location, where loading drops whatever is in brackets.
OneTeacher = Annotated[
    Annotated[Teacher, Tag("(section)")] | Annotated[str, Field(pattern=TEACHER_NAME), Tag("(name)")],
    Discriminator(lambda given: "(name)" if isinstance(given, str) else "(section)"),
]


Tool = Literal["tensorboard", "mlflow", "wandb"]
ONE_TOOL = {"enum": list(get_args(Tool))}
Tools = Annotated[
    tuple[Tool, ...],
    BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
    AfterValidator(lambda tools: tuple(dict.fromkeys(tools))),
    WithJsonSchema({"anyOf": [ONE_TOOL, {"type": "array", "items": ONE_TOOL}]}),
]


class Experiment(Section):
    """Everything that decides what a run does."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="Name of the run folder.")
    data: Data
    teachers: dict[Annotated[str, Field(pattern=TEACHER_NAME)], Teacher] = Field(
        default_factory=dict, description="Teachers by name, for assistants, ensembles and comparisons."
    )
    teacher: OneTeacher = Field(description="Whose answers the student learns: a teacher, or the name of one.")
    student: Student
    train: Train = Field(default_factory=Train, description="How students are trained.")
    distill: Distill = Field(default_factory=Distill, description="The objective; a search varies it.")
    search: Search = Field(default_factory=Search)
    final: Final = Field(default_factory=Final)
    cache: Cache = Field(default_factory=Cache, description="The teacher's answers, kept for all trials.")
    resources: Resources = Field(default_factory=Resources)
    storage: Annotated[str, Field(min_length=1), AfterValidator(check_storage)] = Field(
        "runs", description="Folder of all runs, which the nodes of a cluster share, or an address (s3://bucket/runs)."
    )
    tracking: Tools = Field(
        ("tensorboard",),
        description="Who is told of every epoch besides the records: tensorboard (files in the run folder), mlflow "
        "(MLFLOW_TRACKING_URI), wandb (WANDB_MODE, WANDB_API_KEY); one or several, [] for none.",
    )

    @model_validator(mode="after")
    def _grace_within_the_run(self) -> Self:
        grace = self.search.stopper.grace_epochs
        if grace is None:
            return self
        if grace > self.train.epochs:
            raise ValueError(
                f"search.stopper.grace_epochs is {grace}, but a run has only {self.train.epochs} epochs "
                f"(train.epochs): lower it, or give null, which follows the length of a run"
            )
        if grace < self.warmup_epochs:
            raise ValueError(
                f"search.stopper.grace_epochs is {grace}, but a run warms up over {self.warmup_epochs} epochs "
                f"(train.warmup, distill.learned_temperature.warmup), where accuracies say little: "
                f"give at least {self.warmup_epochs}, or null"
            )
        return self

    @model_validator(mode="after")
    def _brackets_differ(self) -> Self:
        stopper = self.search.stopper
        rungs = stopper.rungs(self.grace_epochs, self.train.epochs)
        if stopper.brackets > len(rungs) + 1:
            raise ValueError(
                f"search.stopper.brackets is {stopper.brackets}, but with rungs at epochs {rungs or 'none'} of "
                f"{self.train.epochs} only {len(rungs) + 1} differ, the last of which stops no trial: give at most that"
            )
        return self

    @model_validator(mode="after")
    def _every_worker_has_images(self) -> Self:
        workers = self.resources.workers_per_trial
        if self.train.batch_size < 2 * workers:
            raise ValueError(
                f"train.batch_size is {self.train.batch_size} images over all workers of a trial, fewer than 2 for "
                f"each of {workers} (resources.workers_per_trial)"
            )
        return self

    @model_validator(mode="after")
    def _teachers_can_be_had(self) -> Self:
        if INLINE in self.teachers and isinstance(self.teacher, Teacher):
            raise ValueError(f"`teachers` has one called {INLINE!r} beside the `teacher` section; choose another name")
        problems = check_teachers(self.all_teachers)
        if isinstance(self.teacher, str) and self.teacher not in self.teachers:
            known = ", ".join(self.teachers) or "none"
            problems.append(f"teacher: {self.teacher!r} is not one of `teachers` ({known})")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _the_objective_fits_the_teacher(self) -> Self:
        if self.teacher_name not in self.all_teachers:
            return self
        if self.own_teacher.peers and self.distill.learned_temperature is not None:
            raise ValueError(
                "distill.learned_temperature is learned against one student, but among peers every network is student "
                "and teacher at once; give distill.temperature a number or a schedule, or learn from a teacher"
            )
        if self.distill.feature_weight.is_zero:
            return self
        if self.own_teacher.model is None:
            kind = "an ensemble" if self.own_teacher.ensemble else "a group of peers"
            raise ValueError(
                f"distill.feature_weight is not 0, but the teacher is {kind} and has no feature maps to match"
            )
        return self

    @property
    def all_teachers(self) -> dict[str, Teacher]:
        """Every teacher by name, the one that is written out under `teacher:` included."""
        inline = {INLINE: self.teacher} if isinstance(self.teacher, Teacher) else {}
        return {**self.teachers, **inline}

    @property
    def teacher_name(self) -> str:
        return INLINE if isinstance(self.teacher, Teacher) else self.teacher

    @property
    def own_teacher(self) -> Teacher:
        """The teacher of this configuration."""
        return self.all_teachers[self.teacher_name]

    @property
    def views(self) -> int:
        """Number of view columns V; epoch e of a student sees column e mod V."""
        if self.data.views != "auto":
            return self.data.views
        return 1 if self.data.augment == "none" else self.train.epochs

    @property
    def grace_epochs(self) -> int:
        """Before which no trial stops."""
        return self.search.stopper.grace_epochs or max(1, self.train.epochs // 10, self.warmup_epochs)

    @property
    def warmup_epochs(self) -> int:
        """Epochs over which the learning rate rises or a learned temperature begins to oppose its student."""
        learned = self.distill.learned_temperature
        share = max(self.train.warmup, learned.warmup if learned else 0.0)
        return math.ceil(round(share * self.train.epochs, 9))  # 0.07 * 100 is a little more than 7
