"""`python -m kdtune`, the same as `kdtune`."""

from kdtune.cli import main

main()
