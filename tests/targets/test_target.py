"""A plan from a target: what is reached, what is refused, what is printed."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from live_memory import measured_memory
from models import counted_macs, resnet, scramble, vgg
from torch import Tensor, nn
from torchvision.models import ResNet, ShuffleNetV2, mobilenet_v3_small
from torchvision.models.resnet import BasicBlock

import branchprune as bp
from branchprune.models import UNet
from branchprune.targets.error_curves import MeasuredErrors

X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SMALL: dict[str, Any] = {"batches": [X]}


def network() -> nn.Module:
    torch.manual_seed(0)
    return scramble(vgg((16, 24, 32))).eval()


@pytest.mark.parametrize(
    ("make", "target"),
    [
        (partial(ResNet, BasicBlock, [2, 1, 1, 1]), {"macs": 0.5}),
        (partial(mobilenet_v3_small, width_mult=0.5), {"params": 4.3e5}),
        (partial(ShuffleNetV2, [2, 3, 2], [24, 24, 48, 96, 256]), {"macs": 0.6, "params": 0.7}),
    ],
    ids=["residual", "squeezed and excited", "shuffled"],
)
def test_it_is_reached_and_used(make: Callable[[], nn.Module], target: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    x = torch.randn(4, 3, 32, 32)
    plan = bp.plan(model, x[:1], target=target, batches=[x])
    small = bp.attach(model, plan)
    small.alpha = 0.0
    after = bp.collapse(small)
    counts = {
        "macs": counted_macs,
        "params": lambda net, _: sum(p.numel() for p in net.parameters()),
    }
    used = []
    for what, asked in target.items():
        before, found = (counts[what](net, x[:1]) for net in (model, after))
        used.append(found / (asked * before if asked < 1 else asked))
    assert max(used) <= 1 and max(used) >= 0.98


@pytest.mark.parametrize(
    "target", [{"memory": 0.5}, {"memory": 1e6}, {"memory": 0.6, "params": 0.5}]
)
def test_a_target_of_memory_is_reached_and_used(target: dict[str, float]) -> None:
    torch.manual_seed(0)
    model, x = scramble(UNet((16, 24), 3, 2)).eval(), torch.randn(8, 3, 32, 32)
    plan = bp.plan(model, x, target=target, batches=[x])
    blended = bp.attach(model, plan)
    blended.alpha = 0.0
    before, after = (measured_memory(net, x) for net in (model, bp.collapse(blended)))
    asked = target["memory"] if target["memory"] > 1 else target["memory"] * before
    memory = plan.reached[0]
    assert memory.before == before and memory.after == after <= asked
    used = [each.after / each.most for each in plan.reached]
    assert max(used) <= 1 and max(used) > 0.98
    assert f"dense model's {before / 1e6:.1f} MB)" in str(plan)


def test_layers_that_keep_names_keep_that_and_the_others_make_up_for_it() -> None:
    model = network()
    names = [group.name for group in bp.plan(model, X[:1]).groups]
    plan = bp.plan(model, X[:1], {names[0]: 1.0, names[1]: 0.5}, target={"macs": 0.6}, **SMALL)
    assert [group.kept for group in plan.groups][:2] == [16, 12]
    assert plan.groups[0].reason == "keep says so" and not plan.groups[0].pruned
    assert 0.98 < plan.after.macs / (0.6 * plan.before.macs) <= 1


def test_floor_and_multiples_hold() -> None:
    model = network()
    plan = bp.plan(model, X[:1], target={"params": 0.5}, floor=0.4, multiple_of=4, **SMALL)
    for group in plan.groups:
        assert not group.pruned or (group.kept % 4 == 0 and group.kept >= 0.4 * group.width)
    assert plan.after.params <= 0.5 * plan.before.params


@pytest.mark.parametrize(
    ("floor", "multiple", "said"),
    [(0.25, 1, ["keep", "floor"]), (0.25, 8, ["keep", "floor"]), (0.1, 8, ["keep", "multiple"])],
)
def test_it_says_which_argument_keeps_a_group_from_a_lesser_width(floor, multiple, said) -> None:
    model = network()
    names = [group.name for group in bp.plan(model, X[:1]).groups]
    least = bp.plan(model, X[:1], {"": floor, names[0]: 0.5}, multiple_of=multiple)
    asked = {"macs": 1.0001 * least.after.macs}
    named = {"floor": floor, "multiple_of": multiple, "keep": {names[0]: 0.5}}
    plan = bp.plan(model, X[:1], target=asked, **named, **SMALL)
    assert [group.kept for group in plan.groups] == [group.kept for group in least.groups]
    assert [plan.limited[0], plan.limited[2]] == said
    assert str(plan).splitlines()[4].split()[-1] == said[1]


def test_a_width_that_floor_and_multiples_leave_alone_is_told() -> None:
    plan = bp.plan(network(), X[:1], target={"macs": 0.95}, floor=0.7, multiple_of=8, **SMALL)
    assert plan.groups[1].width == 24 and plan.groups[1].kept == 24
    assert plan.groups[1].reason == "floor (=0.7) allows no other width in multiples of 8"


@pytest.mark.parametrize("targets", [None, {"macs": 0.5}, 0.5, "macs"])
def test_targets_that_are_not_several_are_named(targets: Any) -> None:
    with pytest.raises(bp.PruneError, match=r"^targets \(=.*\) must be several, such as"):
        bp.plans(network(), X[:1], targets, **SMALL)


def test_a_group_that_the_output_hardly_needs_becomes_narrowest() -> None:
    model = network()
    second = [m for m in model.modules() if isinstance(m, nn.Conv2d)][1]
    with torch.no_grad():
        second.weight[2:] = second.weight[:2].repeat(11, 1, 1, 1)
        if second.bias is not None:
            second.bias[2:] = second.bias[:2].repeat(11)
    norm = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)][1]
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor[2:] = tensor[:2].repeat(11)
    plan = bp.plan(model, X[:1], target={"macs": 0.5}, **SMALL)
    shares = [group.kept / group.width for group in plan.groups if group.width > 5]
    assert shares[1] == min(shares) and shares[1] < 0.4 and min(shares[0], *shares[2:]) > 0.6


def test_it_says_what_was_reached_and_what_each_group_loses() -> None:
    plan = bp.plan(network(), X[:1], target={"macs": 0.5, "params": 0.9}, **SMALL)
    text = str(plan)
    header = text.splitlines()[0].split()
    assert header == ["group", "layers", "width", "MACs", "error", "share", "limited", "by"]
    assert "macs: at most" in text and "params: at most" in text
    assert f"it adds up to {sum(plan.errors):.3g}" in text
    assert f"before training: {plan.change:.3g}; at one share" in text
    assert plan.change <= plan.uniform
    for group, limited in zip(plan.groups, plan.limited, strict=True):
        at_floor = group.pruned and group.kept == max(1, -(-group.width // 10))
        assert limited == ("floor" if at_floor else "")
    told = json.loads(json.dumps(plan.as_dict()))
    assert told["reached"][0]["after"] == plan.after.macs and len(told["errors"]) == len(
        plan.groups
    )


@pytest.mark.parametrize("multiple", [1, 8])
def test_the_one_share_it_is_compared_with_is_the_best_of_all_shares(multiple: int) -> None:
    model = network()
    target = {"macs": 0.5}
    plan = bp.plan(model, X[:1], target=target, multiple_of=multiple, **SMALL)
    shares = [bp.plan(model, X[:1], k / 200, multiple_of=multiple) for k in range(20, 180, 2)]
    within = [each for each in shares if each.after.macs <= 0.5 * each.before.macs]
    best = max(within, key=lambda each: each.after.macs)
    assert plan.reached[0].uniform >= best.after.macs
    assert plan.change <= plan.uniform


def test_what_keep_narrows_counts_in_the_error() -> None:
    model = network()
    names = [group.name for group in bp.plan(model, X[:1]).groups]
    errors = MeasuredErrors([X])
    share = {names[1]: 0.25}
    [plan] = bp.plans(model, X[:1], [{"macs": 0.6}], batches=errors, keep=share)
    assert plan.groups[1].kept == 6
    assert plan.errors[1] == pytest.approx(float(errors.curves[1].errors[6]))
    assert plan.errors[1] > 0


def test_a_group_narrower_than_a_multiple_does_not_spoil_a_target() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 64, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 5)).eval()
    for share in (0.95, 0.8, 0.6, 0.4):
        plan = bp.plan(model, X[:1], target={"params": share}, batches=[X], multiple_of=8)
        assert plan.groups[1].kept % 8 == 0
        assert plan.after.params <= share * plan.before.params


def test_what_was_measured_of_a_model_serves_no_other() -> None:
    errors = MeasuredErrors([X])
    model = network()
    found = bp.sensitivity(model, X[:1], errors)
    assert len(found.groups) == 4
    fewer = bp.sensitivity(model, X[:1], errors, exclude=[found.groups[0].name])
    assert [each.name for each in fewer.groups] == [each.name for each in found.groups[1:]]
    with pytest.raises(bp.PruneError, match="what was measured of another model"):
        bp.plans(network(), X[:1], [{"macs": 0.5}], batches=errors)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"target": {"mac": 0.5}},
            r"target names 'mac', which is none of 'macs', 'params', 'memory'",
        ),
        ({"target": {}}, r"target \(=\{\}\) must say what to reach"),
        ({"target": 0.5}, r"target \(=0.5\) must say what to reach"),
        ({"target": {"macs": 1}}, r"target macs \(=1\) must be a share"),
        ({"target": {"memory": 1}}, r"target memory \(=1\) must be a share"),
        ({"target": {"macs": True}}, r"target macs \(=True\) must be a share"),
        ({"target": {"macs": -0.5}}, r"target macs \(=-0.5\) must be a share"),
        ({"target": {"macs": float("nan")}}, r"target macs \(=nan\) must be a share"),
        ({"target": {"macs": 0.5}, "keep": 0.5}, r"keep \(=0.5\) and target"),
        ({"target": {"macs": 0.5}, "keep": {"": 0.5}}, "leaves no width to choose"),
        ({"target": {"macs": 0.5}, "batches": []}, "target needs batches"),
        ({"target": {"macs": 0.5}, "batches": X}, "several inputs of forward"),
        ({"target": {"macs": 0.5}, "floor": 0}, r"floor \(=0\) must be in \(0, 1\]"),
        ({"target": {"macs": 0.5}, "floor": "x"}, r"floor \(='x'\) must be in \(0, 1\]"),
        ({"target": {"macs": 1e12}}, r"within the target already: macs \(=1e\+12\): it has"),
        (
            {"target": {"macs": 0.01}},
            r"macs \(=0.01\) cannot be reached: at floor=0.1, .*\): ask for more, or lower floor$",
        ),
        (
            {"target": {"macs": 0.1}, "multiple_of": 8},
            r"multiple_of=8 at least 0.\d+ stay .*: ask for more, or lower multiple_of$",
        ),
        (
            {"target": {"params": 0.001}, "floor": 1e-6},
            r"stay \(\d+\), \d+% of it in what stays: outputs of the model: ask for more$",
        ),
        ({"target": {"memory": 1e9}}, r"already: memory \(=1e\+09\): it has [\d.]+ kB"),
        (
            {"target": {"memory": 2000}},
            r"memory \(=2000\) cannot be reached: at floor=0.1, multiple_of=1 at least 0.\d+ stay "
            r"\([\d,]+ B\): [\d,]+ B of weights, and [\d,]+ B are live at \d",
        ),
        ({"keep": 0.5}, "^batches belong to a target: give one, such as target={'macs': 0.5}$"),
        ({"keep": 0.5, "floor": 0.2}, r"^batches, floor \(=0.2\) belong to a target"),
        ({"keep": 0.5, "batches": None, "floor": 0.2}, r"^floor \(=0.2\) belongs to a target"),
        (
            {"keep": 0.5, "batches": None, "runtime": bp.PyTorch(threads=1)},
            r"^runtime \(=PyTorch\) belongs to a target",
        ),
        (
            {"keep": 0.5, "batches": None, "latency_table": "a.json"},
            r"^latency_table \(='a.json'\) belongs to a target",
        ),
        ({"target": {"macs": 0.5}, "keep": {"no": 0.5}}, "keep names the layer 'no'"),
        ({"target": {"macs": 0.5}, "exclude": ["no"]}, "exclude names the layer 'no'"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(bp.PruneError, match=said):
        bp.plan(network(), X[:1], **SMALL | given)


def test_the_model_stays_as_it_is() -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bp.plan(model, X[:1], target={"macs": 0.5}, **SMALL)
    assert model.training and all(torch.equal(before[n], v) for n, v in model.state_dict().items())


def test_outputs_that_are_images_and_streams_that_are_shared() -> None:
    torch.manual_seed(0)
    model = scramble(resnet()).eval()
    plan = bp.plan(model, X[:1], target={"params": 0.5}, **SMALL)
    assert 0.9 < plan.after.params / (0.5 * plan.before.params) <= 1
    bp.attach(model, plan, "reconstruction", batches=[X])


def test_several_targets_are_those_one_by_one_and_measured_once(monkeypatch: Any) -> None:
    from branchprune.targets import error_curves

    model, measured = network(), []
    original = error_curves.error_curve

    def counted(*args: Any) -> Any:
        measured.append(args[1])
        return original(*args)

    targets = [{"macs": 0.75}, {"macs": 0.5}, {"params": 0.3}]
    expected = [bp.plan(model, X[:1], target=target, **SMALL) for target in targets]
    monkeypatch.setattr(error_curves, "error_curve", counted)
    found = bp.plans(model, X[:1], targets, **SMALL)
    assert len(measured) == len({*measured}) == 4
    assert list(map(str, found)) == list(map(str, expected))
    with pytest.raises(bp.PruneError, match="target names 'mac'"):
        bp.plans(model, X[:1], [{"macs": 0.5}, {"mac": 0.5}], **SMALL)


def test_a_sensitivity_says_what_each_group_costs_alone() -> None:
    model = network()
    found = bp.sensitivity(model, X[:1], [X])
    plan = bp.plan(model, X[:1], target={"macs": 0.5}, **SMALL)
    by_name = {group.name: group for group in found.groups}
    for group, error in zip(plan.groups, plan.errors, strict=True):
        if group.pruned:
            assert by_name[group.name].errors[group.kept] == error
            assert by_name[group.name].width == group.width
    rows = str(found).splitlines()
    assert rows[0].split()[:3] == ["group", "width", "at"]
    at_half = [float(row.split()[3]) for row in rows[2:-1]]
    assert at_half == sorted(at_half, reverse=True) and len(at_half) == len(found.groups)
    assert rows[-1].endswith(": the Kullback-Leibler divergence of the softmax, in nats")


def test_a_sensitivity_says_what_its_numbers_are_of_other_outputs() -> None:
    maps = nn.Sequential(*(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)))
    share = "the squared error, as a share of the variance of the outputs"
    assert bp.sensitivity(maps, X[:1], [X]).change == share

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)
            self.head = nn.Linear(2, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y: Tensor = self.second(self.first(x).relu())
            return y, self.head(y.mean((2, 3)))

    both = f"{share} and the Kullback-Leibler divergence of the softmax, in nats, on average"
    assert bp.sensitivity(Both(), X[:1], [X]).change == both


class Recurrent(nn.Module):
    """A recurrent layer, whose state has a cost of its own."""

    def __init__(self, kind: type[nn.RNNBase] = nn.GRU, width: int = 64) -> None:
        super().__init__()
        self.conv, self.state = nn.Conv2d(3, width, 4, 4), kind(width, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of images (N, 3, H, W)."""
        found, _ = self.state(self.conv(x).relu().mean(2).transpose(1, 2))
        logits: Tensor = self.head(found[:, -1])
        return logits


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_the_state_of_a_recurrent_layer_costs_what_it_costs(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model, x = Recurrent(kind).eval(), torch.randn(16, 3, 32, 32)
    for target in (0.7, 0.4):
        plan = bp.plan(model, x[:1], target={"macs": target}, batches=[x])
        blended = bp.attach(model, plan)
        blended.alpha = 0.0
        found = counted_macs(bp.collapse(blended), x[:1])
        assert found == plan.after.macs
        assert 0.95 * target < found / counted_macs(model, x[:1]) <= target


@pytest.mark.parametrize("reader", ["recurrent", "weight"])
def test_what_reads_without_a_map_needs_its_channels(reader: str) -> None:
    """A layer that reads a group beside one into which a map can be folded."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.side = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 4)
            self.state = nn.GRU(16, 8, batch_first=True)
            self.weight = nn.Parameter(torch.randn(8, 16, 1, 1))
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).relu()
            if reader == "recurrent":
                read = self.state(y.mean(2).transpose(1, 2))[0][:, -1]
            else:
                read = nn.functional.conv2d(y, self.weight).relu().mean((2, 3))
            return self.head(read) + 1e-3 * self.side(y.mean((2, 3)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Both().eval(), torch.randn(32, 3, 16, 16)
    found = {each.name: each for each in bp.sensitivity(model, x[:1], [x]).groups}["conv"]
    plan = bp.plan(model, x[:2], keep={"conv": 0.25})
    blended = bp.fit_expand(bp.attach(model, plan, "reconstruction", batches=[x]), [x], 0.03)
    blended.alpha = 0.0
    with torch.no_grad():
        wanted, small = model(x).log_softmax(1), bp.collapse(blended)(x).log_softmax(1)
    change = float((wanted.exp() * (wanted - small)).sum(1).mean())
    assert change > 1e-3 and 0.5 < found.errors[4] / change < 2


def test_what_evaluation_does_not_make_stays() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 5)
            self.extra, self.other = nn.Conv2d(16, 32, 3), nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Any:
            y = self.first(x).relu()
            out = self.head(y.mean((2, 3)))
            if self.training:
                return out, self.other(self.extra(y).relu().mean((2, 3)))
            return out

    torch.manual_seed(0)
    plan = bp.plan(Auxiliary(), X[:1], target={"params": 0.9}, **SMALL)
    [extra] = [group for group in plan.groups if group.name == "extra"]
    assert extra.kept == 32 and "not made in evaluation" in str(extra.reason)
    bp.attach(Auxiliary(), plan, "reconstruction", batches=[X])


class Scored(nn.Module):
    """Returns an output and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both."""
        y = self.net(x)
        return y, y.square().mean()


def test_outputs_may_be_numbers_and_parts_are_judged_by_their_own() -> None:
    plan = bp.plan(Scored().eval(), X[:1], target={"macs": 0.5}, **SMALL)
    assert plan.after.macs <= 0.5 * plan.before.macs
    part = bp.plan(Scored().eval(), X[:1], target={"macs": 0.5}, inside="net", **SMALL)
    alone = bp.plan(network(), X[:1], target={"macs": 0.5}, **SMALL)
    assert [group.kept for group in part.groups] == [group.kept for group in alone.groups]


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([(X, torch.zeros(32))], "of a loader of pairs take"),
        ([X.double()], "batches must be inputs of forward"),
        ([X[:, :1]], "batches must be inputs of forward"),
        ([X[:0]], "without an example"),
        ([X, X * torch.nan], r"^batches\[1\] holds numbers that are not finite: leave such inputs"),
        (5, r"batches \(a int\)"),
    ],
)
def test_batches_that_are_none_are_named(batches: Any, said: str) -> None:
    with pytest.raises(bp.PruneError, match=said):
        bp.plan(network(), X[:1], target={"macs": 0.5}, batches=batches)


def test_a_model_whose_outputs_are_not_finite_is_named() -> None:
    model = network()
    next(model.parameters()).data.fill_(torch.nan)
    with pytest.raises(bp.PruneError, match="model whose outputs on batches are finite numbers"):
        bp.plan(model, X[:1], target={"macs": 0.5}, **SMALL)


def test_products_of_forward_shrink_with_the_widths() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            weights = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
            return self.head((weights @ self.value(x)).mean(1))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(16, 12, 16)
    plan = bp.plan(model, x[:1], target={"macs": 0.7}, batches=[x])
    blended = bp.attach(model, plan)
    blended.alpha = 0.0
    assert counted_macs(bp.collapse(blended), x[:1]) == plan.after.macs
    assert 0.6 * plan.before.macs < plan.after.macs <= 0.7 * plan.before.macs
