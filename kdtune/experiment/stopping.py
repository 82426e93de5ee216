"""The `stopper` section: which trials of a search end early, and at which epochs that is decided.

    stopper: asha's fields   {kind: asha, reduction_factor: 3, grace_epochs: 6, brackets: 1}
             hyperband's     {kind: hyperband, reduction_factor: 3, grace_epochs: 6}
             median's        {kind: median, grace_epochs: 6}
             population's    {kind: population, grace_epochs: 6}
             none's          {kind: none}

A field that the kind does not read is refused, and left out where an experiment is written down.
"""

from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from kdtune.experiment.section import Section

# The fields that each kind reads.
READ: dict[str, tuple[str, ...]] = {
    "asha": ("reduction_factor", "grace_epochs", "brackets"),
    "hyperband": ("reduction_factor", "grace_epochs"),
    "median": ("grace_epochs",),
    "population": ("grace_epochs",),
    "none": (),
}


class Stopper(Section):
    """Which trials end early."""

    kind: Literal["asha", "hyperband", "median", "population", "none"] = Field(
        "asha",
        description="Asynchronous successive halving, the same in all of Hyperband's brackets, the median rule, "
        "population-based training (which goes on from the best in place of the worst), never.",
    )
    reduction_factor: float = Field(3, gt=1, description="asha, hyperband: keeps the best 1/factor at each rung.")
    grace_epochs: int | None = Field(
        None,
        ge=1,
        description="No trial stops before; null is a tenth of the run, at least 1, and never in a warm-up. "
        "population: how many epochs lie between one comparison of members and the next.",
    )
    brackets: int = Field(
        1,
        ge=1,
        description="asha: trials are dealt to so many brackets, each judged one rung later than the one before.",
    )

    @model_validator(mode="after")
    def _is_read_by_its_kind(self) -> Self:
        given = {name for name in self.model_fields_set if name != "kind" and getattr(self, name) is not None}
        unread = sorted(given - set(READ[self.kind]))
        if unread:
            does = "does" if len(unread) == 1 else "do"
            takes = f"takes {', '.join(READ[self.kind])}" if READ[self.kind] else "takes no other field"
            raise ValueError(
                f"{' and '.join(unread)} {does} nothing: kind {self.kind} {takes}; leave out what it does not read"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_read(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return readable(write(self))

    def rungs(self, grace: int, epochs: int) -> list[int]:
        """Epochs of a full run at which trials are judged and most of them end; none where the kind has no rungs."""
        return rungs_of(grace, self.reduction_factor, epochs) if "reduction_factor" in READ[self.kind] else []


def readable(section: dict[str, Any]) -> dict[str, Any]:
    """A `stopper` section without the fields that its kind does not read; `Any`: as a file has it."""
    known = READ.get(str(section.get("kind", "asha")))
    return section if known is None else {k: v for k, v in section.items() if k == "kind" or k in known}


def ready_epochs(interval: int, epochs: int) -> list[int]:
    """Epochs after which members of a population are compared: so many apart, and so many before the last."""
    return list(range(interval, epochs - max(interval, 2) + 1, interval))


def rungs_of(grace: int, factor: float, epochs: int) -> list[int]:
    """Epochs at which trials are judged: grace, grace * factor, ... below the full length."""
    rungs: list[int] = []
    rung = float(grace)
    while round(rung) < epochs:
        if round(rung) not in rungs:
            rungs.append(round(rung))
        rung *= factor
    return rungs
