"""`Schedule`: what an experiment file says about one value that may change over a run.

    temperature: 4                                           # a number is fixed
    temperature: {kind: exponential, start: 4, end: 1}       # or end_ratio: 0.25
    temperature: {kind: exponential, start: 4, rate: 0.95, floor: 1}    # an epoch
    alpha:       {kind: step, start: 0.9, factor: 0.5, milestones: [0.5, 0.75]}
    alpha:       {kind: warmup, start: 0, end: 0.9, warmup: 0.2}
    temperature: {kind: piecewise, start: 4, values: [3.2, 2.6], milestones: [0.25, 0.5]}

A field that the kind does not read is refused. `at(epoch, epochs)` gives the value.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdtune import schedules

Kind = Literal["fixed", "linear", "cosine", "exponential", "step", "warmup", "piecewise"]

# Each kind's forms: the fields that it reads besides `kind` and `start`. The first that fits is used.
FORMS: dict[str, tuple[frozenset[str], ...]] = {
    "fixed": (frozenset(),),
    "linear": (frozenset({"end"}), frozenset({"end_ratio"})),
    "cosine": (frozenset({"end"}), frozenset({"end_ratio"})),
    "exponential": (frozenset({"end"}), frozenset({"end_ratio"}), frozenset({"rate", "floor"})),
    "step": (frozenset({"factor", "milestones"}),),
    "warmup": (frozenset({"end", "warmup"}), frozenset({"end_ratio", "warmup"})),
    "piecewise": (frozenset({"values", "milestones"}),),
}


def fields_of(kind: str) -> frozenset[str]:
    """Every field that some form of `kind` reads."""
    return frozenset({"kind", "start"}).union(*FORMS.get(kind, ()))


class Schedule(BaseModel):
    """A number, or a kind with its parameters. Values hold for a whole epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Kind = Field("fixed", description="How the value moves from the first epoch to the last.")
    start: float = Field(description="Value in the first epoch.")
    end: float | None = Field(None, description="Value in the last epoch (warmup: after the warm-up).")
    end_ratio: float | None = Field(None, ge=0, description="The end as a multiple of start, instead of `end`.")
    rate: float | None = Field(None, gt=0, le=1, description="Exponential: factor an epoch, with `floor`.")
    floor: float | None = Field(None, description="Exponential with `rate`: never below this value.")
    factor: float | None = Field(None, gt=0, description="Step: multiplies the value at each milestone.")
    milestones: tuple[float, ...] | None = Field(
        None, min_length=1, description="Step, piecewise: shares of the run (0 to 1) at which the value steps."
    )
    values: tuple[float, ...] | None = Field(None, min_length=1, description="Piecewise: from each milestone on.")
    warmup: float | None = Field(None, gt=0, le=1, description="Warmup: the share of the run it takes.")

    @model_validator(mode="before")
    @classmethod
    def _number_means_fixed(cls, given: object) -> object:
        if isinstance(given, bool) or given is None or isinstance(given, list):
            raise ValueError("expected a number or a schedule such as {kind: exponential, start: 4, end: 1}")
        return {"start": given} if isinstance(given, int | float | str) else given

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        given -= {"kind", "start"}
        if given not in FORMS[self.kind]:
            forms = " or ".join(", ".join(["start", *sorted(form)]) for form in FORMS[self.kind])
            raise ValueError(f"kind {self.kind} takes {forms}; given: {', '.join(['start', *sorted(given)])}")
        if self.kind == "exponential" and min(self.extremes()) <= 0:
            raise ValueError(
                "an exponential schedule stays above 0: start, end, floor must be positive (linear and cosine reach 0)"
            )
        if self.floor is not None and self.floor > self.start:
            raise ValueError(f"floor {self.floor:g} lies above start {self.start:g}")
        for milestone in self.milestones or ():
            if not 0 < milestone < 1:
                raise ValueError(f"milestones are shares of the run between 0 and 1, given {milestone}")
        if self.values is not None and self.milestones is not None:
            if len(self.values) != len(self.milestones):
                raise ValueError(f"{len(self.values)} values do not go with {len(self.milestones)} milestones")
            if any(one >= other for one, other in pairwise(self.milestones)):
                raise ValueError(f"milestones of values come one after the other, given {list(self.milestones)}")
        return self

    def parameters(self) -> dict[str, Any]:
        """Keyword arguments for `schedules.value`; an end ratio becomes the end. `Any`: numbers or tuples."""
        given = self.model_dump(exclude_none=True, exclude={"kind"})
        if "end_ratio" in given:
            given["end"] = self.start * given.pop("end_ratio")
        return given

    def at(self, epoch: int, epochs: int) -> float:
        """Value in 0-based `epoch` of a run planned for `epochs`."""
        return schedules.value(self.kind, epoch, epochs, **self.parameters())

    def extremes(self) -> tuple[float, ...]:
        """Values that bound the schedule in any run: every kind stays between them."""
        given = self.parameters()
        steps = (
            tuple(self.start * given["factor"] ** k for k in range(len(given["milestones"]) + 1))
            if self.kind == "step"
            else ()
        )
        steps += self.values or ()
        return (self.start, *(given[name] for name in ("end", "floor") if name in given), *steps)

    @property
    def is_zero(self) -> bool:
        """Whether the value is 0 in every epoch."""
        return all(bound == 0 for bound in self.extremes())


def overlay(base: object, sampled: Mapping[str, object]) -> dict[str, object]:
    """The schedule `base` (a number or a mapping) with `sampled` fields over it.

    What the resulting kind does not read is dropped (a search that picks `fixed` has no use for an end), and a
    sampled end takes the place of another form of end in the base.
    """
    merged: dict[str, object] = dict(base) if isinstance(base, Mapping) else {"kind": "fixed", "start": base}
    ends = {"end", "end_ratio", "rate", "floor"}
    if ends & sampled.keys():
        keep = {"rate", "floor"} if {"rate", "floor"} & sampled.keys() else set()
        merged = {name: given for name, given in merged.items() if name not in ends - keep}
    merged.update(sampled)
    readable = fields_of(str(merged.get("kind", "fixed")))
    return {name: given for name, given in merged.items() if name in readable}
