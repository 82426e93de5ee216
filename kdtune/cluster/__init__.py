"""A laptop's way to a cluster: where a search runs, what is shipped there, and how its results come back.

    files         a cluster file as `ray up` reads it
    finding       here, at a running Ray, or there; and why
    ssh           the head's dashboard through a tunnel, commands on the head
    shipping      the working folder and its checkpoints in one archive
    jobs          the search as a Ray job: submitted, followed through broken connections, stopped
    fetching      results, whole or absent
    remembering   what this machine knows of a search, by name
    remote        one search on a cluster, from beginning to end

Nothing here runs a search: the driver on the head does, as `kdtune search FILE --address auto`.
"""
