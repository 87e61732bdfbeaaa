"""The plots of a comparison: names and marks that would lie on each other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from branchprune.experiments.compare.config import Budget, Comparison, Method
from branchprune.experiments.compare.results import Results
from branchprune.experiments.run.settings import MetricConfig
from branchprune.reports import comparison_plots
from branchprune.reports.comparison_by_method import by_method

RUNS = {("a", "few"): (0.5, 0.9), ("a", "many"): (0.7, 0.8), ("b", "few"): (0.6, 0.7)}
"""Score and MACs removed by method and budget."""


@pytest.fixture
def results():
    budgets = {name: Budget(name, epochs=1) for name in ("few", "many")}
    methods = {name: Method(name, (), (0,), (*budgets,)) for name in "ab"}
    comparison = Comparison("small", Path("c.yaml"), (0,), budgets, methods, MetricConfig())
    lines = [
        {"method": method, "preset": budget, "seed": 0, "final": score, "macs_removed": removed}
        | {"dense": 0.75, "train_macs": 1}
        for (method, budget), (score, removed) in RUNS.items()
    ]
    return Results(comparison, lines, {}, 0)


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


def test_by_method_has_a_row_a_method_in_order_of_rank_and_a_panel_a_budget(results):
    lines = [
        {**line, "seed": seed, "final": line["final"] + change, "train_macs": macs}
        for line in results.lines
        for seed, change, macs in ((0, -0.01, 2), (1, 0.01, 4))
    ]
    methods = {"c": Method("c", (), (0,), ("few",)), **results.comparison.methods}
    comparison = replace(results.comparison, methods=methods, reference="b")
    trained = {"record": {"train_macs": 10, "epochs": 1}}
    figure = by_method(replace(results, comparison=comparison, lines=lines, trained=trained))
    few, many = figure.axes
    assert [text.get_text() for text in few.get_yticklabels()] == ["a", "b"]
    assert few.yaxis_inverted()
    for axes, scores in ((few, {0: 0.5, 1: 0.6}), (many, {0: 0.7})):
        bars = [
            container for container in axes.containers if isinstance(container, ErrorbarContainer)
        ]
        [mark] = {line.get_marker() for line in (bar.lines[0] for bar in bars)}
        assert mark == "o"
        found = {bar.lines[0].get_ydata()[0]: bar.lines[0].get_xdata()[0] for bar in bars}
        assert found == {row: pytest.approx(mean) for row, mean in scores.items()}
        for bar in bars:
            [[start, end]] = bar.lines[2][0].get_segments()
            assert end[0] - start[0] == pytest.approx(2 * np.std([-0.01, 0.01], ddof=1))
    straight = {line.get_linestyle(): line.get_xdata()[0] for line in few.get_lines()}
    assert straight["--"] == pytest.approx(0.75) and straight[":"] == pytest.approx(0.6)
    assert {line.get_linestyle() for line in many.get_lines()} >= {"--"}
    assert ":" not in {line.get_linestyle() for line in many.get_lines()}
    assert few.get_title() == "few\n0.30× the dense training"


def test_all_marks_are_inside_the_axes_and_the_legend_has_budgets_with_runs_alone(results):
    budgets = {**results.comparison.budgets, "none": Budget("none", epochs=9)}
    methods = {name: Method(name, (), (0,), ("few",)) for name in "abcdefghijklmnopqrst"}
    comparison = replace(results.comparison, budgets=budgets, methods=methods)
    lines = [{**results.lines[0], "method": name} for name in methods]
    crowd = replace(results, comparison=comparison, lines=lines)
    figure = comparison_plots._figure(crowd, {(name, "few"): 0.0 for name in methods}, "x", False)
    [axes], [legend] = figure.axes, figure.legends
    low, high = axes.get_xlim()
    marks = [x for line in axes.get_lines() if line.get_marker() == "o" for x in line.get_xdata()]
    assert len(marks) == len(methods) and low < min(marks) and max(marks) < high
    assert [text.get_text() for text in legend.get_texts()] == ["few", "dense model"]


def test_macs_left_are_what_is_not_removed(results, tmp_path, monkeypatch):
    def figure(results, places, label, percent):
        drawn[label] = places
        return Figure((1, 1))

    drawn = {}
    monkeypatch.setattr(comparison_plots, "_figure", figure)
    names = ["metric_by_method.png", "metric_vs_macs.png"]
    assert comparison_plots.draw(results, tmp_path) == [tmp_path / name for name in names]
    left = {key: pytest.approx(1 - removed) for key, (_, removed) in RUNS.items()}
    assert drawn == {"MACs left": left}


def test_the_mark_of_the_last_budget_is_filled_and_has_the_name(results):
    places = {key: 1 - removed for key, (_, removed) in RUNS.items()}
    axes = comparison_plots._figure(results, places, "MACs left", percent=True).axes[0]
    marks = [line for line in axes.get_lines() if line.get_marker() in comparison_plots.MARKERS]
    filled = {line.get_ydata()[0]: line.get_markerfacecolor() != "white" for line in marks}
    assert filled == {0.5: False, 0.7: True, 0.6: False}
    named = {text.get_text(): text.xy for text in axes.texts}
    assert named["a"] == pytest.approx((0.2, 0.7)) and named["b"] == pytest.approx((0.3, 0.6))
