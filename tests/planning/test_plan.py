"""Plan: which groups shrink, what stays and why, what it will cost; and bad arguments."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from frozen_networks import (
    FROZEN,
    conv,
    pair,
)
from models import Gate, Net, Residual, counted_macs, resnet, vgg
from torch import Tensor, nn

import branchprune as bp

IMAGE = (2, 3, 8, 8)


def reason_of(plan: bp.Plan, name: str) -> str | None:
    return next(group.reason for group in plan.groups if group.name == name)


def test_table() -> None:
    table = str(bp.plan(vgg(), torch.randn(IMAGE), keep=0.5))
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["group", "layers", "width", "MACs", "stays", "because"]
    assert lines[2][:4] == ["0", "8", "→", "4"]
    assert lines[3][:4] == ["4", "12", "→", "6"]
    assert lines[6][:2] == ["16", "5"] and lines[6][3:] == "it is an output of the model".split()
    assert lines[7] == ["channels:", "61", "→", "33", "(-45.9%)"]
    resnet_table = str(bp.plan(resnet(), torch.randn(IMAGE)))
    assert resnet_table.splitlines()[2].split()[:4] == ["0", "+", "3.conv2,", "4.conv2"]


def test_table_of_many_layers() -> None:
    model = nn.Sequential(conv(3, 8), *(Residual(8, 8) for _ in range(5)), conv(8, 2))
    assert "0        + 1.conv2, 2.conv2, 3.conv2 … 2 more  8 → 4" in str(
        bp.plan(model, torch.randn(IMAGE))
    )


def test_table_of_a_model_that_does_nothing_in_evaluation() -> None:
    model = Net(lambda m, x: m.b(m.a(x)) if m.training else x, a=conv(3, 8), b=conv(8, 2))
    plan = bp.plan(model, torch.randn(IMAGE))
    assert "macs: 0 → 0" in str(plan).splitlines()
    assert [group.macs_share for group in plan.groups] == [0, 0]


def test_json() -> None:
    plan = bp.plan(vgg(), torch.randn(IMAGE), exclude=["4"])
    read = json.loads(json.dumps(plan.as_dict()))
    assert [row["name"] for row in read["groups"]] == ["0", "4", "8", "13", "16"]
    assert read["groups"][1]["reason"] == "4 is excluded"
    assert read["groups"][2] | {"macs_share": 0} == {
        "name": "8",
        "layers": ["8"],
        "width": 16,
        "kept": 8,
        "wanted": 8,
        "macs_share": 0,
        "reason": None,
        "times": 1,
        "place": "",
        "remedy": "",
    }
    assert read["before"]["params"] == sum(p.numel() for p in vgg().parameters())


def depthwise() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8), conv(8, 16, 3, groups=8, padding=1)),
        *(Gate(16), conv(16, 12, 3, groups=2), nn.GroupNorm(3, 12), nn.PReLU()),
        *(nn.ConvTranspose2d(12, 8, 3, 2, groups=2), nn.LayerNorm([8, 9, 9]), conv(8, 3)),
    )


def sequences() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 12), nn.RMSNorm(12)),
        nn.Linear(12, 5),
    )


def twice() -> nn.Module:
    """A head that is called on two scales."""
    return Net(
        lambda m, x: (m.head(m.a(x).relu()), m.head(F.max_pool2d(m.a2(x), 2))),
        a=conv(3, 8, 3),
        a2=conv(3, 8, 3),
        head=conv(8, 4, 3),
    )


class Auxiliary(nn.Module):
    """A second head that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8, 3), conv(8, 12), conv(12, 4)
        self.aux = conv(8, 4, 3)

    def forward(self, x: Tensor) -> object:
        x = self.a(x).relu()
        y = self.c(self.b(x).relu())
        return (y, self.aux(x)) if self.training else y


COSTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vgg": (vgg, IMAGE),
    "resnet": (resnet, IMAGE),
    "depthwise": (depthwise, IMAGE),
    "sequences": (sequences, (2, 7, 6)),
    "1-d": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3)), (5, 3, 9)),
    "auxiliary head": (Auxiliary, IMAGE),
    "windows": (
        lambda: Net(
            lambda m, x: m.b(m.a(x.reshape(-1, 4, 3)).relu()), a=nn.Linear(3, 8), b=nn.Linear(8, 4)
        ),
        (2, 16, 3),
    ),
}


