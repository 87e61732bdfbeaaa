"""Rounds of pruning: which of them count."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from branchprune.experiments.run.pipeline import Pruning
from branchprune.experiments.run.rounds import RoundsConfig
from branchprune.experiments.run.settings import MetricConfig
from branchprune.experiments.run.shrinking import at_widths
from branchprune.experiments.run.widths import WidthsConfig


class Told(list):
    """Stages that do nothing; what they were told to say."""

    say = list.append


class Rounds(Pruning):
    """Makes models of names, with scores that are given."""

    def __init__(self, mode, scores):
        self.config = SimpleNamespace(metric=MetricConfig(mode=mode), fast=False)
        self.scores = iter(scores)

    def _plan_round(self, rounds, number, dense, wide):
        return (number, wide)

    def _round(self, number, dense, wide, planned, stages):
        assert planned == (number, wide)
        found = {"val": next(self.scores), "widths": {"a": 10 - number}, "macs": 9000}
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
    pruned = Rounds(mode, scores)._prune_in_rounds(config, None, "wide", told := Told(), dense)
    assert [(each["val"], each["kept"]) for each in pruned.rounds] == [
        *((score, True) for score in scores[:2]),
        (scores[2], False),
    ]
    assert (pruned.small, pruned.plan) == ("small 2", {"a": 8})
    assert told[:2] == [f"round {i + 1}: 9,000 MACs left, {scores[i]:.4g}" for i in range(2)]
    assert told[2].endswith("it lost more than max_drop (=0.1), taken back")


def test_without_a_limit_all_rounds_count():
    config = RoundsConfig(max_drop=None, count=2)
    pruned = Rounds("max", [0.5, 0.1])._prune_in_rounds(config, None, "wide", Told(), 0.9)
    assert (pruned.small, pruned.collapse_error, pruned.own_dtype_error) == ("small 2", 2, 4)


class Untrained(Pruning):
    """Cuts a chain of 8 channels in rounds, and trains nothing."""

    def __init__(self, keep, fast=False):
        widths = WidthsConfig(keep=keep)
        self.settings = SimpleNamespace(widths=widths)
        self.example = torch.randn(1, 3, 4, 4)
        prune = SimpleNamespace(widths=widths)
        self.config = SimpleNamespace(metric=MetricConfig(), fast=fast, prune=prune)

    def _round(self, number, dense, wide, planned, stages):
        narrow = {planned.groups[i].name: planned.groups[i].kept for i in planned.pruned}
        found = {"round": number, "val": 1.0, "widths": narrow, "macs": 1}
        return at_widths(wide, planned), found | {"collapse_error": 0.0, "own_error": 0.0}


@pytest.mark.parametrize(
    ("gradual", "keep", "numbers"),
    [
        (True, 0.5, [1, 3, 6, 9]),
        (True, 0.75, [3, 8]),  # 8, 8, 7, …: the first two leave all as it is
        ("cubic", 0.5, [1, 2, 3, 5]),
    ],
)
def test_rounds_too_small_for_a_channel_are_left_out(gradual, keep, numbers):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    rounds = RoundsConfig(max_drop=None, count=10, gradual=gradual)
    method = Untrained(keep)
    pruned = method._prune_in_rounds(rounds, net, net, Told(), 1.0)
    assert pruned.small[0].out_channels == 8 * keep
    assert [each["round"] for each in pruned.rounds] == numbers
    method.settings.rounds = rounds
    counted = method._plans(net, method.settings.widths.plan(net, method.example))
    widths = [each["widths"]["0"] for each in pruned.rounds]
    assert [each.groups[0].kept for each in counted] == widths
    dry = Untrained(keep, fast=True)._prune_in_rounds(rounds, net, net, Told(), 1.0)
    assert [each["round"] for each in dry.rounds] == numbers[:2]
