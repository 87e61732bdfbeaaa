"""The table and the plots of a search, of trials made by hand."""

from dataclasses import replace

import pytest

from branchprune.experiments.run.settings import MetricConfig
from branchprune.experiments.search.results import Searched, Trial
from branchprune.reports import search

SETTINGS = {"keep": 0.5}
TRIALS = [
    Trial(0, "done", SETTINGS, 4, 100, 0.70, 0.40, 0.3),
    Trial(1, "too large", SETTINGS, 4, 100, 0.95, 0.90, 0.8),
    Trial(2, "stopped", SETTINGS, 2, 50),
    Trial(3, "done", SETTINGS, 4, 100, 0.80, 0.45, 0.4),
    Trial(4, "done", SETTINGS, 4, 100, 0.60, 0.45, 0.4),
    Trial(5, "failed", SETTINGS, 0, 0),
]
DENSE = {"record": {"train_macs": 1000}}


def searched(mode="max", form="number", **changes):
    metric = MetricConfig(label="score", mode=mode, format=form)
    found = Searched("s", metric, 7, 0.5, TRIALS, DENSE, 0.5, "branchprune run it")
    return replace(found, **changes)


@pytest.mark.parametrize(
    ("mode", "best", "order", "front"),
    [("max", 3, [3, 0, 4, 1, 2, 5], [0, 3, 1]), ("min", 4, [4, 0, 3, 1, 2, 5], [0, 4])],
)
def test_the_order_the_best_and_the_front(mode, best, order, front):
    found = searched(mode)
    assert found.best.number == best
    assert [trial.number for trial in found.ranked()] == order
    assert [trial.number for trial in found.front()] == front


def test_the_costs_are_sums():
    text = search.markdown(searched())
    assert "6 of 7 trials: 3 done, 1 too large, 1 stopped, 1 failed." in text
    assert "took 450 (0.45×) multiply-adds of training, of which 50 (0.05×)" in text
    assert "| 002 | 0.5 | stopped after 2 epochs | – | – | 50 (0.05×) |" in text
    assert "trial 003, validation 0.8, test 0.5." in text and "branchprune run it" in text
    assert "| 003 | 0.5 | **80.00** | 45.0 | 40.0 | 100 |" in search.markdown(
        searched(form="percent", dense={"record": None})
    )


def test_nothing_has_ended(tmp_path):
    text = search.write_search(searched(trials=[], command=None), tmp_path)
    assert "0 of 7 trials: none." in text and "No trial has ended" in text
    assert [path.name for path in tmp_path.iterdir()] == ["search.md"]


@pytest.mark.parametrize(("mode", "front"), [("max", [0.7, 0.8, 0.95]), ("min", [0.7, 0.6])])
def test_the_plot_shows_every_trial_that_has_ended_and_the_front(mode, front, tmp_path):
    lines = search.figure(searched(mode)).axes[0].get_lines()
    [edge] = [line for line in lines if line.get_label() == "Pareto front"]
    assert list(edge.get_ydata()) == front
    dots = [line for line in lines if line.get_marker() == "o"]
    assert sorted(x for line in dots for x in line.get_xdata()) == [0.4, 0.45, 0.45, 0.9]
    search.write_search(searched(mode), tmp_path)
    assert (tmp_path / "search.png").stat().st_size > 1000
