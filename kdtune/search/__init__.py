"""The search: trials under Ray Tune, then the final stage. One of the two rooms that import ray."""

from kdtune.search.board import Board, Row
from kdtune.search.run import Interrupted, Watcher, run_search

__all__ = ["Board", "Interrupted", "Row", "Watcher", "run_search"]
