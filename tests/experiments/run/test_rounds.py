"""Rounds of pruning: which of them count."""

from types import SimpleNamespace

import pytest

from branchprune.experiments.run.pipeline import Pruning
from branchprune.experiments.run.rounds import RoundsConfig
from branchprune.experiments.run.settings import MetricConfig


class Rounds(Pruning):
    """Makes models of names, with scores that are given."""

    def __init__(self, mode, scores):
        self.config = SimpleNamespace(metric=MetricConfig(mode=mode), fast=False)
        self.scores = iter(scores)

    def _plan_round(self, rounds, number, dense, wide):
        return (number, wide)

    def _round(self, number, dense, wide, planned, stages):
        assert planned == (number, wide)
        found = {"val": next(self.scores), "widths": {"a": 10 - number}}
        return f"small {number}", found | {"collapse_error": number, "own_error": 2 * number}

    def _overall(self, dense, widths):
        return widths


@pytest.mark.parametrize(
    ("mode", "dense", "scores"),
    [
        ("max", 0.9, [0.95, 0.81, 0.79]),
        ("min", 0.5, [0.3, 0.59, 0.61]),
    ],
)
def test_a_round_that_loses_too_much_ends_them_and_does_not_count(mode, dense, scores):
    config = RoundsConfig(max_drop=0.1, count=5)
    pruned = Rounds(mode, scores)._prune_in_rounds(config, None, "wide", None, dense)
    assert [(each["val"], each["kept"]) for each in pruned.rounds] == [
        *((score, True) for score in scores[:2]),
        (scores[2], False),
    ]
    assert (pruned.small, pruned.plan) == ("small 2", {"a": 8})


def test_without_a_limit_all_rounds_count():
    config = RoundsConfig(max_drop=None, count=2)
    pruned = Rounds("max", [0.5, 0.1])._prune_in_rounds(config, None, "wide", None, 0.9)
    assert (pruned.small, pruned.collapse_error, pruned.own_dtype_error) == ("small 2", 2, 4)
