"""`kdtune plan [FILE]`: what a search will ask of a cluster, before anything is started."""

from pathlib import Path
from typing import TYPE_CHECKING

from kdtune.cli.options import File, Overrides, read
from kdtune.cli.search import Cluster, Local

if TYPE_CHECKING:
    from kdtune.experiment import Experiment
    from kdtune.search.placing import Node, Slots
    from kdtune.trial import Forecast


def plan(file: File = None, overrides: Overrides = None, local: Local = False, cluster: Cluster = None) -> None:
    """Print nodes, GPUs, trials at a time and an estimate of hours, measured in seconds; start and build nothing.

    It plans for the cluster of cluster.yaml in this folder, running or not, or for this machine; what cannot be placed
    is refused.
    """
    experiment = read(file, overrides)

    from kdtune.cli.tables import print_facts
    from kdtune.experiment import check_searchable
    from kdtune.search.placing import place

    check_searchable(experiment)
    where, nodes = _nodes(local=local, cluster=cluster)
    facts = {"where": where}
    slots = None
    if nodes is None:
        facts["nodes"] = "what each has is not known before Ray runs on them; kdtune search then says"
    else:
        slots = place(experiment.resources, nodes)
        facts["nodes"] = ", ".join(f"up to {node.count} x {_parts(node.cpus, node.gpus)}" for node in nodes)
        facts["at a time"] = _at_a_time(slots)
    facts["search"] = _trials(experiment)
    facts["final stage"] = f"{_final_runs(experiment)} runs x {experiment.train.epochs} epochs"
    print_facts(facts | _estimate(experiment, slots))


def _nodes(*, local: bool, cluster: Path | None) -> "tuple[str, list[Node] | None]":
    """Whose machines, and what they have; None where that is known only once Ray runs."""
    import os

    from kdtune.cluster.files import read_cluster_file
    from kdtune.cluster.finding import DEFAULT
    from kdtune.errors import ClusterError
    from kdtune.search.placing import Node
    from kdtune.training import usable_gpus

    if local and cluster:
        raise ClusterError("--local and --cluster exclude each other; give one of them")
    found = read_cluster_file(cluster or Path(DEFAULT)) if cluster or (Path(DEFAULT).exists() and not local) else None
    if found is None or (cluster is None and found.placeholders):
        why = f"; {DEFAULT} is still to be filled in (--cluster {DEFAULT} plans for it)" if found else ""
        return f"this machine{why}", [Node(os.cpu_count() or 1, usable_gpus())]
    nodes = found.nodes()
    where = f"the cluster {found.name} ({found.where}, {found.path}), whether it runs or not"
    return where, None if nodes is None else [Node(**node) for node in nodes]  # type: ignore[arg-type]  # count is whole


def _parts(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU{'s' * (cpus != 1)}" + (f" and {gpus:g} GPU{'s' * (gpus != 1)}" if gpus else "")


def _at_a_time(slots: "Slots") -> str:
    workers = f"{slots.workers} workers of " if slots.workers > 1 else ""
    gpus = slots.concurrent * slots.workers * slots.gpus
    return f"{slots.concurrent} trials, each {workers}{_parts(slots.cpus, slots.gpus)}" + (
        f"; {gpus:g} GPUs in all" if gpus else ""
    )


def _trials(experiment: "Experiment") -> str:
    trials, epochs = experiment.search.trials, experiment.train.epochs
    if not trials:
        return "none: the configuration is the file's own"
    stopper = experiment.search.stopper.kind
    stops = {
        "median": ", fewer where the median rule stops them",
        "population": "",
        "none": "",
    }.get(stopper, f", of which {stopper} lets about {_share(experiment):.0%} run")
    limits = [f"{name} {limit:g}" for name, limit in experiment.search.budget if limit is not None]
    ends = f"; ends at {' or '.join(limits)} (search.budget), which the estimate leaves out" if limits else ""
    return f"{trials} trials x {epochs} epochs{stops}{ends}"


def _share(experiment: "Experiment") -> float:
    """Share of all epochs that successive halving runs; 1 where nobody can say beforehand what is stopped."""
    from kdtune.tuning.rungs import expected_share

    return expected_share(experiment) if experiment.search.trials else 1.0


def _final_runs(experiment: "Experiment") -> int:
    return experiment.final.seeds * (1 + len(experiment.final.baselines) + len(experiment.final.rows))


def _estimate(experiment: "Experiment", slots: "Slots | None") -> dict[str, str]:
    """Hours, from a few seconds of measuring the experiment's own networks and data on this machine."""
    root = experiment.data.root
    if root is not None and not Path(root).exists():
        return {"estimate": f"none: the data set is not on this machine ({root}), so nothing can be measured"}
    import torch

    from kdtune.cli.progress import watcher
    from kdtune.data import load_dataset
    from kdtune.training import default_device
    from kdtune.trial import check_networks, forecasts

    device = default_device()
    with watcher() as watch:
        dataset = load_dataset(experiment.data, watch.files_read)
        check_networks(experiment, dataset)
        found = [one for one in forecasts(experiment, dataset.to(device), device) if one.caches]
    if not found:
        return {"estimate": "none: peers learn together, which is not measured beforehand"}
    most, about = (sum(hours) for hours in zip(*(_hours(one) for one in found), strict=True))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    facts = {
        "estimate": f"about {_in_words(about, slots)}, at most {_in_words(most, slots)} if no trial is stopped early"
    }
    if slots is not None:
        at_once = slots.concurrent * slots.workers
        facts["duration"] = f"about {_duration(about / at_once)}, once all {slots.concurrent} trials at a time run"
    return facts | {"based on": _basis(name, slots)}


def _hours(forecast: "Forecast") -> tuple[float, float]:
    """Of one worker: with every run at full length, and with trials stopped early."""
    planned = forecast.caches.values()
    building = sum(one.estimate.seconds_to_build(one.speed) for one in planned)
    most = building + (forecast.seconds(cached=True) - building) * forecast.slots
    images, speed = next((one.estimate.images, one.speed.cached) for one in planned)
    trials = forecast.experiment.search.trials * forecast.epochs * images / speed
    return most / 3600, (most - trials * (1 - _share(forecast.experiment))) / 3600


def _in_words(hours: float, slots: "Slots | None") -> str:
    gpus = slots.gpus if slots else 0.0
    amount = hours * (gpus or 1)
    told = f"{amount:.2g} {{}}hours" if amount >= 1 else f"{60 * amount:.2g} {{}}minutes"
    return told.format("GPU ") if gpus else f"{told.format('')} of one worker"


def _duration(hours: float) -> str:
    from kdtune.cli.progress import duration

    return duration(hours * 3600)


def _basis(gpu: str | None, slots: "Slots | None") -> str:
    left_out = "teachers that have yet to be trained, data still to be fetched and nodes still starting are not in it"
    if gpu is not None:
        return f"the speed of this machine's {gpu}, assumed of the others too; {left_out}"
    if slots is not None and slots.gpus:
        return (
            f"this machine's CPU, since it has no GPU to measure: a GPU is assumed to be as fast as one worker's CPUs "
            f"here, though with all but tiny networks it is many times faster; {left_out}"
        )
    return f"the speed of this machine's CPU, assumed of the others too; {left_out}"
