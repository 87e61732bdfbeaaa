"""Widths for a latency, in a runtime whose clock is moved by what a model's layers hold."""

import json
import math
import re
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from clocked_runtime import OVERHEAD, Clocked, stopped_clock
from torch import nn

import branchprune as bp
from branchprune.planning.cost_model import Polynomial
from branchprune.planning.plan import plan as by_share
from branchprune.planning.traced import Traced
from branchprune.planning.width_solver import Limit
from branchprune.targets.choices import Choices
from branchprune.targets.correction import corrected
from branchprune.targets.layer_times import layer_calls, name_of
from branchprune.targets.measured_latency import MeasuredLatency

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def now(monkeypatch):
    return stopped_clock(monkeypatch)


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.ReLU()]
    layers += [nn.Conv2d(96, 48, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)]
    return nn.Sequential(*layers).eval()


def images():
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def traced(model):
    return Traced(model, by_share(model, X, 0.5).structure, X)


def choices(found):
    return Choices.of(found.structure, 0.1, {}, (), 8)


@pytest.mark.parametrize("kept", [(64, 96, 48), (8, 8, 8), (40, 24, 48), (16, 88, 8)])
def test_latency_of_layers_adds_up_at_all_widths(now, kept):
    model = network()
    runtime = Clocked(now)
    found = traced(model)
    cost = MeasuredLatency(runtime).cost(found, choices(found), 8)
    widths = torch.tensor([*kept, 10], dtype=torch.double)
    first, second, third = kept
    weights = 27 * first + 9 * first * second + 9 * second * third + 10 * third
    assert cost.total(widths) == pytest.approx(1000 * (OVERHEAD + 1e-6 * weights), rel=1e-3)
    each = [27 * first, 9 * first * second, 9 * second * third, 10 * third]
    assert cost.of_groups(widths).tolist() == pytest.approx([1e-3 * w for w in each], abs=2e-3)


def test_changes_of_one_group_are_differences_of_totals(now):
    found = traced(network())
    cost = MeasuredLatency(Clocked(now)).cost(found, choices(found), 8)
    kept = torch.tensor([40, 24, 48, 10], dtype=torch.double)
    widths = torch.tensor([[8, 40, 64], [8, 24, 96], [8, 16, 48], [10, 10, 10]]).double()
    changes = cost.changes(kept, widths, slice(None))
    for g, row in enumerate(widths):
        for place, width in enumerate(row):
            other = kept.clone()
            other[g] = width
            assert changes[g, place] == pytest.approx(
                cost.total(other) - cost.total(kept), abs=1e-12
            )
    assert torch.equal(cost.changes(kept, widths[1:2], slice(1, 2)), changes[1:2])


def test_weights_beyond_the_cache_change_with_a_group(now):
    found = traced(network())
    cost = MeasuredLatency(Clocked(now)).cost(found, choices(found), 8)
    kept = torch.tensor([40, 24, 48, 10], dtype=torch.double)
    held = cost.weights.total(kept)
    other = torch.tensor([64, 24, 48, 10], dtype=torch.double)
    for cached in (0.0, held, held + 100):
        some = replace(cost, cached=cached, factors=(0.0, 0.0, 2.0, 0.0))
        assert some.total(other) == 2 * (cost.weights.total(other) - cached)
        (change,) = some.changes(kept, other[:1, None], slice(0, 1)).flatten()
        assert change == pytest.approx(some.total(other) - some.total(kept))


def planned(now, target, **named):
    runtime = named.pop("runtime", Clocked(now))
    return bp.plan(network(), X, target=target, batches=[images()], runtime=runtime, **named)


@pytest.mark.parametrize("fused", [1.0, 0.6, 1.7])
def test_the_plan_takes_no_longer_than_asked_and_uses_what_it_may(now, fused):
    runtime = Clocked(now, fused=fused)
    dense = 1000 * runtime.seconds(network())
    for target in ({"latency": 0.5}, {"latency_ms": 0.5 * dense}):
        plan = planned(now, target, runtime=runtime)
        (reached,) = plan.reached
        assert 0.95 * 0.5 * dense <= reached.after <= 0.5 * dense
        assert reached.before == pytest.approx(dense)


def test_the_latency_of_a_plan_is_that_of_its_collapsed_model(now):
    runtime = Clocked(now)
    model = network()
    plan = bp.plan(model, X, target={"latency": 0.4}, batches=[images()], runtime=runtime)
    blended = bp.attach(model, plan)
    blended.alpha = 0.0
    seconds = runtime.seconds(bp.collapse(blended))
    assert plan.reached[0].after == pytest.approx(1000 * seconds)


def test_a_prediction_that_is_off_is_corrected(now):
    """Models of several layers are a tenth slower than their size says, if not all is wide."""

    class Surprising(Clocked):
        def seconds(self, model):
            narrow = any(getattr(each, "out_channels", 64) < 48 for each in model.modules())
            return super().seconds(model) * (1.3 if narrow and len([*model.modules()]) > 1 else 1.0)

    runtime = Surprising(now)
    dense = 1000 * runtime.seconds(network())
    (reached,) = planned(now, {"latency": 0.4}, runtime=runtime).reached
    assert 0.9 * 0.4 * dense <= reached.after <= 0.4 * dense


