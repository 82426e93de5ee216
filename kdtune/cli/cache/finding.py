"""What the commands about an experiment's caches share: finding them. Nothing is trained, built or written."""

from typing import TYPE_CHECKING

from kdtune.errors import CacheError

if TYPE_CHECKING:
    from kdtune.cache import LogitCache
    from kdtune.experiment import Experiment

NOTHING = "peers learn beside the student: there is no teacher whose answers could be kept"


def find(experiment: "Experiment") -> "dict[str, LogitCache]":
    """The caches of an experiment, by the names of their teachers; `views` are those that a run would have.

    Raises CacheError where none has begun, TeacherError where a teacher is not there yet.
    """
    from kdtune.cache import MANIFEST, identify, open_cache, store_at
    from kdtune.cli.progress import watcher
    from kdtune.data import load_dataset
    from kdtune.experiment.chain import teachers_of_students
    from kdtune.trial import locate, place_of, views_needed, with_assistants

    experiment = with_assistants(experiment)
    with watcher() as watch:
        dataset = load_dataset(experiment.data, watch.files_read)
    teachers = locate(experiment, dataset)
    found, absent = {}, []
    for name in teachers_of_students(experiment):
        if name in teachers:  # peers are none
            identity = identify(dataset, experiment.data, teachers[name], experiment.cache)
            place = place_of(experiment, identity)
            if store_at(place.address).read(MANIFEST) is None:
                absent.append(place.address)
            else:
                found[name] = open_cache(place, identity, views=views_needed(experiment))
    if not found:
        raise CacheError(f"{absent[0]} has not begun; run `kdtune cache build`" if absent else NOTHING)
    return found
