"""The search: trials under Ray Tune, then the final stage. One of the two rooms that import ray.

`run.run_search` is the door. Nothing is imported here: a worker process imports only the module of its own work
(`trainable` or `final`), since every second of imports is paid once a process.
"""
