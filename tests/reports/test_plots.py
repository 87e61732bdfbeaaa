"""What the charts of a run show, read from the lines that are drawn."""

import pytest
from matplotlib.figure import Figure

from branchprune.reports import plots

ROWS = [
    {"epoch": 0.0, "psnr": 20.0, "alpha/a": 1.0},
    {"epoch": 1.0, "alpha/a": 0.5},
    {"epoch": 2.0, "psnr": 25.0, "alpha/a": 0.0},
]


def test_values_stand_at_the_end_of_their_epoch_and_alpha_over_it():
    axes = Figure().subplots()
    curve = plots._curve(axes, ROWS, "psnr", "blended model", "blended", 1.6)
    assert [[*each] for each in curve.get_data()] == [[1, 3], [20, 25]]
    [alpha] = plots._alphas(axes, ROWS)
    assert [[*each] for each in alpha.get_data()] == [[0, 1, 2, 3], [1, 1, 0.5, 0]]
    assert alpha.get_drawstyle() == "steps-pre"


@pytest.mark.parametrize(
    ("mode", "values", "scale"),
    [
        ("min", [2.0, 101.0], "log"),
        ("min", [2.0, 100.0], "linear"),
        ("min", [0.0, 101.0], "linear"),
        ("max", [2.0, 101.0], "linear"),
    ],
)
def test_errors_that_fall_far_have_a_logarithmic_axis(mode, values, scale):
    axes = Figure().subplots()
    axes.plot([1, 2], values)
    plots._scale(axes, {"mode": mode, "format": "number"})
    assert axes.get_yscale() == scale
