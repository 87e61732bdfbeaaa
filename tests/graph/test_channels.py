"""Channel groups: what is left of both when two become one."""

from __future__ import annotations

import torch
from models import Net
from torch import Tensor, nn

import branchprune as bp
from branchprune.graph.channels import STRATA, Channels, Layout, Segment, cut


def test_the_width_of_tied_grouped_layers_is_divisible_by_both() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        y: Tensor = m.c((m.a(x) + m.b(x)).relu())
        return y

    layers = {"a": nn.Conv2d(6, 24, 1, groups=2), "b": nn.Conv2d(6, 24, 1, groups=3)}
    model = Net(run, **layers, c=nn.Conv2d(24, 2, 1))
    plan = bp.plan(model, torch.randn(2, 6, 4, 4), keep=0.4)
    assert plan.groups[0].layers == ("a", "b")
    assert plan.groups[0].kept == 12  # of 9.6, the nearest multiple of 6


def test_runs_of_grouped_channels_stay_grouped() -> None:
    """A pixel shuffle makes 6 channels of 24, which 3 groups of a convolution have made."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 24, 1, groups=3), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(6, 2, 3)),
    )
    x = torch.randn(2, 3, 4, 4)
    plan = bp.plan(model, x, keep=0.3)
    assert [(g.width, g.kept) for g in plan.groups if g.pruned] == [(6, 3)]
    blended = bp.attach(model, plan)
    blended.alpha = 0
    small = bp.collapse(blended)
    assert small[0].out_channels == 12 and small[3].in_channels == 3


def test_a_cut_that_falls_into_a_channel_keeps_the_width() -> None:
    """Of 3 channels of 4 numbers each, a half is one and a half."""

    def run(m: Net, x: Tensor) -> Tensor:
        first, second = m.b(m.a(x).relu()).relu().flatten(1).chunk(2, 1)
        y: Tensor = m.c(first + second)
        return y

    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 3, 3)}
    plan = bp.plan(Net(run, **layers, c=nn.Linear(6, 2)), torch.randn(2, 3, 4, 4))
    reasons = {group.name: group.reason for group in plan.groups}
    assert reasons["a"] is None
    assert "splits the channels where they cannot be split" in str(reasons["b"])


def test_channels_whose_runs_do_not_go_into_each_other_stay() -> None:
    """3 channels of 2 numbers each meet 2 channels of 3 numbers each."""

    def run(m: Net, x: Tensor) -> Tensor:
        y = m.a(x)
        z: Tensor = m.d(m.b(y).flatten(1) + m.c(y).flatten(1))
        return z

    layers: dict[str, nn.Module] = {"a": nn.Conv2d(3, 8, 1)}
    layers |= {"b": nn.Conv2d(8, 3, (4, 3)), "c": nn.Conv2d(8, 2, (4, 2)), "d": nn.Linear(6, 2)}
    plan = bp.plan(Net(run, **layers), torch.randn(2, 3, 4, 4))
    reasons = {group.name: str(group.reason) for group in plan.groups}
    for name in ("b", "c"):
        assert reasons[name].startswith("channels of different structure meet in `add`")


def test_parts_of_shuffled_blocks_are_chosen_from_all_quarters() -> None:
    layout = Layout(1, (Segment(Channels(16, blocks=2)),)).interleaved(2)
    parts = cut(layout.segments, 8)
    assert parts is not None
    assert [s.channels.strata for part in parts for s in part] == [STRATA, STRATA]
