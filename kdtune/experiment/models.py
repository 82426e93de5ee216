"""The experiment file as frozen pydantic models: every field, its default, its limits, a sentence on each.

Defaults live here and nowhere else. `kdtune schema` prints these models as JSON Schema for editors.
Names of models, data sets and losses are spelt out so that a misspelt one is found without importing torch;
tests hold them equal to the registries where the things live.
"""

from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from kdtune.experiment.schedule import Schedule

DatasetName = Literal["digits", "folder"]
Augment = Literal["none", "crop", "flip", "crop-flip"]
ModelName = Literal[
    "cnn-8", "cnn-12", "cnn-16", "cnn-4-8", "cnn-8-16", "cnn-16-32", "cnn-32-64", "cnn-32-64-64",
    "resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet8x4", "resnet32x4",
]  # fmt: skip
LogitLoss = Literal["kl"]
FeatureLoss = Literal["hint", "attention"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Baseline = Literal["student alone", "textbook KD"]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Data(Section):
    """Images, how they are augmented, and which of the training images steer the search."""

    dataset: DatasetName = Field(description="digits ships with scikit-learn; folder reads class folders.")
    root: str | None = Field(None, description="Folder data sets: the folder that holds train/ and test/.")
    image_size: int | None = Field(
        None, ge=4, le=1024, description="Folder data sets: images are resized and centre-cropped to this square."
    )
    augment: Augment = Field("none", description="What each view of a training image may change.")
    crop_padding: int = Field(4, ge=1, le=64, description="Pixels that a crop may move the image by.")
    mean: tuple[float, ...] | None = Field(
        None, description="Per-channel mean in 0..1; null measures it on the training images."
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="Per-channel standard deviation in 0..1; null measures it."
    )
    validation: float = Field(
        0.1, gt=0, le=0.5, description="Share of the training images, stratified, that steers the search."
    )
    split_seed: Seed = Field(0, description="Chooses the validation images.")
    views: Literal["auto"] | PositiveInt = Field(
        "auto", description="Augmented views of each image; auto is one an epoch, or 1 without augmentation."
    )
    view_seed: Seed = Field(0, description="Chooses the augmentation of every view.")

    @model_validator(mode="after")
    def _folder_has_what_it_needs(self) -> Self:
        if self.dataset == "folder" and (self.root is None or self.image_size is None):
            raise ValueError("a folder data set needs `root` (it holds train/ and test/) and `image_size`")
        if self.dataset != "folder" and (self.root is not None or self.image_size is not None):
            raise ValueError(f"`root` and `image_size` are for folder data sets; {self.dataset} has neither")
        if self.augment == "none" and self.views not in ("auto", 1):
            raise ValueError(f"without augmentation all views are the same; views is {self.views}, leave it auto")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both `mean` and `std`, or neither")
        return self


class Train(Section):
    """One training run: the same fields for the teacher and for students."""

    epochs: int = Field(60, ge=1, le=100_000, description="Planned length; schedules refer to it.")
    batch_size: int = Field(128, ge=2, description="Images a step, over all workers together.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW.")
    learning_rate: float = Field(0.1, gt=0, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum.")
    nesterov: bool = Field(False, description="Nesterov's form of SGD's momentum.")
    weight_decay: float = Field(5e-4, ge=0, description="L2 for SGD, decoupled for AdamW.")
    schedule: Literal["cosine", "step", "constant"] = Field("cosine", description="Of the learning rate.")
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.625, 0.75, 0.875), description="Step: shares of the run at which the learning rate drops."
    )
    factor: float = Field(0.1, gt=0, lt=1, description="Step: the learning rate's factor at each milestone.")
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of the run over which the learning rate rises.")
    precision: Precision = Field(
        "auto", description="Auto: bfloat16 or float16 autocast where the GPU has it, float32 on a CPU."
    )

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Model(Section):
    model: ModelName = Field(description="A name from `kdtune list models`.")


class Teacher(Model):
    """The network whose answers the student learns; trained here once, or brought along."""

    weights: str | None = Field(
        None, description="A checkpoint (.pt, .pth, .safetensors), or null to train the teacher here."
    )
    train: Train = Field(default_factory=Train, description="How the teacher is trained when it has no weights.")
    seed: Seed = Field(0, description="Initial weights and order of the images.")


class Student(Model):
    """The network that is trained."""


