"""Two hosts and the cluster that `ray up` makes of them, for all tests that need one.

They leave it as they found it, and the last of `test_taking_up.py` takes it down.
"""

from collections.abc import Iterator

import pytest

from tests.hosts.launching import Laptop, launched
from tests.hosts.machines import hosts


@pytest.fixture(scope="session")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    folder = tmp_path_factory.mktemp("hosts")
    with hosts(2, folder / "made") as made, launched(made, folder) as laptop:
        yield laptop