@pytest.mark.parametrize("name", COSTS)
def test_costs_are_those_of_the_models(name: str) -> None:
    make, shape = COSTS[name]
    model, x = make().eval(), torch.randn(shape)
    plan = bp.plan(model, x, keep=0.5)
    blended = bp.attach(model, plan)
    blended.alpha = 0
    small = bp.collapse(blended)
    for cost, net in ((plan.before, model), (plan.after, small)):
        assert cost.params == sum(p.numel() for p in net.parameters())
        assert cost.macs == counted_macs(net, x[:1])
    assert plan.before.channels > plan.after.channels == sum(widths(small))
    assert sum(group.macs_share for group in plan.groups) == pytest.approx(1)


def widths(model: nn.Module) -> list[int]:
    """Return the output widths of all layers but the depthwise ones."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    return [
        int(getattr(m, "out_channels", getattr(m, "out_features", 0)))
        for m in model.modules()
        if isinstance(m, kinds) and getattr(m, "groups", 1) in (1, 2)
    ]


def test_a_layer_called_twice_counts_twice() -> None:
    model = twice()
    x = torch.randn(2, 3, 12, 12)
    front = nn.Sequential(conv(3, 6, 3), nn.ReLU(), conv(6, 3), model)
    assert bp.plan(front, x).before.macs == counted_macs(front, x[:1])


def test_a_depthwise_layer_called_twice_counts_twice() -> None:
    layers = {"a": conv(3, 8), "d": conv(8, 8, 3, groups=8, padding=1), "b": conv(8, 2)}
    model = Net(lambda m, x: m.b(m.d(m.d(m.a(x)).relu())), c=conv(3, 3), **layers)
    front = nn.Sequential(conv(3, 6), conv(6, 3), model)
    x = torch.randn(1, 3, 8, 8)
    assert bp.plan(front, x).before.macs == counted_macs(front, x)


def test_a_shared_weight_counts_once() -> None:
    tied = nn.Sequential(conv(4, 4), conv(4, 4))
    tied[1].weight = tied[0].weight
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4), tied, conv(4, 2))
    plan = bp.plan(model, torch.randn(IMAGE))
    assert plan.before.params == sum(p.numel() for p in model.parameters())
    assert plan.before.params - plan.after.params == 4 * (3 + 1 + 4)


def test_a_norm_over_something_else_than_channels_keeps_its_size() -> None:
    """On (batch, 5 tokens, channels) it has an entry a token."""
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(5), nn.GELU(), nn.Linear(16, 4)).eval()
    plan = bp.plan(model, torch.randn(3, 5, 6))
    blended = bp.attach(model, plan)
    blended.alpha = 0
    small = bp.collapse(blended)
    assert small[0].out_features == 8 and small[1].num_features == 5
    assert plan.after.params == sum(p.numel() for p in small.parameters())


def test_mac_shares_of_a_layer_that_makes_channels_of_two_groups() -> None:
    model = Net(
        lambda m, x: m.d(torch.cat([m.a(x), m.b(x)], 1) + m.c(x)),
        **{"a": conv(3, 4), "b": conv(3, 6), "c": conv(3, 10), "d": conv(10, 2)},
    )
    shares = {g.name: g.macs_share for g in bp.plan(model, torch.randn(IMAGE)).groups}
    total = 3 * 4 + 3 * 6 + 3 * 10 + 10 * 2
    assert shares["a"] == pytest.approx((3 * 4 + 3 * 4) / total)
    assert shares["b"] == pytest.approx((3 * 6 + 3 * 6) / total)


def test_mac_shares() -> None:
    plan = bp.plan(depthwise(), torch.randn(IMAGE))
    macs = {
        "0": 8 * 3 * 9 * 36 + 16 * 9 * 36,
        "4.down": 16 * 4,
        "5": 12 * 8 * 9 * 16,
        "8": 4 * 12 * 9 * 16,
        "10": 3 * 8 * 81,
    }
    # The gate's second layer makes channels of the group of the depthwise convolution.
    shares = {group.name: group.macs_share for group in plan.groups}
    total = plan.before.macs
    for name in ("5", "8", "10", "4.down"):
        assert shares[name] == pytest.approx(macs[name] / total)


@pytest.mark.parametrize("name", FROZEN)
def test_reasons(name: str) -> None:
    make, group, reason = FROZEN[name]
    model = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 3), make())
    plan = bp.plan(model, torch.randn(IMAGE))
    assert plan.groups[0].pruned
    found = reason_of(plan, f"3.{group}")
    assert found is not None and found.replace("3.", "") == reason


def test_batch_dimension_that_follows_is_fine() -> None:
    model = pair(lambda m, x: m.fc(m.a(x).view(x.size(0), -1)), fc=nn.Linear(512, 3))
    assert reason_of(bp.plan(model, torch.randn(IMAGE)), "a") is None


def test_one_output_channel_is_not_depthwise() -> None:
    model = nn.Sequential(
        conv(1, 8, 3), nn.ReLU(), conv(8, 1, 3), nn.ReLU(), conv(1, 6, 3), conv(6, 2)
    )
    plan = bp.plan(model, torch.randn(2, 1, 9, 9))
    assert [(g.name, g.width, g.kept) for g in plan.groups] == [
        *(("0", 8, 4), ("2", 1, 1), ("4", 6, 3), ("5", 2, 2))
    ]
    assert reason_of(plan, "2") == "1 channel cannot shrink to 0.5 of them"


def test_groups_of_a_resnet() -> None:
    plan = bp.plan(resnet(), torch.randn(IMAGE), keep=0.25)
    found = {g.name: (g.layers, g.width, g.kept) for g in plan.groups if g.pruned}
    assert found == {
        "0": (("0", "3.conv2", "4.conv2"), 8, 2),
        "3.conv1": (("3.conv1",), 8, 2),
        "4.conv1": (("4.conv1",), 8, 2),
        "5.down": (("5.down", "5.conv2", "6.conv2"), 12, 3),
        "5.conv1": (("5.conv1",), 12, 3),
        "6.conv1": (("6.conv1",), 12, 3),
    }


def test_exclude() -> None:
    x = torch.randn(IMAGE)
    plan = bp.plan(resnet(), x, exclude=["3", "6.bn1"])
    reasons = {g.name: g.reason for g in plan.groups}
    assert reasons["0"] == "3.conv2 is excluded"
    assert reasons["3.conv1"] == "3.conv1 is excluded"
    assert reasons["6.conv1"] == "6.bn1 is excluded"
    assert reasons["4.conv1"] is reasons["5.down"] is None
    assert bp.plan(resnet(), x, exclude="6").groups[4].pruned
    assert reason_of(bp.plan(vgg(), x, exclude="16"), "16") == "it is an output of the model"


def test_a_name_is_no_beginning_of_another_name() -> None:
    layers = [conv(3, 3) for _ in range(12)]
    plan = bp.plan(nn.Sequential(*layers), torch.randn(IMAGE), keep={"1": 0.5, "2": 0.5})
    assert [g.name for g in plan.groups if g.pruned] == ["1", "2"]
    assert [g.name for g in plan.groups] == [str(i) for i in range(12)]


def test_keep_by_layer() -> None:
    x = torch.randn(IMAGE)
    plan = bp.plan(resnet(), x, keep={"3": 0.5, "3.conv1": 0.25, "6": 1.0, "5": 0.75})
    kept = {g.name: (g.kept, g.reason) for g in plan.groups}
    assert kept["0"] == (4, None)
    assert kept["3.conv1"] == (2, None)
    assert kept["4.conv1"] == (8, "not named in keep")
    assert kept["5.conv1"] == kept["5.down"] == (9, None)
    assert kept["6.conv1"] == (12, None)


def test_keep_by_a_layer_goes_before_that_of_a_module() -> None:
    x = torch.randn(IMAGE)
    for keep in ({"5": 0.75, "6.conv2": 0.5}, {"5.down": 0.5, "6.conv2": 0.5, "5": 0.75}):
        kept = {g.name: g.kept for g in bp.plan(resnet(), x, keep=keep).groups}
        assert kept["5.down"] == 6 and kept["5.conv1"] == 9


def test_keep_by_the_closest_module_around() -> None:
    inner = nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8))
    model = nn.Sequential(nn.Sequential(conv(3, 8), nn.ReLU(), inner), nn.ReLU(), conv(8, 2))
    for keep in ({"0": 0.5, "0.2": 0.25}, {"0.2": 0.25, "0": 0.5}):
        plan = bp.plan(model, torch.randn(IMAGE), keep=keep)
        assert [g.kept for g in plan.groups] == [4, 2, 2, 2]


def test_keep_by_layer_with_a_default_for_all_others() -> None:
    """Each group by hand: the closest key around it, a layer's own before that of a module."""
    x = torch.randn(IMAGE)
    keep = {"": 0.5, "5": 0.25, "5.conv1": 0.75, "6": 1.0, "4.conv2": 0.125}
    kept = {g.name: (g.kept, g.reason) for g in bp.plan(resnet(), x, keep=keep).groups if g.pruned}
    assert kept == {
        "0": (1, None),  # 4.conv2 makes it, too
        "3.conv1": (4, None),
        "4.conv1": (4, None),
        "5.down": (3, None),
        "5.conv1": (9, None),
        "6.conv1": (12, None),
    }
    default = bp.plan(resnet(), x, keep={"": 0.5})
    assert default.as_dict() == bp.plan(resnet(), x, keep=0.5).as_dict()


