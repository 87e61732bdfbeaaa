"""The plots of a comparison: names and marks that would lie on each other."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from branchprune.reports import comparison_plots


def test_names_beside_a_plot_keep_apart_and_in_order():
    rng = np.random.default_rng(1)
    for n in (1, 2, 15):
        wanted = np.sort(rng.uniform(0, 1, n))
        placed = np.array(comparison_plots._spread([*wanted], 0.05))
        assert (np.diff(placed) > 0.05 - 1e-12).all()
        if (np.diff(wanted) > 0.05).all():
            assert placed == pytest.approx(wanted)
        assert np.abs(placed - wanted).max() <= 0.05 * n
        assert placed.max() <= 1
    crowded = np.array(comparison_plots._spread([0.95, 0.96, 0.97, 0.98], 0.05))
    assert crowded == pytest.approx([0.85, 0.9, 0.95, 1])


def test_marks_at_one_place_stand_side_by_side():
    axes = Figure().subplots()
    axes.set_xlim(0, 1)
    places = {("a", "x"): 0.5, ("b", "x"): 0.5, ("a", "y"): 0.2, ("b", "y"): 0.8}
    near = {"x": 0.20, "y": 0.22}
    shown = comparison_plots._side_by_side(axes, places, ["b", "a"], percent=True)
    assert shown["b", "x"] < 0.5 < shown["a", "x"]
    assert shown["b", "x"] + shown["a", "x"] == pytest.approx(1)
    assert (shown["a", "y"], shown["b", "y"]) == (0.2, 0.8)
    crowded = {(name, budget): place for name in "abcdefgh" for budget, place in near.items()}
    shown = comparison_plots._side_by_side(axes, crowded, "abcdefgh", percent=False)
    assert max(shown[n, "x"] for n in "abcdefgh") < min(shown[n, "y"] for n in "abcdefgh")
    assert sum(shown[n, "y"] for n in "abcdefgh") / 8 == pytest.approx(0.22)
    assert [text.get_text() for text in axes.texts] == ["all ≈ 0.20", "all ≈ 0.22"]
    assert len({text.get_position()[1] for text in axes.texts}) == 2
