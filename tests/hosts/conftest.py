"""Two hosts and the cluster that `ray up` makes of them, for all tests of a module."""

from collections.abc import Iterator

import pytest

from tests.hosts.launching import Laptop, launched
from tests.hosts.machines import hosts


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    folder = tmp_path_factory.mktemp("hosts")
    with hosts(2, folder / "made") as made, launched(made, folder) as laptop:
        yield laptop
