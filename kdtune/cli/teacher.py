"""`kdtune teacher [FILE]`: train or load the teacher, and say how good it is."""

from kdtune.cli.options import File, Overrides, read, resumable


def teacher(file: File = None, overrides: Overrides = None) -> None:
    """Train the experiment's teacher, or load its checkpoint, and print its validation accuracy."""
    experiment = read(file, overrides)

    from kdtune.cli.progress import watcher
    from kdtune.data import load_dataset
    from kdtune.teacher import obtain
    from kdtune.training import default_device

    with resumable(), watcher() as watch:
        dataset = load_dataset(experiment.data)
        watch.dataset_ready(dataset)
        device = default_device()
        found = obtain(experiment, dataset.to(device), device, watch.teacher_epoch)
        watch.teacher_ready(found, dataset)
        watch.say(f"teacher   kept in {found.folder}")