def test_what_one_share_of_all_takes_is_measured_too(now, monkeypatch):
    timed, measured_ms = [], MeasuredLatency.measured_ms

    def noted(self, found, kept):
        timed.append((kept, measured_ms(self, found, kept)))
        return timed[-1][1]

    monkeypatch.setattr(MeasuredLatency, "measured_ms", noted)
    (reached,) = planned(now, {"latency": 0.4}).reached
    kept, ms = timed[-1]
    shares = kept / torch.tensor([64, 96, 48, 10])
    assert shares[3] == 1 and shares[:3].max() - shares[:3].min() < 1 / 48
    assert reached.uniform == ms != reached.after


def test_both_limits_hold(now):
    plan = planned(now, {"latency": 0.6, "params": 0.3})
    lines = str(plan).splitlines()
    start = lines[0].index("ms")
    for line, group, (before, after) in zip(lines[2:], plan.groups, plan.ms, strict=False):
        assert line.startswith(group.name) and line[start:].startswith(
            f"{before:.3g} → {after:.3g}"
        )
        assert after <= before
    assert all(each.after <= each.most for each in plan.reached)


@pytest.mark.parametrize("block", [1, 4, 8, 16])
def test_auto_is_the_multiple_in_which_the_runtime_computes(now, block):
    runtime = Clocked(now, block=block)
    plan = planned(now, {"latency": 0.5}, runtime=runtime, multiple_of="auto")
    assert all(group.kept % block == 0 for group in plan.groups if group.pruned)
    assert f"multiples of {block}, as pays in Clocked" in "\n".join(plan.notes)


def test_times_of_layers_are_kept_and_read(now, tmp_path):
    file = tmp_path / "times.json"
    first = planned(now, {"latency": 0.5}, latency_table=file)
    kept = json.loads(file.read_text())
    assert (kept["runtime"], kept["threads"], len(kept["layers"])) == ("Clocked", 1, 4)

    class Whole(Clocked):
        """Times no layer alone."""

        def prepared(self, model, example):
            assert isinstance(model, nn.Sequential) or model.weight.numel() == 1
            return super().prepared(model, example)

    second = planned(now, {"latency": 0.5}, runtime=Whole(now), latency_table=file)
    assert [g.kept for g in first.groups] == [g.kept for g in second.groups]


def test_a_table_of_another_runtime_is_refused(now, tmp_path):
    file = tmp_path / "times.json"
    planned(now, {"latency": 0.5}, latency_table=file)
    runtime = Clocked(now)
    runtime.threads = 2
    with pytest.raises(bp.PruneError, match="is of threads 1, and this is 2"):
        planned(now, {"latency": 0.5}, runtime=runtime, latency_table=file)
    file.write_text("{")
    with pytest.raises(bp.PruneError, match="cannot be read"):
        planned(now, {"latency": 0.5}, latency_table=file)


def test_times_that_vary_are_told_where_they_choose_the_multiple(now):
    class Shared(Clocked):
        def prepared(self, model, example):
            seconds, turns = self.seconds(model), cycle([1.0, 1.5])

            def step():
                now[0] += seconds * next(turns)

            return step

    given = {"target": {"macs": 0.5}, "multiple_of": "auto", "batches": [images()]}
    plan = bp.plan(network(), X, runtime=Shared(now, block=8), **given)
    assert "times of layers vary by more than 10%" in str(plan)
    assert "vary" not in str(bp.plan(network(), X, runtime=Clocked(now, block=8), **given))


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": ["a", "b"]},
        {"inputs": []},
        {"inputs": [64, 8]},
        {"seconds": [[1.0]]},
        {"seconds": [[math.nan]]},
        {"spread": "x"},
    ],
)
def test_what_a_table_holds_is_checked(now, tmp_path, change):
    file = tmp_path / "times.json"
    planned(now, {"latency": 0.5}, latency_table=file)
    kept = json.loads(file.read_text())
    name = next(name for name in kept["layers"] if "Conv2d(64, 96" in name)
    kept["layers"][name] |= change
    file.write_text(json.dumps(kept))
    with pytest.raises(bp.PruneError, match="cannot be read"):
        planned(now, {"latency": 0.5}, latency_table=file)


def test_layers_alike_have_times_of_their_own_where_other_widths_change():
    torch.manual_seed(0)
    first, second, other = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), other).eval()
    x = torch.randn(1, 8, 6, 6)
    calls = layer_calls(model, by_share(model, x, 0.5).structure, x)
    assert len({name_of(model.get_submodule(each.layer), each) for each in calls}) == 2
    wide, double = name_of(second, calls[1]), name_of(second.double(), calls[1])
    assert wide != double


