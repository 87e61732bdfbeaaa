"""What stands below the table of a comparison."""

from branchprune.reports.comparison_table import conditions


def test_conditions_are_those_of_all_lines():
    lines = [
        {
            "hardware": "a CPU",
            "versions": {"torch": torch},
            "commit": commit,
            "collapse_error": error,
        }
        for torch, commit, error in (
            ("2.14", "abc", 1e-15),
            ("2.15", None, None),
            ("2.15", "d", 3e-15),
        )
    ]
    assert conditions(lines) == (
        "a CPU; torch 2.14 and 2.15; commit abc and d; "
        "largest relative error of a collapse 3.0e-15."
    )
