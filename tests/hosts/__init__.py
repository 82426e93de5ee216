"""`ray up` and everything after it, on hosts that the tests make themselves: `pytest -m hosts`, as root on Linux."""
