"""Processes of their own: what they get and what is taken of their errors."""

import pytest

from branchprune.benchmarks.child import one_line, run_child


def test_variables_of_a_process_take_the_place_of_ours(monkeypatch):
    monkeypatch.setenv("PLACE", "ours")
    monkeypatch.setenv("OTHER", "kept")
    code = "import os; print(os.environ['PLACE'], os.environ['OTHER'])"
    assert run_child(["-Ic", code], variables={"PLACE": "its own"}) == (["its own kept"], None)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("a\n  b", "a b"),
        ("/usr/lib/site-packages/torch/nn.py:3: no", "torch/nn.py:3: no"),
        ("in /home/me/code/net.py", "in net.py"),
        ("3/4 of https://torch.org/docs", "3/4 of https://torch.org/docs"),
    ],
)
def test_an_error_is_one_line_without_folders(error, line):
    assert one_line(error) == line