class Recurrent(nn.Module):
    """Nothing but layers whose times are not in the table, one of them called by keyword."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LSTM(6, 16, batch_first=True), nn.GRU(16, 8, batch_first=True)

    def forward(self, x):
        return self.second(self.first(x)[0])[0].sum(-1)


def test_layers_that_are_not_timed_count_by_what_they_weigh(now):
    class Recurrents(Clocked):
        def seconds(self, model):
            return 1e-6 * sum(each.numel() for each in model.parameters())

    torch.manual_seed(0)
    model, x = Recurrent().eval(), torch.randn(16, 5, 6)
    runtime = Recurrents(now)
    plan = bp.plan(model, x[:1], target={"latency": 0.5}, batches=[x], runtime=runtime)
    assert 0.8 < plan.reached[0].after / plan.reached[0].most <= 1


def test_the_dense_widths_are_no_answer_though_they_were_fast_for_once():
    cost = Polynomial(
        0.0, torch.ones(1).double(), torch.zeros(1, 1).double(), torch.zeros(1).double()
    )
    widest = torch.tensor([10.0], dtype=torch.double)

    def way(limits):
        return torch.tensor([min(10.0, limits[0].most // 1)], dtype=torch.double)

    times = iter([6.0, 8.9, 8.9, 8.9])
    found = corrected(way, [], Limit(cost, 9.0), widest / 10, widest, lambda kept: next(times))
    assert found.kept < 10


def test_neither_generators_nor_images_nor_model_change(now):
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls.add_(1)
            return self.inner(x.sub_(0.5) + 0 * torch.rand(1))

    model, x = Moving().eval(), images()
    before, state = x.clone(), torch.get_rng_state()
    runtime = bp.PyTorch(threads=1)
    bp.plan(model, x[:1], target={"latency": 0.9}, batches=[x], runtime=Within(runtime, now))
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
    assert model.calls == 0 and not model.training


class Within(Clocked):
    """Takes the time of the clock, and runs each model in PyTorch, too."""

    def __init__(self, runtime, now):
        super().__init__(now)
        self.runtime = runtime

    def prepared(self, model, example):
        run, passes = self.runtime.prepared(model, example), super().prepared(model, example)
        return lambda: (run(), passes())


def test_several_targets_share_what_is_measured(now):
    plans = bp.plans(
        network(),
        X,
        [{"latency": 0.7}, {"latency": 0.4}],
        batches=[images()],
        runtime=Clocked(now),
    )
    first, second = (plan.reached[0] for plan in plans)
    assert first.after > second.after and second.after <= second.most


@pytest.mark.parametrize(
    ("target", "named", "words"),
    [
        ({"latency_ms": 5}, {"runtime": None}, "latency_ms is measured in a runtime: give one"),
        ({"latency": 5}, {}, "latency (=5) must be the share that is kept, in (0, 1)"),
        ({"latency_ms": -1}, {}, "latency_ms (=-1) must be a number of milliseconds"),
        ({"latency_ms": 5, "latency": 0.5}, {}, "names the latency twice"),
        ({"macs": 0.5}, {}, "runtime (=Clocked) belongs to a target of latency"),
        ({"macs": 0.5}, {"runtime": None, "multiple_of": "auto"}, "multiple_of='auto' is measured"),
        (
            {"latency": 0.5},
            {"runtime": "pytorch"},
            "runtime (='pytorch') must be such as bp.PyTorch",
        ),
        ({"latency": 0.5}, {"runtime": bp.PyTorch}, "must be such as bp.PyTorch(threads=1)"),
        ({"latency": 0.5}, {"latency_table": 3}, "latency_table (=3) must be the path of a file"),
        ({"latency": 0.5}, {"latency_table": "no/such/a.json"}, "there is no folder no/such"),
        ({"latency": 0.5}, {"multiple_of": "8"}, "multiple_of (='8') must be a whole number"),
        ({"latency": 0.0001}, {}, "the fastest that was tried takes"),
        ({"latency": 0.5}, {"floor": 1.0}, "at floor=1, multiple_of=1 the fastest"),
        ({"latency_ms": 5000}, {}, "is within the target already: latency_ms (=5000): it has"),
    ],
)
def test_what_cannot_be_asked_for_is_told(now, target, named, words):
    with pytest.raises(bp.PruneError, match=re.escape(words)):
        planned(now, target, **named)


@pytest.mark.filterwarnings("ignore:images")
def test_compress_plans_for_the_latency_of_one_image(now):
    runtime = Clocked(now)
    found = bp.compress(
        network(), images(), target={"latency": 0.5}, runtime=runtime, steps=0, multiple_of="auto"
    )
    [reached] = found.plan.reached
    assert len(found.plan.whole) == 1
    assert reached.after == pytest.approx(1000 * runtime.seconds(found.model))
    assert reached.after <= reached.most and str(reached) in str(found)


@pytest.mark.parametrize("named", [{"target": {"latency_ms": 5}}, {"multiple_of": "auto"}])
def test_compress_needs_a_runtime_before_it_looks_at_images(named):
    with pytest.raises(bp.PruneError, match="is measured in a runtime"):
        bp.compress(network(), None, **named)


def test_a_runtime_needs_a_target(now):
    with pytest.raises(bp.PruneError, match="belongs to a target"):
        bp.plan(network(), X, 0.5, runtime=Clocked(now), multiple_of="auto")
