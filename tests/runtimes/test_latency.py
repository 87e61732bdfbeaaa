"""How long models take, on a clock that is moved by hand."""

import pytest
import torch
from torch import nn

from branchprune.benchmarks.bench import ratios
from branchprune.runtimes.latency import (
    compare_latency,
    compare_steps,
    in_turns,
    measure_latency,
    step_latency,
)

CPU = torch.device("cpu")
X = torch.zeros(7, 4)


@pytest.fixture
def clock(monkeypatch):
    """The time, as the only item of a list."""
    now = [0.0]
    monkeypatch.setattr("branchprune.runtimes.latency.time.perf_counter", lambda: now[0])
    return now


class Slow(nn.Module):
    """A pass takes some seconds, one after the other, of which the last stays."""

    def __init__(self, clock, *seconds, log=None):
        super().__init__()
        self.clock, self.left, self.log, self.passes = clock, [*seconds], log, 0

    def forward(self, x):
        self.passes += 1
        if self.log is not None:
            self.log.append(self)
        self.clock[0] += self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return x


def test_a_slow_model_is_timed_five_times(clock):
    model = Slow(clock, 60.0, 4.0, 4.0, 6.0, 5.0, 8.0, 7.0)  # warm-up, size of a block, five
    latency = measure_latency(model, X, seconds=1.0)
    assert model.passes == 7
    assert (latency.median_s, latency.iqr_s, latency.count) == (6.0, 2.0, 5)
    assert (latency.batch_size, latency.device) == (7, "cpu")


def test_a_fast_model_is_timed_in_blocks_for_as_long_as_it_is_asked(clock):
    latency = measure_latency(Slow(clock, 0.003), X, seconds=1.0)
    assert latency.median_s == pytest.approx(0.003) and latency.iqr_s == pytest.approx(0)
    assert latency.count == pytest.approx(1.0 / (4 * 0.003), abs=1)  # 10 ms are four passes


def test_a_single_pass_has_no_spread(clock):
    model = Slow(clock, 9.0, 2.0)
    latency = measure_latency(model, X, seconds=0)
    assert (latency.median_s, latency.iqr_s, latency.count, model.passes) == (2.0, None, 1, 2)


def test_two_models_take_turns(clock):
    log = []
    dense, small = Slow(clock, 2.0, log=log), Slow(clock, 1.0, log=log)
    *latencies, speed_up = compare_latency(dense, small, X, seconds=0.5)
    assert [latency.median_s for latency in latencies] == [2.0, 1.0]
    assert [latency.count for latency in latencies] == [5, 5]
    assert log[4:] == [dense, small, small, dense, dense, small, small, dense, dense, small]
    assert (speed_up.low, speed_up.median, speed_up.high) == (2.0, 2.0, 2.0)


def test_a_machine_that_slows_down_makes_no_model_faster(clock):
    """Timed one after the other, the second one would seem half as fast as the first."""
    dense, small = (Slow(clock, *[1.0] * 2, 1.0, 1.1, 2.0, 2.1, 4.0) for _ in range(2))
    *_, speed_up = compare_latency(dense, small, X, seconds=0.5)
    assert (speed_up.low, speed_up.median, speed_up.high) == (1.0, 1.0, 1.0)


def test_quartiles_are_of_pairs(clock):
    dense = Slow(clock, 9.0, 9.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    *_, speed_up = compare_latency(dense, Slow(clock, 2.0), X, seconds=0.5)
    assert (speed_up.low, speed_up.median, speed_up.high) == (1.5, 2.0, 2.5)


def test_a_single_pass_of_each_tells_no_speed_up(clock):
    dense, small, speed_up = compare_latency(Slow(clock, 2.0), Slow(clock, 1.0), X, seconds=0)
    assert (dense.count, dense.iqr_s, small.count, speed_up) == (1, None, 1, None)


def test_models_are_timed_in_evaluation_mode_and_go_back():
    modes = []
    models = [nn.Linear(4, 4).train(), nn.Linear(4, 4).eval()]
    for model in models:
        model.register_forward_hook(lambda model, *_: modes.append(model.training))
    compare_latency(*models, X, seconds=0)
    assert modes and not any(modes)
    assert [model.training for model in models] == [True, False]


def test_turns_go_on_as_long_as_they_are_asked_to(clock):
    def step():
        clock[0] += 1.0

    assert in_turns([step], CPU, 2) == [[1.0]] * 2
    assert in_turns([step], CPU, 2, seconds=4.5) == [[1.0]] * 5


def test_ratios_divide(clock):
    def wait(seconds):
        clock[0] += seconds

    found = ratios(lambda: wait(3.0), lambda: wait(1.0), 4, CPU)
    assert found == [3.0] * 4


def test_steps_of_any_runtime_take_turns_too(clock):
    def dense():
        log.append("dense")
        clock[0] += 3.0

    def small():
        log.append("small")
        clock[0] += 2.0

    log = []
    before, after, faster = compare_steps(dense, small, 8, seconds=0.5)
    assert (before.median_s, after.median_s, faster.median) == (3.0, 2.0, 1.5)
    assert (before.batch_size, after.count, before.device) == (8, 5, "cpu")
    assert log[4:8] == ["dense", "small", "small", "dense"]
    *_, faster = compare_steps(dense, small, 8, seconds=0)
    assert faster is None and log[14:] == ["dense", "small"] * 2


def test_a_step_is_timed_like_a_model(clock):
    def step():
        clock[0] += 2.0

    found = step_latency(step, 3, seconds=0.5)
    assert (found.median_s, found.iqr_s, found.batch_size, found.count) == (2.0, 0.0, 3, 5)
