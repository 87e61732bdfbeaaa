"""What no choice of widths can reach: how much, and what is said of it."""

from __future__ import annotations

import json
import linecache
from typing import Any

import pytest
import torch
from frozen_networks import FROZEN
from models import Net, resnet
from torch import Tensor, nn

import branchprune as bp

IMAGE = (2, 3, 8, 8)


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)


def halves(m: Any, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x).split(4, 1)[0]))


def following_halves(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.c(m.b(y.split(y.shape[1] // 2, 1)[0]))


def first_half(m: Any, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x)[:, :4]))


def following_first_half(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.c(m.b(y[:, : y.shape[1] // 2]))


def joined(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.cat([m.a(x).softmax(1), m.free(x)], 1))


def attention(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).flatten(2)
    return m.b((y @ y.transpose(1, 2)).flatten(1))


def network(run: Any, **layers: nn.Module) -> Net:
    return Net(run, **({"a": conv(3, 8), "b": conv(4, 6), "c": conv(6, 5)} | layers))


def amounts(plan: bp.Plan) -> dict[str, tuple[int, int]]:
    return {each.reason: (each.params, each.macs) for each in plan.staying}


def test_a_number_in_forward_keeps_the_layer_before_it() -> None:
    plan = bp.plan(network(halves), torch.randn(IMAGE))
    # Of b, the inputs stay and the outputs shrink; of c, the bias is the outputs' own.
    assert amounts(plan) == {
        "`split` (in the model) names the size 4": (3 * 8 + 8, 64 * 3 * 8),
        "outputs of the model": (5, 0),
    }
    line = halves.__code__.co_firstlineno + 1
    assert plan.staying[0].place == f"test_staying.py:{line}"
    assert plan.staying[0].remedy == "write `x.shape[1] // 2` in its place"
    group = plan.groups[0]
    assert (group.place, group.remedy) == (plan.staying[0].place, plan.staying[0].remedy)
    assert str(plan).splitlines()[-3:] == [
        "of 97 parameters 37 stay (38.1%) whatever widths are chosen, of 4,992 MACs 1,536 (30.8%):",
        "  32 parameters, 1,536 MACs: `split` (in the model) names the size 4 "
        f"(test_staying.py:{line}): write `x.shape[1] // 2` in its place (saves 22 parameters)",
        "  5 parameters, 0 MACs: outputs of the model",
    ]


def soft(m: Any, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x).softmax(1)))


def not_soft(m: Any, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x).softmax(2)))


@pytest.mark.parametrize("keep", [0.5, 0.25, {"": 0.5, "a": 0.75}, {"": 0.75, "a": 1.0}])
@pytest.mark.parametrize(
    ("said", "written"), [(halves, following_halves), (soft, not_soft)], ids=["number", "unknown"]
)
def test_what_a_remedy_saves_is_what_the_plan_then_saves(
    said: Any, written: Any, keep: Any
) -> None:
    layers = {"b": conv(8 if said is soft else 4, 6)}
    before, after = (
        bp.plan(network(run, **layers), torch.randn(IMAGE), keep=keep) for run in (said, written)
    )
    place = before.groups[0].place
    assert [each.saves for each in before.staying if each.place == place] == [
        before.after.params - after.after.params
    ]


@pytest.mark.parametrize(
    ("said", "written"), [(halves, following_halves), (first_half, following_first_half)]
)
def test_what_is_said_to_write_helps(said: Any, written: Any) -> None:
    plan = bp.plan(network(said), torch.randn(IMAGE))
    assert plan.groups[0].remedy == "write `x.shape[1] // 2` in its place"
    plan = bp.plan(network(written), torch.randn(IMAGE), check=True)
    assert amounts(plan) == {"outputs of the model": (5, 0)}


@pytest.mark.parametrize(
    ("named", "remedy", "written"),
    [
        (
            lambda x: x.view(x.shape[0], 32),
            "write -1 in its place, or a size that is computed from `x.shape[1]`",
            [lambda x: x.view(x.shape[0], -1), lambda x: x.view(x.shape[0], x.shape[1] * 4)],
        ),
        (
            lambda x: x.view(-1, 32),
            "write a size that is computed from `x.shape[1]` in its place, or -1 there and a size "
            "where -1 is now",
            [lambda x: x.view(-1, x.shape[1] * 4), lambda x: x.view(x.shape[0], -1)],
        ),
    ],
)
def test_what_is_said_to_write_in_a_view_helps(named: Any, remedy: str, written: Any) -> None:
    def planned(view: Any) -> bp.Plan:
        model = Net(
            lambda m, x: m.fc(view(m.pool(m.b(m.a(x))))),
            **{"a": conv(3, 6), "b": conv(6, 8)},
            **{"pool": nn.AdaptiveAvgPool2d(2), "fc": nn.Linear(32, 5)},
        )
        return bp.plan(model, torch.randn(IMAGE), check=True)

    assert planned(named).groups[1].remedy == remedy
    for view in written:
        assert [group.kept for group in planned(view).groups] == [3, 4, 5]


def test_where_nothing_shrinks_the_error_says_what_to_write() -> None:
    model = Net(lambda m, x: m.b(m.a(x).split(4, 1)[1]), a=conv(3, 8), b=conv(4, 5))
    with pytest.raises(bp.PruneError, match=r"\(a, a#2: `split` .*: write `x.shape\[1\] // 2` in"):
        bp.plan(model, torch.randn(IMAGE))


def test_unequal_parts_are_not_said_to_be_halves() -> None:
    model = network(lambda m, x: m.c(m.b(m.a(x).split([4, 3, 1], 1)[0])))
    assert bp.plan(model, torch.randn(IMAGE)).staying[0].remedy == (
        "write an attribute of its module in its place, such as self.size"
    )


def test_entries_between_a_width_that_stays_and_one_that_shrinks_can_be_reached() -> None:
    model = Net(joined, a=conv(3, 8), free=conv(3, 6, bias=False), b=conv(14, 5))
    plan = bp.plan(model, torch.randn(IMAGE))
    softmax, outputs = plan.staying
    assert softmax.reason == "`softmax` (in the model): it mixes the channels"
    # The 8 channels that stay, as a makes them and as b reads them; not the 6 that shrink.
    assert softmax.params == (3 * 8 + 8) + 8 * 5
    assert softmax.macs == 64 * (3 * 8 + 8 * 5)
    assert (outputs.params, outputs.macs) == (5, 0)


def test_matrix_products_and_what_belongs_to_no_channel() -> None:
    model = Net(attention, a=conv(3, 8), b=nn.Linear(64, 4), free=conv(3, 8), scale=nn.PReLU())
    run = model.run
    model.run = lambda m, x: (
        run(m, x) + m.scale(m.b2(m.free(x).mean((2, 3)))) + (x.flatten(2) @ x.flatten(2).mT).mean()
    )
    model.b2 = nn.Linear(8, 4)
    stay = amounts(bp.plan(model, torch.randn(IMAGE)))
    assert stay["products of tensors that forward computes itself"] == (0, 3 * 64 * 3)
    assert stay["parameters that belong to no channel of a layer"] == (1, 0)


def test_of_a_layer_that_no_rule_knows_all_stays() -> None:
    bilinear = nn.Bilinear(8, 8, 8)
    model = Net(
        lambda m, x: m.c(m.two(*[m.a(x).flatten(2).transpose(1, 2)] * 2)) + m.d(m.b(x)).mean(),
        **{"a": conv(3, 8), "two": bilinear, "b": conv(3, 6), "c": nn.Linear(8, 5)},
        d=conv(6, 2),
    )
    stay = bp.plan(model, torch.randn(IMAGE)).staying
    known = next(each for each in stay if "Bilinear" in each.reason)
    # What the layer before it makes, its own, and what the one behind it reads.
    own = sum(p.numel() for p in bilinear.parameters())
    assert known.params == (3 * 8 + 8) + own + 8 * 5
    assert "bp.teach(Bilinear, bp.rules.same)" in known.remedy


class Mixes(nn.Module):
    """Computes with a parameter of its own, in an operation that mixes channels."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x.flatten(2).transpose(1, 2), self.rows)


def test_a_parameter_that_something_unknown_reads_stays_because_of_it() -> None:
    model = Net(lambda m, x: m.b(m.mixes(m.a(x))), a=conv(3, 8), b=nn.Linear(8, 2), mixes=Mixes())
    model = nn.Sequential(conv(3, 6), conv(6, 3), model)
    stay = amounts(bp.plan(model, torch.randn(IMAGE)))
    # The layer before, the parameter, and all of the layer behind it: its outputs are the model's.
    [(params, _)] = [stay[why] for why in stay if "`cdist` (in 2.mixes)" in why]
    assert params == (3 * 8 + 8) - 3 * 8 + 64 + 8 * 2


def test_a_module_in_place_of_a_shared_weight_shrinks() -> None:
    def planned(shared: str) -> bp.Plan:
        model = Net(lambda m, x: m.b(m.d(m.c(m.a(x)).relu())), a=conv(3, 8), b=conv(8, 4))
        model.c = model.d = conv(8, 8)
        if shared == "weight":
            model.d = conv(8, 8)
            model.d.weight = model.c.weight
        return bp.plan(nn.Sequential(conv(3, 6), conv(6, 3), model), torch.randn(IMAGE))

    reason = next(each for each in planned("weight").staying if "share" in each.reason)
    assert reason.reason == "2.c and 2.d share a weight"
    assert "let both be one module, called twice" in reason.remedy
    assert [each.reason for each in planned("module").staying] == ["outputs of the model"]


def test_channels_in_as_many_groups() -> None:
    free = [conv(3, 6), nn.ReLU(), conv(6, 8)]
    model = nn.Sequential(*free, nn.ReLU(), nn.GroupNorm(8, 8), conv(8, 4), conv(4, 3))
    stay = amounts(bp.plan(model, torch.randn(IMAGE)))
    why = "2 makes 8 channels in as many groups (grouped convolution, GroupNorm)"
    assert stay == {why: (8 + 16, 0), "outputs of the model": (3, 0)}


def test_what_a_user_spares_could_shrink() -> None:
    x = torch.randn(IMAGE)
    spared = bp.plan(resnet(), x, exclude=["0", "3.conv1"], multiple_of=3).staying
    assert spared == bp.plan(resnet(), x, keep={"5": 0.5}).staying == bp.plan(resnet(), x).staying


@pytest.mark.parametrize("name", FROZEN)
def test_a_width_of_almost_nothing_leaves_what_stays(name: str) -> None:
    model = nn.Sequential(conv(3, 64), nn.ReLU(), conv(64, 3), FROZEN[name][0]())
    plan = bp.plan(model, torch.randn(IMAGE), keep=1e-9)
    params = sum(each.params for each in plan.staying)
    assert 0 < params <= plan.after.params < plan.before.params
    assert sum(each.macs for each in plan.staying) <= plan.after.macs
    # A channel of 64 is left to the first layers, and at most three to each other group.
    least = [g.kept for g in plan.groups if g.pruned]
    assert plan.after.params - params <= 8 * 9 * 8 * max(least) * len(plan.groups)


def test_reasons_that_differ_in_names_and_numbers_alone_are_one() -> None:
    blocks = [network(halves, a=conv(3, 2 * i + 6), c=conv(6, 3)) for i in (1, 1, 1)]
    plan = bp.plan(nn.Sequential(*blocks), torch.randn(IMAGE))
    [first, _] = plan.staying
    assert first.times == 3 and " and 2 more like it (test_staying.py:" in str(first)
    # The inputs of the second and third network are the outputs of one before, which shrink.
    assert first.params == (3 * 8 + 8) + 8 + 8


def test_many_reasons_are_summed() -> None:
    layers = {f"a{i}": conv(3, 8) for i in range(7)}

    def run(m: Any, x: Tensor) -> list[Tensor]:
        return [
            m.a0(x).cumsum(1), m.a1(x).softmax(1), m.a2(x).logcumsumexp(1), m.a3(x).cumprod(1),
            m.a4(x).log_softmax(1), m.a5(x).renorm(2, 0, 1), m.b(m.free(x)),
        ]  # fmt: skip

    plan = bp.plan(Net(run, **layers, free=conv(3, 4), b=conv(4, 5)), torch.randn(IMAGE))
    lines = str(plan).partition("whatever widths")[2].splitlines()[1:]
    assert len(lines) == 6 and lines[-1].endswith(": 3 other reasons")
    assert lines[-1].startswith("  69 parameters, ")
    assert amounts(plan)["parameters that forward does not use"] == (32, 0)
    assert amounts(plan)["outputs of the model"] == (5, 0)


def test_a_cell_of_a_notebook_is_no_file() -> None:
    source = "def run(m, x):\n    y = m.a(x)\n    return m.c(m.b(y.split(4, 1)[0]))\n"
    names: dict[str, Any] = {}
    linecache.cache["<cell>"] = (len(source), None, source.splitlines(True), "<cell>")
    exec(compile(source, "<cell>", "exec"), names)
    assert bp.plan(network(names["run"]), torch.randn(IMAGE)).groups[0].place == "line 3"


def test_as_plain_numbers_for_json() -> None:
    plan = bp.plan(network(halves), torch.randn(IMAGE))
    read = json.loads(json.dumps(plan.as_dict()))["staying"]
    assert [row["params"] for row in read] == [32, 5]
    assert read[0].keys() == {"reason", "place", "remedy", "params", "macs", "times", "saves"}


def test_the_error_of_a_model_that_cannot_be_pruned_names_the_line() -> None:
    model = Net(lambda m, x: m.a(x).softmax(1), a=conv(3, 8))
    with pytest.raises(bp.PruneError, match=r"a: read by `softmax` .* \(test_staying.py:\d+\)"):
        bp.plan(model, torch.randn(IMAGE))


def test_the_parts_of_a_layer_whose_output_is_cut_are_counted() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        first, *_, last = m.a(x).chunk(4, 1)
        return m.b(first + last)

    model = Net(run, a=conv(3, 32), b=conv(8, 5))
    plan = bp.plan(model, torch.randn(IMAGE))
    assert plan.groups[0].times == 4
    row = next(line for line in str(plan).splitlines() if line.startswith("a "))
    assert "  4 × 8 → 4 × 4  " in row
    blended = bp.attach(model, plan)
    blended.alpha = 0
    assert bp.collapse(blended).a.out_channels == 16