def test_layers_of_one_group_kept_differently_are_named() -> None:
    with pytest.raises(bp.PruneError, match=r"one group.*'5.down': 0.5, '6.conv2': 0.75"):
        bp.plan(resnet(), torch.randn(IMAGE), keep={"5.down": 0.5, "6.conv2": 0.75})


@pytest.mark.parametrize(
    ("width", "keep", "multiple", "groups", "kept"),
    [
        *((20, 0.5, 1, 1, 10), (20, 22 / 64, 1, 1, 7), (20, 0.01, 1, 1, 1), (20, 1, 1, 1, 20)),
        *((20, 0.5, 8, 1, 8), (20, 0.65, 8, 1, 16), (20, 0.1, 8, 1, 8)),
        *((24, 0.3, 1, 3, 6), (24, 0.3, 4, 3, 12), (24, 0.01, 1, 3, 3), (12, 0.5, 8, 4, 8)),
        *((23, 1, 8, 1, 23), (23, 0.75, 8, 1, 16)),
    ],
)
def test_kept_widths(width: int, keep: float, multiple: int, groups: int, kept: int) -> None:
    model = nn.Sequential(
        conv(3, width), nn.ReLU(), conv(width, groups, groups=groups), conv(groups, 3)
    )
    plan = bp.plan(model, torch.randn(IMAGE), keep={"0": keep}, multiple_of=multiple)
    assert plan.groups[0].kept == kept


