"""`kdtune teacher [FILE]`: train or load the teacher, and say how good it is."""

from kdtune.cli.options import File, Overrides, read, resumable


def teacher(file: File = None, overrides: Overrides = None) -> None:
    """Train the experiment's teachers, or load their checkpoints, and print their validation accuracy."""
    experiment = read(file, overrides)

    from kdtune.cli.progress import watcher
    from kdtune.data import load_dataset
    from kdtune.experiment.chain import in_order
    from kdtune.training import default_device
    from kdtune.trial import check_networks, obtain, with_assistants

    with resumable(), watcher() as watch:
        experiment = with_assistants(experiment)
        dataset = load_dataset(experiment.data, watch.files_read)
        watch.dataset_ready(dataset)
        device = default_device()
        check_networks(experiment, dataset)
        for name, found in obtain(experiment, dataset.to(device), device, watch.teacher_epoch).items():
            watch.teacher_ready(name, found, dataset)
            watch.say(f"teacher   kept in {found.folder}")
        if not in_order(experiment):
            watch.say("teacher   none to train: peers learn beside the student")
