"""What several commands take."""

import gc

import pytest

from kdtune.cli.options import importing


def test_garbage_is_not_looked_for_while_modules_are_imported_but_afterwards_it_is() -> None:
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_garbage_is_looked_for_again_where_a_module_is_missing() -> None:
    with pytest.raises(ImportError), importing():
        raise ImportError("no such module")
    assert gc.isenabled()
