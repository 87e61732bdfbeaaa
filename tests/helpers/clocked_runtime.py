"""A runtime whose clock is moved by what a model's layers hold."""

import math

import pytest
from torch import nn

OVERHEAD = 1e-5
LAYERS = (nn.Conv2d, nn.Linear)


class Clocked:
    """A runtime in which a run takes 1 µs for each weight, in blocks, and 10 µs beside."""

    name, threads = "Clocked", 1

    def __init__(self, now, block=1, fused=1.0):
        self.now, self.block, self.fused = now, block, fused

    def version(self):
        return "1"

    def seconds(self, model):
        layers = [each for each in model.modules() if isinstance(each, LAYERS)]
        taken = sum(self.of_layer(each.weight) for each in layers)
        return OVERHEAD + taken * (self.fused if len(layers) > 1 else 1.0)

    def of_layer(self, weight):
        if not self.block:
            return 1e-6 * weight.numel()
        first, second = (math.ceil(size / self.block) * self.block for size in weight.shape[:2])
        return 1e-6 * first * second * weight[0, 0].numel()

    def prepared(self, model, example):
        seconds = self.seconds(model)

        def step():
            self.now[0] += seconds

        return step


def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time that runtimes are told, which they alone move on."""
    now = [0.0]
    monkeypatch.setattr("branchprune.runtimes.latency.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("branchprune.targets.measured_latency.SECONDS", 0.0)
    monkeypatch.setattr("branchprune.targets.selection.DRAWS", 1)
    return now
