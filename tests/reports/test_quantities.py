"""Numbers as reports show them, where they change their unit."""

import pytest

from branchprune.reports import quantities


@pytest.mark.parametrize(
    ("show", "value", "shown"),
    [
        ("count", 999, "999"),
        ("count", 1000, "1.00 k"),
        ("size", 1e9, "1.00 GB"),
        ("duration", 60, "1.00 min"),
        ("duration", 1, "1.00 s"),
        ("duration", 0.0999, "99.9 ms"),
        ("duration", 2e-9, "0.00 µs"),
    ],
)
def test_a_unit_begins_with_one_of_it(show, value, shown):
    assert getattr(quantities, show)(value) == shown.replace(" ", "\u00a0")
