"""A laptop's way to a cluster: where a search runs, what is shipped there, and how its results come back.

    cluster = read_cluster_file(Path("cluster.yaml"))
    search = RemoteSearch(...)     # kdtune.cluster.remote: submit, follow, stop, fetch

Nothing here runs a search: the driver on the head does, as `kdtune search FILE --address auto`.
"""
