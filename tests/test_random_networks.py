"""What must hold for every network, checked on random ones of one, two and three dimensions."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import event, given, reject, settings
from hypothesis import strategies as st
from models import relative, scramble, spelled_out
from torch import Tensor, nn

import branchprune as bp
from branchprune.structuring import analyse

WIDTHS = st.sampled_from([4, 8, 12])
NORMS = ("batch", "group", "instance", "none")
ACTIVATIONS = ("relu", "inplace", "prelu", "gelu", "none")


def of(kind: str, dims: int) -> Any:
    """Return the class of a layer by its name without the number of dimensions."""
    return getattr(nn, f"{kind}{dims}d")


def norm(kind: str, width: int, dims: int) -> nn.Module:
    if kind == "batch":
        return of("BatchNorm", dims)(width, eps=1e-3)
    if kind == "group":
        return nn.GroupNorm(2, width)
    return of("InstanceNorm", dims)(width, affine=True) if kind == "instance" else nn.Identity()


def activation(kind: str, width: int) -> nn.Module:
    return {
        "relu": nn.ReLU(),
        "inplace": nn.ReLU(inplace=True),
        "prelu": nn.PReLU(width),
        "gelu": nn.GELU(),
        "none": nn.Identity(),
    }[kind]


@dataclass(frozen=True)
class Step:
    """One part of a random network."""

    kind: str
    width: int
    kernel: int
    stride: int
    groups: int
    bias: bool
    norm: str
    activation: str


STEPS = st.builds(
    Step,
    st.sampled_from("conv up depthwise residual concat gate max avg dropout".split()),
    width=WIDTHS,
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 1, 2]),
    bias=st.booleans(),
    norm=st.sampled_from(NORMS),
    activation=st.sampled_from(ACTIVATIONS),
)


class Part(nn.Module):
    """One step: a convolution with norm and activation, alone or joined with its input."""

    def __init__(self, step: Step, inputs: int, dims: int) -> None:
        super().__init__()
        self.kind, self.dims = step.kind, dims
        width = {"residual": inputs, "depthwise": 2 * inputs, "gate": inputs}.get(
            step.kind, step.width
        )
        groups = {"depthwise": inputs, "conv": step.groups}.get(step.kind, 1)
        stride = step.stride if step.kind in ("conv", "depthwise") else 1
        self.outputs = {"concat": inputs + width}.get(step.kind, width)
        if step.kind in ("max", "avg", "dropout"):
            self.outputs = inputs
            pools = {"max": of("MaxPool", dims)(3, 2, 1), "avg": of("AvgPool", dims)(3, 1, 1)}
            self.body: nn.Module = pools.get(step.kind, nn.Dropout(0.3))
            return
        if step.kind == "up":
            conv = of("ConvTranspose", dims)(inputs, width, 2, 2, bias=step.bias)
        else:
            conv = of("Conv", dims)(
                *(inputs, width, step.kernel, stride, step.kernel // 2),
                groups=groups,
                bias=step.bias,
            )
        self.body = nn.Sequential(
            conv, norm(step.norm, width, dims), activation(step.activation, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "residual":
            return F.relu(x + self.body(x))
        if self.kind == "concat":
            return torch.cat([x, self.body(x)], 1)
        if self.kind == "gate":
            space = tuple(range(2, 2 + self.dims))
            return x * self.body(x.mean(space, keepdim=True)).sigmoid()
        return self.body(x)


class RandomNet(nn.Module):
    """A stem, random steps, and a classifier on the flattened or averaged features."""

    def __init__(self, dims: int, steps: list[Step], flatten: bool) -> None:
        super().__init__()
        self.stem = of("Conv", dims)(2, 8, 3, padding=1)
        parts, width = [], 8
        for step in steps:
            part = Part(step, width, dims)
            parts.append(part)
            width = part.outputs
        self.parts = nn.Sequential(*parts)
        self.pool = of("AdaptiveAvgPool", dims)(2 if flatten else 1)
        self.head = nn.Linear(width * (2**dims if flatten else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.parts(self.stem(x))).flatten(1))


@dataclass
class Case:
    """A random network with numbers in it, and an input."""

    model: nn.Module
    x: Tensor
    keep: float

    def __repr__(self) -> str:
        return f"{self.model}\nkeep={self.keep}, input {tuple(self.x.shape)}"


SIZES = {1: (11,), 2: (6, 5), 3: (5, 5, 6)}


def limits(steps: list[Step]) -> list[dict[str, Any]]:
    """Change what would leave a norm a single position, or make an image too large."""
    shrunk = grown = False
    changes: list[dict[str, Any]] = []
    for step in steps:
        change: dict[str, Any] = {}
        if step.kind == "gate" and step.norm == "instance":
            change["norm"] = "none"
        if (step.kind == "max" and shrunk) or (step.kind == "up" and grown):
            change["kind"] = "conv"
        if shrunk:
            change["stride"] = 1
        shrunk = shrunk or step.kind == "max" or step.stride == 2
        grown = grown or step.kind == "up"
        changes.append(change)
    return changes


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    steps = draw(st.lists(STEPS, min_size=1, max_size=5))
    steps = [replace(s, **changes) for s, changes in zip(steps, limits(steps), strict=True)]
    model = RandomNet(dims, steps, draw(st.booleans()))
    scramble(model, seed=draw(st.integers(0, 1000)))
    x = torch.randn(3, 2, *SIZES[dims], generator=torch.Generator().manual_seed(7))
    return Case(model, x, draw(st.sampled_from([0.25, 0.5, 0.75])))


def planned(case: Case) -> bp.Plan:
    try:
        plan = bp.plan(case.model, case.x, keep=case.keep)
    except bp.PruneError as error:
        assert "nothing in the model can be pruned" in str(error)
        reject()
    for group in plan.groups:
        event("pruned" if group.pruned else str(group.reason).split(" (")[0][:40])
    return plan


def attached(case: Case) -> bp.Blended:
    return bp.attach(case.model, planned(case))


def seeded(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(11)
    return model(x)


@settings(max_examples=80)
@given(cases())
def test_alpha_1_is_the_model(case: Case) -> None:
    blended = attached(case)
    for training in (False, True):
        model = copy.deepcopy(case.model).train(training)
        blended.train(training)
        assert torch.equal(seeded(model, case.x), seeded(blended, case.x))
    for name, value in model.state_dict().items():
        assert torch.equal(value, blended.model.state_dict()[name])


@settings(max_examples=150)
@given(cases(), st.sampled_from(["l1", "random"]))
def test_collapse_is_exact(case: Case, init: str) -> None:
    case.model.double().eval()
    case.x = case.x.double()
    blended = bp.attach(case.model, planned(case), init=init)
    scramble(blended, seed=3)
    blended.alpha = 0
    small = bp.collapse(blended)
    x = torch.randn(2, *case.x.shape[1:], dtype=torch.float64)
    with torch.no_grad():
        expected = spelled_out(blended)(x)
        assert relative(expected, small(x)) < 1e-10
        assert relative(expected, blended(x)) < 1e-10
    assert type(small) is type(case.model)
    assert list(small.state_dict()) == list(case.model.state_dict())
    assert blended.plan.after.params == sum(p.numel() for p in small.parameters())
    assert blended.plan.after.params < blended.plan.before.params
    for group in blended.plan.groups:
        if group.pruned:
            assert abs(group.kept / group.width - case.keep) <= max(0.25, 2 / group.width)


@settings(max_examples=40)
@given(cases(), st.booleans())
def test_arguments_are_not_changed(case: Case, training: bool) -> None:
    model = case.model.train(training)
    next(iter(model.parts.children())).eval()
    model.parts.register_forward_hook(lambda *_: None)

    def state(net: nn.Module) -> dict[str, Any]:
        tensors = {k: v.clone() for k, v in net.state_dict().items()}
        flags = [(m.training, len(m._forward_hooks), type(m)) for m in net.modules()]
        identities = [(id(p), p.requires_grad, p.data_ptr()) for p in net.parameters()]
        return {"tensors": tensors, "flags": flags, "identities": identities, "text": repr(net)}

    def check(net: nn.Module, before: dict[str, Any]) -> None:
        after = state(net)
        tensors = before.pop("tensors")
        assert all(torch.equal(v, tensors[k]) for k, v in after.pop("tensors").items())
        assert after == before

    x, before = case.x.clone(), state(model)
    plan = planned(case)
    table = str(plan)
    check(model, before)
    before = state(model)
    blended = bp.attach(model, plan)
    check(model, before)
    blended.alpha = 0
    before = state(blended)
    bp.collapse(blended)
    check(blended, before)
    assert str(plan) == table and torch.equal(case.x, x)


@settings(max_examples=60)
@given(cases(), st.sampled_from([0.25, 0.5]))
def test_gradients_between_0_and_1(case: Case, alpha: float) -> None:
    case.model.train()
    blended = attached(case)
    scramble(blended, seed=5)
    blended.alpha = alpha
    seeded(blended, case.x).square().sum().backward()
    missing = [name for name, p in blended.named_parameters() if p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in blended.parameters())


def with_twin(blended: bp.Blended) -> list[str]:
    """Return the norms, slopes and depthwise layers of pruned groups."""
    return [
        name
        for name, m in blended.twin.named_modules()
        if m.state_dict() and not len([*m.children()])
    ]


@settings(max_examples=60)
@given(cases())
def test_the_wide_path_rests_at_alpha_0(case: Case) -> None:
    case.model.train()
    blended = attached(case)
    blended.alpha = 0
    before = copy.deepcopy(blended.state_dict())
    seeded(blended, case.x).square().sum().backward()
    after, names = blended.state_dict(), with_twin(blended)
    for name in names:
        wide, twin = blended.model.get_submodule(name), blended.twin.get_submodule(name)
        assert all(p.grad is None for p in wide.parameters())
        assert all(p.grad is not None for p in twin.parameters())
        for key in wide.state_dict():
            assert torch.equal(before[f"model.{name}.{key}"], after[f"model.{name}.{key}"])
            moved = key.startswith("running") or key == "num_batches_tracked"
            same = torch.equal(before[f"twin.{name}.{key}"], after[f"twin.{name}.{key}"])
            assert same != moved
    for part in (blended.reduce, blended.expand):
        assert all(p.grad is not None for p in part.parameters())


@settings(max_examples=80)
@given(cases(), st.data())
def test_groups_in_any_order(case: Case, data: st.DataObject) -> None:
    """Half of the groups at 0 and half at 1: collapses exactly, or says which norm joins them."""
    case.model.double().eval()
    case.x = case.x.double()
    blended = attached(case)
    scramble(blended, seed=4)
    names = list(blended.alpha)
    values = {name: data.draw(st.sampled_from([0, 1])) for name in names}
    blended.alpha = {**values, names[0]: 0}
    try:
        small = bp.collapse(blended)
    except bp.PruneError as error:
        assert "meet in" in str(error)
        event("groups meet")
        return
    x = torch.randn(2, *case.x.shape[1:], dtype=torch.float64)
    assert relative(blended(x), small(x)) < 1e-10
    for group in blended.plan.groups:
        if group.pruned:
            wanted = group.kept if blended.alpha[group.name] == 0 else group.width
            layer = small.get_submodule(group.layers[0])
            assert getattr(layer, "out_channels", getattr(layer, "out_features", 0)) >= wanted


class Chain(nn.Module):
    """A convolution and then some operations that move, merge or drop dimensions."""

    def __init__(self, operations: list[str]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.operations = operations

    def moved(self, x: Tensor) -> Tensor:
        for operation in self.operations:
            x = eval(operation, {"torch": torch, "F": F, "x": x})
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.moved(self.conv(x))


OPERATIONS = """
    x.permute(0, 2, 3, 1) | x.permute(3, 0, 1, 2) | torch.permute(x, (1, 0, 2)) |
    x.transpose(1, 2) | x.transpose(-1, 1) | torch.transpose(x, 0, -2) | x.flatten(1) |
    x.flatten(2) | torch.flatten(x, 1, 2) | x.flatten(-2) | x.reshape(x.size(0), -1) |
    x.view(x.shape[0], x.shape[1], -1) | x.flatten(0, 1) |
    torch.reshape(x, (x.size(0), x.size(1), -1)) | x.unsqueeze(1) | x.unsqueeze(-1) |
    x.unsqueeze(0) | torch.unsqueeze(x, 2) | x.squeeze() | x.squeeze(1) | torch.squeeze(x, -1) |
    x.mean(2) | x.mean((2, 3)) | x.mean(-1, keepdim=True) | torch.mean(x, 0) | x.amax((0, 2)) |
    torch.sum(x[:1], 0) | x.mean(1) | x[0] | x[:, 0] | x[..., 0] | x[:, :, 1:] | x[None] |
    x[:, None] | x[..., None, :] | x[:, :, 0, None] | x[:, -1:] | x[..., ::2] | x[:1, ..., 0] |
    F.pad(x, (1, 1), mode='replicate') | x.contiguous().clone() | F.avg_pool2d(x, 2) |
    F.max_pool1d(x.flatten(2), 2) | torch.cat([x, x], 0) | torch.cat([x, x], -1) |
    x.reshape(-1, x.size(-1)) | x.view(x.size(0), -1, 1) | torch.maximum(x, x[:, :1]) | x * 1 |
    x.expand_as(x)