def test_keep_1_keeps_every_channel_but_attaches_a_branch() -> None:
    model = vgg().eval()
    x = torch.randn(IMAGE)
    plan = bp.plan(model, x, keep=1)
    assert plan.before == plan.after
    blended = bp.attach(model, plan)
    blended.alpha = 0
    assert torch.allclose(bp.collapse(blended)(x), model(x), atol=1e-6)


@pytest.mark.parametrize("keep", [0, -1, 1.5, float("nan"), float("inf"), "half", None])
def test_keep_out_of_range(keep: Any) -> None:
    for argument in ({"0": keep}, *([] if keep is None else [keep])):  # None: not given
        with pytest.raises(bp.PruneError, match=rf"keep \(={keep!r}\) must be in \(0, 1\]"):
            bp.plan(vgg(), torch.randn(IMAGE), keep=argument)


class Split(nn.Module):
    """One layer makes channels of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.size = nn.Conv2d(3, 16, 3), 10
        self.one, self.other = nn.Conv2d(10, 8, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is made of each part."""
        y = self.first(x).relu()
        return self.one(y[:, : self.size]), self.other(y[:, self.size :])


def test_a_group_is_named_by_its_number() -> None:
    x = torch.randn(1, 3, 8, 8)
    plan = bp.plan(Split().eval(), x, keep={"first": 0.5, "first#2": 1 / 3})
    assert {group.name: group.kept for group in plan.groups[:2]} == {"first": 5, "first#2": 2}
    with pytest.raises(bp.PruneError, match="keep names 'first#3', which makes no channels"):
        bp.plan(Split().eval(), x, keep={"first#3": 0.5})


@pytest.mark.parametrize("multiple", [0, -8, 2.5])
def test_multiple_of_out_of_range(multiple: Any) -> None:
    with pytest.raises(bp.PruneError, match=rf"multiple_of \(={multiple}\) must be"):
        bp.plan(vgg(), torch.randn(IMAGE), multiple_of=multiple)


