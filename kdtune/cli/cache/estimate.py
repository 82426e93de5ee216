"""`kdtune cache estimate [FILE]`: what the caches will cost and save, before anything is trained or built."""

from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from kdtune.cli.cache.finding import NOTHING
from kdtune.cli.options import File, Overrides, read

if TYPE_CHECKING:
    from kdtune.trial import Forecast, Planned

MANY_CLASSES = 1000  # from here on it is worth a thought to keep less of a logit
LESS: tuple[dict[str, int], ...] = ({"bits": 8}, {"top_k": 200})


def estimate(file: File = None, overrides: Overrides = None) -> None:
    """Tell bytes, teacher passes, break-even and time from a few seconds of measuring; build and train nothing."""
    experiment = read(file, overrides)

    import torch

    from kdtune.cache import check_saves
    from kdtune.cli.progress import watcher
    from kdtune.cli.tables import print_facts
    from kdtune.data import load_dataset
    from kdtune.errors import TeacherError
    from kdtune.training import default_device
    from kdtune.trial import check_networks, forecasts, with_assistants

    with suppress(TeacherError):  # of an assistant whose search has yet to run: that is a part of what is to come
        experiment = with_assistants(experiment)
    device = default_device()
    with watcher() as watch:
        dataset = load_dataset(experiment.data, watch.files_read)
        watch.dataset_ready(dataset)
        check_saves(experiment.cache, dataset)
        check_networks(experiment, dataset)
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        watch.say(f"speed     is being measured on {where}")
        found = list(forecasts(experiment, dataset.to(device), device))
    for forecast in found:
        if len(found) > 1:
            typer.secho(f"\n{forecast.experiment.name}", bold=True)
        for name, planned in forecast.caches.items():
            typer.echo()
            print_facts(_of_cache(forecast, name, planned))
        typer.echo()
        if forecast.caches:
            print_facts(_of_search(forecast))
        else:
            typer.echo(NOTHING)


def _of_cache(forecast: "Forecast", name: str, planned: "Planned") -> dict[str, str]:
    from kdtune.cli.progress import duration
    from kdtune.cli.tables import megabytes
    from kdtune.experiment import Cache

    one, speed = planned.estimate, planned.speed
    kept = "kept already" if planned.kept else "not there yet"
    wanted = f" of {forecast.wanted} that {forecast.epochs} epochs want" if one.views < forecast.wanted else ""
    logits = one.identity.top_k or one.identity.classes
    facts = {
        "teacher": f"{name}: {planned.model}, {kept}",
        "view columns": f"{one.views}{wanted}, {one.there} there already",
        "size": f"{megabytes(one.bytes)}: {one.identity.rows:,} images x {logits} logits, "
        f"{megabytes(one.identity.bytes_of_logits)} a column; {megabytes(one.bytes_missing)} still to come",
    }
    for keep in LESS if one.identity.classes >= MANY_CLASSES else ():
        less = one.keeping(Cache.model_validate(keep))
        if less.bytes < one.bytes:
            ((name, value),) = keep.items()
            facts[f"{name}: {value}"] = (
                f"{megabytes(less.bytes)}, {megabytes(less.identity.bytes_of_logits)} a column, "
                f"{one.bytes / less.bytes:.1f} times less"
            )
    building = f"about {duration(one.seconds_to_build(speed))}" if one.passes else "nothing to do"
    return facts | {
        "teacher passes": f"{one.passes:,} images still to answer; a live teacher answers {one.live_passes:,} a trial",
        "break-even": f"after {one.break_even:.1f} trials of full length"
        if one.passes
        else "at once: all of it is there",
        "building": f"{building} ({speed.answered:,.0f} images a second)",
        "an epoch": f"about {_seconds(one.seconds_an_epoch(speed, cached=True))} from the cache, "
        f"{_seconds(one.seconds_an_epoch(speed, cached=False))} with a live teacher",
    }


def _of_search(forecast: "Forecast") -> dict[str, str]:
    from kdtune.cli.progress import duration
    from kdtune.cli.tables import megabytes

    experiment = forecast.experiment
    missing = sum(one.estimate.bytes_missing for one in forecast.caches.values())
    free = "no limit known" if forecast.free is None else f"{megabytes(forecast.free)} free"
    runs = experiment.final.seeds * (1 + len(experiment.final.baselines) + len(experiment.final.rows))
    facts = {
        "storage": f"{forecast.storage}: {megabytes(missing)} still to come, {free}",
        "search": f"{experiment.search.trials} trials x {forecast.epochs} epochs, and {runs} runs of the final stage; "
        f"{forecast.slots} at a time, none stopped early:",
        "  with cache": f"at most {duration(forecast.seconds(cached=True))}, building included",
        "  without": f"at most {duration(forecast.seconds(cached=False))}, the teacher live at every step",
    }
    searched = any("feature_weight" in path for path in experiment.search.space)
    if searched or not experiment.distill.feature_weight.is_zero:
        facts["feature_weight"] = "trials where it is not 0 ask the live teacher, cache or not"
    if forecast.problem:
        facts["no room"] = forecast.problem
    return facts


def _seconds(value: float) -> str:
    from kdtune.cli.progress import duration

    return f"{value:.2g} s" if value < 10 else duration(value)
