"""`branchprune bench`: ratios of times that are given, and what they are compared with."""

import io
import re

import pytest
import torch
from rich.console import Console

from branchprune.benchmarks import bench
from branchprune.models import VGG
from branchprune.runtimes import latency

CPU = torch.device("cpu")


def test_two_functions_take_turns_behind_a_warm_up(monkeypatch):
    def seconds(function, device):
        timed.append(function())
        return {"slow": 4.0, "fast": 2.0}[timed[-1]]

    def slow():
        called.append("slow")
        return "slow"

    def fast():
        called.append("fast")
        return "fast"

    called, timed = [], []
    monkeypatch.setattr(latency, "_seconds", seconds)
    assert bench.ratios(slow, fast, 3, CPU) == [2.0] * 3
    assert called[:2] == ["slow", "fast"] and timed == called[2:]
    assert timed == ["slow", "fast", "fast", "slow", "slow", "fast"]


def test_times_are_compared_with_what_multiply_adds_predict(monkeypatch):
    row = bench.Row("", 1.0, 1.0, 1.0, "")
    monkeypatch.setattr(bench, "VGG", lambda: VGG([[16, 16], [16]]))
    monkeypatch.setattr(bench, "ratios", lambda *_: [2.0, 3.0, 4.0])
    for name in ("_collapsed_row", "_speedup_row"):
        monkeypatch.setattr(bench, name, lambda *_: row)
    monkeypatch.setattr(bench, "_pipeline_seconds", lambda *_: 1.0)
    options = bench.Options(batch_size=2, image_size=8)
    half, half_of, zero, zero_of, zero_left, *_ = bench.measure(
        options, Console(file=io.StringIO())
    )
    for found in (half, zero):
        assert (found.value, found.low, found.high) == (3.0, 2.5, 3.5)
    for found in (half_of, zero_of, zero_left):
        [work] = re.findall(r"\(([\d.]+)x", found.what)
        assert found.value == pytest.approx(3 / float(work), rel=0.02)
        assert found.low < found.value < found.high
    assert "α = 0.5 " in half.what and "α = 0 " in zero.what
