"""`kdtune list [WHAT]`: the names that experiment files may use."""

from typing import Annotated, Literal, get_args

import typer

What = Literal["datasets", "models", "losses", "schedules"]


def list_known(
    what: Annotated[
        What | None, typer.Argument(help="Which names; all of them by default.", show_default=False)
    ] = None,
) -> None:
    """List data sets, models, losses and schedules by the names that experiment files use."""
    from kdtune.experiment.images import DatasetName
    from kdtune.experiment.networks import MODEL_NAMES
    from kdtune.experiment.objective import FeatureLoss, LogitLoss
    from kdtune.experiment.schedule import FORMS

    names: dict[str, list[str]] = {
        "datasets": list(get_args(DatasetName)),
        "models": [*MODEL_NAMES, "timm:<name>", "<module>:<function>"],
        "losses": [
            *(f"{name}  (distill.logit_loss)" for name in get_args(LogitLoss)),
            *(f"{name}  (distill.feature_loss)" for name in get_args(FeatureLoss)),
        ],
        "schedules": [
            f"{kind}: " + " or ".join(", ".join(["start", *sorted(form)]) for form in forms)
            for kind, forms in FORMS.items()
        ],
    }
    for title in [what] if what else names:
        if what is None:
            typer.secho(title, bold=True)
        for name in names[title]:
            typer.echo(name if what else f"  {name}")
