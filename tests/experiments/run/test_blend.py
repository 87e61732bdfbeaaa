"""Blending as a stage of a run: what it watches, a dry run, and what it reads back."""

from types import SimpleNamespace

import pytest
import torch
from small_training import TinyVGG

import branchprune as bp
from branchprune.experiments.run.blend import BlendConfig
from branchprune.experiments.run.criterion import CriterionConfig
from branchprune.experiments.run.settings import MetricConfig
from branchprune.experiments.run.shrinking import Setup, at_widths
from branchprune.experiments.run.widths import WidthsConfig
from branchprune.planning.profiling import count_macs

EXAMPLE = torch.randn(1, 1, 8, 8)
LOSS = MetricConfig(val="loss/val", mode="min")


def setup(**settings):
    settings = SimpleNamespace(**{"metric": LOSS, "fast": False, "compile": False} | settings)
    return Setup(settings, WidthsConfig(), CriterionConfig(), EXAMPLE)


@pytest.mark.parametrize("monitor", [None, "loss/val", "loss/val_branch"])
def test_the_metric_of_the_run_and_of_its_branch_have_the_direction_of_the_run(monitor):
    config = BlendConfig(monitor=monitor, hold=bp.Plateau(max_epochs=3))
    assert config.direction(LOSS) == "min"


def test_a_dry_run_keeps_the_order_and_takes_the_last_levels_and_one_restart():
    order = ["features.3", "features.0", "features.7"]
    levels = [0.75, 0.5, 0.25, 0.0]
    config = BlendConfig(levels, 4, 5, order, restarts=[0.1, 0.01])
    schedule = config._callback(setup(fast=True)).schedule
    assert (schedule.levels, schedule.hold, schedule.final_hold) == ((0.25, 0.0), 1, 1)
    assert (schedule.order, schedule.restarts) == ((*order,), (0.1,))


def test_private_norms_reach_the_training_and_what_it_costs():
    dense = TinyVGG()
    planned, macs = bp.plan(dense, EXAMPLE, 0.5), {}
    for norms in ("batch", "kept", "private"):
        config = BlendConfig([0.5, 0.0], norms=norms, frozen=["*.features.1.weight"])
        callback = config._callback(setup())
        assert callback.training["norms"] == norms and callback.originals.frozen == (
            "*.features.1.weight",
        )
        epochs = config.epochs_to_train(LOSS, dense, planned)
        macs[norms] = [count_macs(epoch.model(), EXAMPLE) for epoch in epochs]
    assert macs["batch"] == macs["kept"]
    assert macs["private"][0] > 1.3 * macs["batch"][0]
    assert macs["private"][1] == macs["batch"][1]


def test_a_stage_that_has_ended_is_read_back(tmp_path):
    model = TinyVGG()
    planned = bp.plan(model, EXAMPLE, 0.5)
    (tmp_path / "prune").mkdir()
    bp.save(small := at_widths(model, planned), tmp_path / "prune" / "small.safetensors")
    found = {"errors": [1e-15, 1e-7], "scores": {"blended_at_zero": 0.5}}
    stages = SimpleNamespace(finished={"prune": found}.get)
    other = TinyVGG()
    pruned = BlendConfig().narrow(setup(output=tmp_path), "prune", other, other, planned, stages)
    assert (pruned.collapse_error, pruned.own_dtype_error) == (1e-15, 1e-7)
    assert pruned.scores == {"blended_at_zero": 0.5}
    state = pruned.small.state_dict()
    assert all(torch.equal(state[name], value) for name, value in small.state_dict().items())