def test_unknown_layers() -> None:
    x = torch.randn(IMAGE)
    with pytest.raises(
        bp.PruneError, match="exclude names the layer 'head', which the model lacks"
    ):
        bp.plan(vgg(), x, exclude=["0", "head"])
    with pytest.raises(bp.PruneError, match="keep names the layer '99', which the model lacks"):
        bp.plan(vgg(), x, keep={"99": 0.5})
    with pytest.raises(bp.PruneError, match=r"keep names the layer '3.conv4'.* is '3.conv[12]'"):
        bp.plan(resnet(), x, keep={"": 0.5, "3.conv4": 0.5})
    with pytest.raises(bp.PruneError, match="exclude names the layer ''"):
        bp.plan(vgg(), x, exclude=[""])


def branches_on_values(m: Any, x: Tensor) -> Tensor:
    if x.sum() > 0:
        x = -x
    return m.b(m.a(x))


def test_a_model_that_cannot_be_traced() -> None:
    model = nn.Sequential(conv(3, 3), pair(branches_on_values))
    with pytest.raises(bp.PruneError) as error:
        bp.plan(model, torch.randn(IMAGE))
    for part in (
        "cannot be traced in 1 at `if x.sum() > 0:`",
        __file__,
        "out of forward",
        "submodule",
    ):
        assert part in str(error.value)


def test_flags_in_the_example() -> None:
    class Flagged(Residual):
        def forward(self, x: Tensor, features: bool = False) -> Tensor:
            y = self.conv2(self.conv1(x).relu())
            return y.flatten(1) if features else y

    x = torch.randn(IMAGE)
    assert bp.plan(Flagged(3, 8), x).groups[0].pruned
    blended = bp.attach(model := Flagged(3, 8), bp.plan(model, (x, True)))
    assert torch.equal(blended(x, True), model(x, True))
    with pytest.raises(bp.PruneError, match="plan's example at the argument features"):
        blended(x, False)


def test_no_grad_inside_forward() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = m.a(x)
        return m.b(x)

    with pytest.raises(bp.PruneError, match="forward runs a under no_grad"):
        bp.plan(pair(run), torch.randn(IMAGE))
    with torch.no_grad():
        assert bp.plan(vgg(), torch.randn(IMAGE)).pruned


def test_a_plan_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert bp.plan(vgg(), torch.randn(IMAGE)).pruned


@pytest.mark.parametrize(
    ("shape", "where"), [((2, 4, 8, 8), "0"), ((2, 3, 16, 16), "13"), ((2, 3, 4, 4), "11")]
)
def test_an_example_of_the_wrong_shape(shape: tuple[int, ...], where: str) -> None:
    with pytest.raises(bp.PruneError) as error:
        bp.plan(vgg(), torch.randn(shape))
    assert f"(shape {shape}) does not pass" in str(error.value)
    assert f"fails at {where}: " in str(error.value)


def test_a_norm_of_another_width_than_what_it_reads() -> None:
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(6), nn.ReLU(), conv(8, 4))
    with pytest.raises(bp.PruneError, match=r"does not pass through the model: it fails at 1: "):
        bp.plan(model, torch.randn(IMAGE))


def test_an_example_without_batch() -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4))
    with pytest.raises(
        bp.PruneError, match=r"example \(shape \(3, 8, 8\)\) has no batch dimension"
    ):
        bp.plan(model, torch.randn(3, 8, 8))


def test_wrong_number_of_arguments() -> None:
    x = torch.randn(IMAGE)
    with pytest.raises(bp.PruneError, match=r"does not fit Residual\.forward: too many"):
        bp.plan(Residual(3, 8), (x, x))
    with pytest.raises(bp.PruneError, match=r"forward: .*unexpected keyword argument 'y'"):
        bp.plan(Residual(3, 8), {"x": x, "y": x})
    with pytest.raises(bp.PruneError, match="missing a required argument: 'x'"):
        bp.plan(Residual(3, 8), ())


