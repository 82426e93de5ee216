"""The `distill` section: the objective and the schedules of its weights."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from kdtune.experiment.schedule import Schedule
from kdtune.experiment.section import Section

LogitLoss = Literal["kl", "dkd", "dist"]
FeatureLoss = Literal["hint", "attention", "rkd", "rkd-distance", "rkd-angle"]


class LearnedTemperature(Section):
    """A temperature that is learned against the student (curriculum temperature): harder and harder to follow."""

    low: float = Field(1.0, gt=0, description="Never below.")
    high: float = Field(20.0, gt=0, description="Never above.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the run over which the opposition grows from 0 to 1.")

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must lie below high ({self.high:g})")
        return self


class Distill(Section):
    """Total = (1 - alpha) * cross_entropy + alpha * T^2 * logit_loss + feature_weight * feature_loss."""

    temperature: Schedule = Field(Schedule(start=4), description="Softens both distributions; above 0.")
    alpha: Schedule = Field(Schedule(start=0.9), description="Weight of the distillation term, 0 to 1.")
    feature_weight: Schedule = Field(
        Schedule(start=0), description="Lambda, on the normalised scale; above 0 the live teacher runs."
    )
    logit_loss: LogitLoss = Field("kl", description="Compares student's and teacher's logits.")
    nontarget_weight: Annotated[float, Field(ge=0)] = Field(
        8.0, description="dkd: weight of the classes beside the right one, whose own part has weight 1."
    )
    intra_class_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="dist: weight of the correlation within classes, that between them has weight 1."
    )
    standardise_logits: bool = Field(
        False, description="z-score the logits of each image before the temperature divides them."
    )
    scale_by_temperature_squared: bool = Field(
        True, description="Multiply the logit loss by T^2, so that its gradients keep their size as T grows."
    )
    learned_temperature: LearnedTemperature | None = Field(
        None, description="Learn the temperature, beginning at `temperature`; null follows the schedule."
    )
    feature_loss: FeatureLoss = Field("hint", description="Compares feature maps where feature_weight > 0.")
    feature_projection: Literal["student", "teacher"] = Field(
        "student", description="hint: whose channels the 1x1 projectors take to the other's."
    )

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

    @model_validator(mode="after")
    def _a_learned_temperature_begins_within_its_range(self) -> Self:
        learned = self.learned_temperature
        if learned is None:
            return self
        if self.temperature.kind != "fixed":
            raise ValueError("a learned temperature has no schedule: give `temperature` a number, where it begins")
        if not learned.low < self.temperature.start < learned.high:
            raise ValueError(
                f"a learned temperature begins between low and high: temperature is {self.temperature.start:g}, "
                f"learned_temperature {learned.low:g} to {learned.high:g}"
            )
        return self


def _out_of(schedule: Schedule, low: float, high: float) -> float:
    return next(bound for bound in schedule.extremes() if not low <= bound <= high)


# Hinton et al. 2015 as textbooks have it: the configuration that every search must beat, and its first point.
TEXTBOOK: dict[str, object] = {"temperature": 4.0, "alpha": 0.9, "feature_weight": 0.0, "logit_loss": "kl",
                               "scale_by_temperature_squared": True, "standardise_logits": False,
                               "learned_temperature": None}  # fmt: skip