class Distill(Section):
    """Total = (1 - alpha) * cross_entropy + alpha * T^2 * KL + feature_weight * feature_loss."""

    temperature: Schedule = Field(Schedule(start=4), description="Softens both distributions; above 0.")
    alpha: Schedule = Field(Schedule(start=0.9), description="Weight of the distillation term, 0 to 1.")
    feature_weight: Schedule = Field(
        Schedule(start=0), description="Lambda, on the normalised scale; above 0 the live teacher runs."
    )
    logit_loss: LogitLoss = Field("kl", description="Compares student's and teacher's logits.")
    scale_by_temperature_squared: bool = Field(
        True, description="Multiply the KL term by T^2, so that its gradients keep their size as T grows."
    )
    feature_loss: FeatureLoss = Field("hint", description="Compares feature maps where feature_weight > 0.")

    @field_validator("temperature")
    @classmethod
    def _temperature_is_positive(cls, schedule: Schedule) -> Schedule:
        if min(schedule.extremes()) <= 0:
            raise ValueError("a temperature must stay above 0")
        return schedule

    @field_validator("alpha")
    @classmethod
    def _alpha_is_a_share(cls, schedule: Schedule) -> Schedule:
        if not 0 <= min(schedule.extremes()) <= max(schedule.extremes()) <= 1:
            raise ValueError(f"alpha must stay within 0 and 1, this reaches {_out_of(schedule, 0, 1):g}")
        return schedule

    @field_validator("feature_weight")
    @classmethod
    def _feature_weight_is_not_negative(cls, schedule: Schedule) -> Schedule:
        if min(schedule.extremes()) < 0:
            raise ValueError("feature_weight must not be negative")
        return schedule


def _out_of(schedule: Schedule, low: float, high: float) -> float:
    return next(bound for bound in schedule.extremes() if not low <= bound <= high)


# Hinton et al. 2015 as textbooks have it: the configuration that every search must beat, and its first point.
TEXTBOOK: dict[str, object] = {"temperature": 4.0, "alpha": 0.9, "feature_weight": 0.0,
                               "logit_loss": "kl", "scale_by_temperature_squared": True}  # fmt: skip


class Stopper(Section):
    """Which trials end early."""

    kind: Literal["asha", "none"] = Field("asha", description="Asynchronous successive halving, or never.")
    reduction_factor: float = Field(3, gt=1, description="ASHA keeps the best 1/factor at each rung.")
    grace_epochs: int | None = Field(
        None, ge=1, description="No trial stops before; null is a tenth of the run, at least 1."
    )


# A distribution: `{uniform: [0.2, 0.99]}`, `{loguniform: [1, 20]}`, `{integer: [10, 30]}`, `{choice: [...]}`,
# with `when: {path: value}` beside it. `space.parse` checks it; choices may hold values or distributions.
Distribution = dict[str, object]


class Search(Section):
    """The search: how many trials, who proposes them, who stops them, and where they may lie."""

    trials: int = Field(60, ge=1, description="Configurations to try.")
    sampler: Literal["hyperopt", "random"] = Field("hyperopt", description="HyperOpt's TPE, or random.")
    stopper: Stopper = Field(default_factory=Stopper, description="Which trials end early.")
    seed: Seed = Field(0, description="Of the sampler, and of every trial's weights and image order.")
    space: dict[str, Distribution] = Field(
        default_factory=dict, description="Dotted path of a field of train or distill -> its distribution."
    )
    points: list[dict[str, object]] = Field(
        default_factory=list, description="Configurations tried first, after textbook KD."
    )


class Final(Section):
    """After the search: the winner and its baselines, several seeds each, on the whole training set."""

    seeds: int = Field(5, ge=1, le=100, description="Runs of each configuration.")
    baselines: tuple[Baseline, ...] = Field(("student alone", "textbook KD"), description="Compared with.")


class Resources(Section):
    """What one trial holds."""

    workers_per_trial: Literal[1] = Field(1, description="Processes that train one student together.")
    cpus_per_worker: float = Field(1, gt=0, description="CPU cores of each.")
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        "auto", description="GPUs of each, fractions allowed; auto is 1 where there is a GPU, else 0."
    )

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_or_a_fraction(cls, gpus: float | Literal["auto"]) -> float | Literal["auto"]:
        if gpus != "auto" and gpus > 1:
            raise ValueError("one worker drives at most one GPU")
        return gpus


class Experiment(Section):
    """Everything that decides what a run does."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="Name of the run folder.")
    data: Data
    teacher: Teacher
    student: Student
    train: Train = Field(default_factory=Train, description="How students are trained.")
    distill: Distill = Field(default_factory=Distill, description="The objective; a search varies it.")
    search: Search = Field(default_factory=Search)
    final: Final = Field(default_factory=Final)
    resources: Resources = Field(default_factory=Resources)
    storage: str = Field("runs", min_length=1, description="Folder of all runs; NFS when nodes share it.")

    @field_validator("storage")
    @classmethod
    def _storage_is_a_folder(cls, storage: str) -> str:
        if "\0" in storage:
            raise ValueError("the name of a folder cannot hold the character NUL")
        if "://" in storage:
            raise ValueError(f"expected a folder that this machine can write, given the address {storage!r}")
        return storage

    @model_validator(mode="after")
    def _grace_within_the_run(self) -> Self:
        grace = self.search.stopper.grace_epochs
        if grace is not None and grace > self.train.epochs:
            raise ValueError(
                f"search.stopper.grace_epochs is {grace}, but a run has only {self.train.epochs} epochs (train.epochs)"
            )
        return self

    @property
    def views(self) -> int:
        """Number of view columns V; epoch e of a student sees column e mod V."""
        if self.data.views != "auto":
            return self.data.views
        return 1 if self.data.augment == "none" else self.train.epochs

    @property
    def grace_epochs(self) -> int:
        return self.search.stopper.grace_epochs or max(1, self.train.epochs // 10)


MODEL_NAMES: tuple[str, ...] = get_args(ModelName)