def test_nothing_to_prune() -> None:
    x = torch.randn(IMAGE)
    with pytest.raises(bp.PruneError, match=r"nothing .* can be pruned .*0: it is an output"):
        bp.plan(nn.Sequential(conv(3, 8), nn.ReLU()), x)
    with pytest.raises(bp.PruneError, match=r"nothing .* \(no layer was found\)"):
        bp.plan(nn.ReLU(), x)
    heads = Net(lambda m, x: [m.get_submodule(f"c{i}")(x) for i in range(7)])
    for i in range(7):
        heads.add_module(f"c{i}", conv(3, 8))
    with pytest.raises(bp.PruneError, match=r"\(c0, c1, c2 … 4 more: it is an output of the m"):
        bp.plan(heads, x)
    net, names = nn.Sequential(*(conv(3, 3) for _ in range(8))), [*"0123456"]
    with pytest.raises(bp.PruneError, match=r"4: 4 is excluded; and 3 more\)"):
        bp.plan(net, x, exclude=names)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_what_is_no_plain_module() -> None:
    x = torch.randn(IMAGE)
    with pytest.raises(bp.PruneError, match=r"wrapped in DataParallel: pass model\.module"):
        bp.plan(nn.DataParallel(vgg()), x)
    with pytest.raises(bp.PruneError, match=r"wrapped in OptimizedModule: pass model\._orig_mod"):
        bp.plan(torch.compile(vgg(), backend="eager"), x)
    with pytest.raises(bp.PruneError, match=r"RecursiveScriptModule.* must be a"):
        bp.plan(torch.jit.script(vgg()), x)
    with pytest.raises(bp.PruneError, match=r"model \(a function\) must be a torch.nn.Module"):
        bp.plan(vgg, x)
    with pytest.raises(bp.PruneError, match=r"0\.weight has no size yet"):
        bp.plan(nn.Sequential(nn.LazyConv2d(8, 1), conv(8, 3)), x)


def test_plan_does_not_change_the_model() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls, self.last = vgg(), [], None

        def forward(self, x: Tensor) -> Tensor:
            self.calls.append(1)
            self.last = F.batch_norm(
                x, self.net[1].running_mean[:3], self.net[1].running_var[:3], training=self.training
            )
            return self.net(self.last)

    model = Remembers().train()
    model.net[1].eval()
    model.net[2].register_forward_hook(lambda *_: None)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    x = torch.randn(IMAGE)
    kept, random = x.clone(), torch.get_rng_state()
    bp.plan(model, x)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert model.calls == [] and model.last is None
    assert len(model.net[2]._forward_hooks) == 1
    assert torch.equal(x, kept) and torch.equal(random, torch.get_rng_state())


def test_subclasses_of_layers_are_layers() -> None:
    class Narrow(nn.Conv2d):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs, 3, padding=1)

    class Norm(nn.BatchNorm2d):
        pass

    class Stack(nn.Sequential):
        pass

    model = Stack(Stack(Narrow(3, 8), Norm(8)), nn.ReLU(), Narrow(8, 4))
    assert [g.name for g in bp.plan(model, torch.randn(IMAGE)).groups if g.pruned] == ["0.0"]


def test_operators_are_understood() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = operator.neg(m.a(x)) / 2 - 1
        return m.b(torch.maximum(y, m.c(x)) ** 2)

    plan = bp.plan(pair(run, c=conv(3, 8)), torch.randn(IMAGE))
    assert plan.groups[0].layers == ("a", "c") and plan.groups[0].pruned


@pytest.mark.parametrize("argument", ["keep", "exclude"])
def test_a_path_without_channels_is_no_exception_to_anything(argument: str) -> None:
    """A pooling or an activation has none of its own, so the entry would change nothing."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten())
    value: Any = {"": 0.5, "1": 0.25} if argument == "keep" else ["1"]
    options: dict[str, Any] = {argument: value}
    with pytest.raises(bp.PruneError, match=rf"{argument} names '1', which makes no channels"):
        bp.plan(model, torch.randn(1, 3, 8, 8), **options)


def test_a_multiple_wider_than_groups_is_told() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 12, 1), nn.Conv2d(12, 2, 1))
    example = torch.randn(1, 3, 4, 4)
    assert not bp.plan(model, example, keep=0.5, multiple_of=4).notes
    plan = bp.plan(model, example, keep=0.5, multiple_of=16)
    assert [group.kept for group in plan.groups if group.pruned] == [16, 6]
    assert "\nmultiple_of (=16) is too much for 1 (12):" in str(plan)
    with pytest.raises(bp.PruneError, match=r"multiple_of \(=64\) is more than .*: 0 \(32\), 1"):
        bp.plan(model, example, keep=0.5, multiple_of=64)