"""
MOVES = st.sampled_from([operation.strip() for operation in OPERATIONS.split("|")])


@settings(max_examples=400)
@given(st.lists(MOVES, min_size=1, max_size=4), st.sampled_from([1, 2]))
def test_where_the_channels_are(operations: list[str], batch: int) -> None:
    """Every value of a tensor says its channel: the layout must find them where they are."""
    chain = Chain(operations)
    marked = torch.arange(6.0)[None, :, None, None].expand(batch, 6, 4, 2).contiguous()
    try:
        with torch.no_grad():
            found = chain.moved(marked)
    except (RuntimeError, IndexError):
        reject()
    if found.numel() == 0 or found.isnan().any():
        reject()
    structure = analyse(chain, torch.randn(batch, 3, 4, 2))
    last = list(structure.graphs[False].nodes)[-2]
    layout = structure.tensors[False].get(last.name)
    if layout is None:
        event("not known")
        return
    event(f"known after {len(operations)}")
    runs = [torch.arange(6.0).repeat_interleave(piece.repeat) for piece in layout.pieces]
    expected = torch.cat(runs)
    assert found.shape[layout.dim] == len(expected)
    last_dim = found.movedim(layout.dim, -1)
    assert torch.equal(last_dim, expected.expand_as(last_dim))


@settings(max_examples=150)
@given(st.lists(MOVES, min_size=1, max_size=4), st.sampled_from([1, 2]))
def test_collapse_behind_moved_channels(operations: list[str], batch: int) -> None:
    chain = Chain(operations).double().eval()
    x = torch.randn(batch, 3, 4, 2, dtype=torch.float64)
    try:
        shape = chain(x).shape
    except (RuntimeError, IndexError):
        reject()
    structure = analyse(chain, x)
    layout = structure.tensors[False].get(list(structure.graphs[False].nodes)[-2].name)
    if layout is None or 0 in shape:
        reject()
    if layout.dim == len(shape) - 1:
        consumer: nn.Module = nn.Linear(shape[-1], 5)
    elif layout.dim == 1 and len(shape) in (3, 4):
        consumer = of("Conv", len(shape) - 2)(shape[1], 5, 1)
    else:
        reject()
    model = nn.Sequential(chain, consumer.double())
    plan = planned(Case(model, x, 0.5))
    assert plan.groups[0].kept == 3
    blended = scramble(bp.attach(model, plan))
    assert isinstance(blended, bp.Blended)
    blended.alpha = 0
    small = bp.collapse(blended)
    assert small[0].conv.weight.shape == (3, 3, 1, 1)
    assert relative(spelled_out(blended)(x), small(x)) < 1e-10
    assert relative(spelled_out(blended)(x), blended(x)) < 1e-10
