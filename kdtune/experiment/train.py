"""The `train` section: one training run, the same fields for teachers and students."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdtune.experiment.section import Section

Precision = Literal["auto", "float32", "bfloat16", "float16"]


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
    synchronise_batch_norm: bool = Field(
        False, description="BatchNorm over the whole batch where several workers share it (resources)."
    )

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self
