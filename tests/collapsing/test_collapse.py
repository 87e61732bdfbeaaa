"""Collapse: the small model computes what the blended one does at α = 0, to rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import Gate, Net, Residual, counted_macs, relative, resnet, scramble, spelled_out, vgg
from torch import Tensor, nn

import branchprune as bp

EXACT = 1e-10
Make = Callable[[], nn.Module]


def around(middle: nn.Module, inputs: int = 8, outputs: int = 12) -> Make:
    """Put a 2-d layer between convolutions, BatchNorms and ReLUs."""
    return lambda: nn.Sequential(
        *(nn.Conv2d(3, inputs, 3, padding=1), nn.BatchNorm2d(inputs), nn.ReLU()),
        copy.deepcopy(middle),
        *(nn.BatchNorm2d(outputs), nn.ReLU(), nn.Conv2d(outputs, 4, 3, padding=1)),
    )


def after(*middle: nn.Module, width: int = 8) -> Make:
    """Put channelwise layers between two convolutions."""
    return lambda: nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), *copy.deepcopy(middle), nn.Conv2d(width, 4, 3, padding=1)
    )


IMAGE = (2, 3, 9, 8)

CONVOLUTIONS: dict[str, tuple[Make, tuple[int, ...]]] = {
    mode: (around(nn.Conv2d(8, 12, 3, padding=2, padding_mode=mode)), IMAGE)
    for mode in ("zeros", "reflect", "circular", "replicate")
} | {
    "strided": (around(nn.Conv2d(8, 12, 3, stride=(2, 1), padding=1)), IMAGE),
    "dilated": (around(nn.Conv2d(8, 12, 3, dilation=2, padding=(2, 1))), IMAGE),
    "same padding": (around(nn.Conv2d(8, 12, (3, 5), padding="same")), IMAGE),
    "no bias": (around(nn.Conv2d(8, 12, 3, bias=False)), IMAGE),
    "grouped": (around(nn.Conv2d(8, 12, 3, padding=1, groups=2)), IMAGE),
    "grouped, wide blocks": (around(nn.Conv2d(12, 18, 3, groups=3), 12, 18), IMAGE),
    "depthwise": (around(nn.Conv2d(8, 8, 3, padding=1, groups=8), 8, 8), IMAGE),
    "depthwise, two outputs each": (around(nn.Conv2d(8, 16, 3, groups=8), 8, 16), IMAGE),
    "transposed": (
        around(nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1)),
        IMAGE,
    ),
    "transposed, grouped": (around(nn.ConvTranspose2d(8, 12, 3, stride=2, groups=2)), IMAGE),
    "transposed, dilated, no bias": (
        around(nn.ConvTranspose2d(8, 12, 2, dilation=3, bias=False)),
        IMAGE,
    ),
    "1-d": (
        lambda: nn.Sequential(
            *(nn.Conv1d(3, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)),
            *(nn.ConvTranspose1d(8, 6, 4, 2), nn.ReLU(), nn.Conv1d(6, 2, 3)),
        ),
        (2, 3, 12),
    ),
    "3-d": (
        lambda: nn.Sequential(
            *(nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.AvgPool3d(2)),
            *(nn.ConvTranspose3d(6, 4, 2, 2), nn.ReLU(), nn.Conv3d(4, 2, 3)),
        ),
        (2, 2, 4, 6, 4),
    ),
    "nothing between": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        ),
        IMAGE,
    ),
}

CHANNELWISE: dict[str, tuple[Make, tuple[int, ...]]] = {
    "BatchNorm eps": (after(nn.BatchNorm2d(8, eps=0.7), nn.ReLU()), IMAGE),
    "BatchNorm without affine": (after(nn.BatchNorm2d(8, affine=False), nn.ReLU()), IMAGE),
    "BatchNorm without statistics": (
        after(nn.BatchNorm2d(8, track_running_stats=False), nn.Tanh()),
        IMAGE,
    ),
    "GroupNorm": (after(nn.GroupNorm(2, 8, eps=0.1), nn.GELU()), IMAGE),
    "GroupNorm over parts of channels": (
        after(
            *(nn.Conv2d(6, 24, 1, groups=6), nn.GroupNorm(12, 24), nn.ReLU()),
            nn.Conv2d(24, 6, 1),
            width=6,
        ),
        IMAGE,
    ),
    "GroupNorm of one": (after(nn.GroupNorm(1, 8), nn.SiLU()), IMAGE),
    "InstanceNorm": (after(nn.InstanceNorm2d(8), nn.ReLU()), IMAGE),
    "InstanceNorm with parameters": (
        after(nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.ELU()),
        IMAGE,
    ),
    "LayerNorm over channels and space": (after(nn.LayerNorm([8, 9, 8]), nn.ReLU()), IMAGE),
    "LayerNorm over space": (after(nn.LayerNorm([9, 8]), nn.ReLU()), IMAGE),
    "PReLU": (after(nn.PReLU()), IMAGE),
    "PReLU per channel": (after(nn.PReLU(8)), IMAGE),
    "LocalResponseNorm": (after(nn.LocalResponseNorm(3, alpha=0.5, k=0.7), nn.ReLU()), IMAGE),
    "max-pooling": (after(nn.ReLU(), nn.MaxPool2d(3, 2, 1)), IMAGE),
    "average pooling": (after(nn.AvgPool2d(3, 2, 1, count_include_pad=False)), IMAGE),
    "adaptive pooling": (after(nn.AdaptiveMaxPool2d(5), nn.AdaptiveAvgPool2d((4, 3))), IMAGE),
    "LPPool": (after(nn.Softplus(), nn.LPPool2d(2, 2)), IMAGE),
    "dropout": (after(nn.Dropout(0.5), nn.ReLU(), nn.Dropout2d(0.5)), IMAGE),
    "interpolation": (
        after(nn.Upsample(scale_factor=2), nn.UpsamplingBilinear2d(scale_factor=2)),
        IMAGE,
    ),
    "padding": (after(nn.ReflectionPad2d(2), nn.ReLU(), nn.ConstantPad2d(1, 0.5)), IMAGE),
}


def swap(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


GRAPHS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "vgg": (vgg, (2, 3, 8, 8)),
    "resnet": (resnet, (2, 3, 8, 8)),
    "flatten to Linear": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 42, 10), nn.PReLU()),
            nn.Linear(10, 3),
        ),
        IMAGE,
    ),
    "view to Linear": (
        lambda: Net(
            lambda m, x: m.b(m.a(x).relu().view(x.size(0), -1)),
            a=nn.Conv2d(3, 8, 3),
            b=nn.Linear(8 * 42, 3),
        ),
        IMAGE,
    ),
    "view behind a 1x1 convolution": (
        lambda: Net(
            lambda m, x: m.b(m.a(x).view(x.size(0), -1)),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Linear(8 * 72, 3),
        ),
        IMAGE,
    ),
    "Linear chain": (
        lambda: nn.Sequential(
            *(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.LayerNorm(12)),
            *(nn.Tanh(), nn.Linear(12, 3, bias=False)),
        ),
        (4, 6),
    ),
    "Linear chain on sequences": (
        lambda: nn.Sequential(
            *(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16, eps=0.3), nn.Linear(16, 12)),
            *(nn.RMSNorm(12), nn.ReLU(), nn.Linear(12, 3)),
        ),
        (2, 5, 6),
    ),
    "LayerNorm over positions and channels": (
        lambda: nn.Sequential(
            *(nn.Linear(6, 16), nn.LayerNorm([5, 16]), nn.ReLU(), nn.Linear(16, 12)),
            *(nn.RMSNorm([5, 12]), nn.Linear(12, 3)),
        ),
        (2, 5, 6),
    ),
    "BatchNorm over the positions of a sequence": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
        (2, 8, 6),
    ),
    "LayerNorm, channels last": (
        lambda: Net(
            lambda m, x: m.b(m.norm(swap(m.a(x))).permute(0, 3, 1, 2)),
            a=nn.Conv2d(3, 8, 3),
            norm=nn.LayerNorm(8),
            b=nn.Conv2d(8, 4, 3),
        ),
        IMAGE,
    ),
    "Linear as a 1x1 convolution": (
        lambda: Net(
            lambda m, x: m.c(F.gelu(m.b(swap(m.a(x)))).transpose(1, 3).transpose(2, 3)),
            a=nn.Conv2d(3, 8, 3),
            b=nn.Linear(8, 12),
            c=nn.Conv2d(12, 4, 3, padding=1),
        ),
        IMAGE,
    ),
    "residual with projection": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Residual(8, 12, 2), nn.Conv2d(12, 4, 1)),
        IMAGE,
    ),
    "concatenation": (
        lambda: Net(
            dense,
            a=nn.Conv2d(3, 8, 3, padding=1),
            b=nn.Conv2d(3, 6, 1),
            c=nn.Conv2d(6, 4, 5, padding=2),
            bn=nn.BatchNorm2d(18),
            d=nn.Conv2d(18, 4, 3, padding=1),
        ),
        IMAGE,
    ),
    "concatenation, then flatten": (
        lambda: Net(
            lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1).tanh().flatten(1)),
            a=nn.Conv2d(3, 8, 3),
            b=nn.Conv2d(3, 6, 3),
            c=nn.Linear(14 * 42, 4),
        ),
        IMAGE,
    ),
    "concatenation plus one convolution": (
        lambda: Net(
            lambda m, x: m.d((torch.cat([m.a(x), m.b(x)], 1) + m.c(x)).relu()),
            a=nn.Conv2d(3, 4, 3),
            b=nn.Conv2d(3, 6, 3),
            c=nn.Conv2d(3, 10, 3),
            d=nn.Conv2d(10, 4, 3, padding=1),
        ),
        IMAGE,
    ),
    "the same channels twice, and the image": (
        lambda: Net(
            image_and_twice, a=nn.Conv2d(3, 8, 1), n=nn.BatchNorm2d(19), b=nn.Conv2d(19, 4, 3)
        ),
        IMAGE,
    ),
    "squeeze and excitation": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Gate(8), nn.ReLU(), nn.Conv2d(8, 4, 3)),
        IMAGE,
    ),
    "gate by view and expand_as": (
        lambda: Net(
            gate_by_view,
            a=nn.Conv2d(3, 8, 3),
            down=nn.Linear(8, 4),
            up=nn.Linear(4, 8),
            b=nn.Conv2d(8, 4, 3),
        ),
        IMAGE,
    ),
    "read by a plain and two grouped convolutions": (
        lambda: Net(
            lambda m, x: three_readers(m, m.a(x).relu()),
            a=nn.Conv2d(3, 12, 3),
            b=nn.Conv2d(12, 12, 1, groups=3),
            c=nn.Conv2d(12, 12, 1),
            d=nn.Conv2d(12, 12, 1, groups=2),
            e=nn.Conv2d(12, 4, 1),
        ),
        IMAGE,
    ),
    "in-place ReLU on what is read twice": (
        lambda: Net(read_twice, a=nn.Conv2d(3, 8, 3), relu=nn.ReLU(True), b=nn.Conv2d(8, 4, 1)),
        IMAGE,
    ),
    "functional in-place ReLU on what is read twice": (
        lambda: Net(read_twice_functional, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 1)),
        IMAGE,
    ),
    "in-place sum": (
        lambda: Net(add_in_place, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 1), c=nn.Conv2d(8, 4, 1)),
        IMAGE,
    ),
    "u-net": (
        lambda: Net(
            unet,
            down1=nn.Conv2d(3, 8, 3, padding=1),
            down2=nn.Conv2d(8, 12, 3, 2, 1),
            up=nn.ConvTranspose2d(12, 6, 2, 2),
            end=nn.Conv2d(14, 4, 3, padding=1),
        ),
        IMAGE,
    ),
    "inverted residual": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU6(True)),
            *(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)),
            *(nn.Hardswish(True), Gate(16), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 4, 1)),
        ),
        IMAGE,
    ),
}


def dense(m: Any, x: Tensor) -> Tensor:
    a, b = m.a(x), m.b(x)
    return m.d(m.bn(torch.cat([a, b, m.c(b.relu())], 1)).relu())


def image_and_twice(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(m.n(torch.cat([y.relu(), x, y], 1)).sigmoid())


def gate_by_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    n, c, _, _ = y.size()
    gate = m.up(m.down(y.mean((2, 3))).relu()).view(n, c, 1, 1)
    return m.b(y * gate.sigmoid().expand_as(y))


def three_readers(m: Any, y: Tensor) -> Tensor:
    return m.e(m.b(y).relu() * m.c(y).tanh() + m.d(y))


def read_twice(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    before = y * 2
    after = m.relu(y)
    return m.b(before + y + after)


def read_twice_functional(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    before = y - 1
    F.relu(y, inplace=True)
    y.mul_(0.5)
    return m.b(before + y)


def add_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    z = m.b(y)
    y += z.relu_()
    y *= 0.5
    return m.c(y)


def unet(m: Any, x: Tensor) -> Tensor:
    wide = m.down1(x).relu()
    deep = m.up(m.down2(wide).relu())
    deep = F.interpolate(deep, size=wide.shape[2:], mode="bilinear", align_corners=False)
    return m.end(torch.cat([wide, deep], 1))


ALL = CONVOLUTIONS | CHANNELWISE | GRAPHS


def collapsed(make: Make, shape: tuple[int, ...]) -> tuple[nn.Module, bp.Blended, nn.Module]:
    """Plan, attach, change every number, collapse; all in float64."""
    model = scramble(make().double().eval())
    plan = bp.plan(model, torch.randn(shape, dtype=torch.float64), keep=0.5)
    blended = bp.attach(model, plan)
    scramble(blended, seed=2)
    blended.alpha = 0
    return model, blended, bp.collapse(blended)


@pytest.mark.parametrize("name", ALL)
def test_collapse_is_exact(name: str) -> None:
    make, shape = ALL[name]
    model, blended, small = collapsed(make, shape)
    other = torch.randn(shape[0] + 1, *shape[1:], dtype=torch.float64)
    with torch.no_grad():
        expected = spelled_out(blended)(other.clone())
        assert relative(expected, small(other.clone())) < EXACT
        assert relative(expected, blended(other.clone())) < EXACT
        assert relative(expected, model(other.clone())) > 1e-3
    assert expected.std() > 1e-3
    assert type(small) is type(model)
    assert list(small.state_dict()) == list(model.state_dict())
    widths = [group.kept for group in blended.plan.groups if group.pruned]
    assert widths and all(2 * w == g.width for w, g in zip(widths, pruned(blended), strict=True))


def pruned(blended: bp.Blended) -> list[Any]:
    return [group for group in blended.plan.groups if group.pruned]


@pytest.mark.parametrize("name", [n for n in ALL if "ropout" not in n and n != "vgg"])
def test_collapse_is_exact_in_training_mode(name: str) -> None:
    make, shape = ALL[name]
    _, blended, small = collapsed(make, shape)
    reference = spelled_out(blended).train()
    other = torch.randn(shape, dtype=torch.float64)
    expected = reference(other.clone())
    assert relative(expected, small.train()(other.clone())) < EXACT
    assert relative(expected, blended.train()(other.clone())) < EXACT
    statistics = {k: v for k, v in reference.state_dict().items() if k.endswith("running_mean")}
    for key, value in statistics.items():
        assert relative(value, small.state_dict()[key]) < EXACT


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_everything(name: str) -> None:
    """Above all where forward works in place on a tensor that a linear end has read."""
    make, shape = ALL[name]
    model = scramble(make().double().train())
    plan = bp.plan(model, torch.randn(shape, dtype=torch.float64))
    blended = bp.attach(model, plan)
    blended.alpha = 0.5
    blended(torch.randn(shape, dtype=torch.float64)).square().sum().backward()
    for parameter in blended.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_only_the_output_stays_wide(name: str) -> None:
    make, shape = ALL[name]
    plan = bp.plan(make(), torch.randn(shape))
    reasons = {group.reason for group in plan.groups if not group.pruned}
    assert reasons <= {"it is an output of the model", "no layer makes the argument x"}


def test_every_layer_of_a_resnet_is_half_as_wide() -> None:
    _, _, small = collapsed(resnet, (2, 3, 8, 8))
    shapes = {k: tuple(p.shape) for k, p in small.named_parameters() if p.dim() > 1}
    assert shapes["0.weight"] == (4, 3, 3, 3)
    assert shapes["3.conv1.weight"] == shapes["4.conv2.weight"] == (4, 4, 3, 3)
    assert shapes["5.down.weight"] == (6, 4, 1, 1)
    assert shapes["9.weight"] == (5, 6)


def test_a_collapsed_model_can_be_pruned_again() -> None:
    _, _, small = collapsed(resnet, (2, 3, 8, 8))
    _, blended, smaller = collapsed(lambda: small, (2, 3, 8, 8))
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert relative(spelled_out(blended)(x), smaller(x)) < EXACT
    assert smaller.get_submodule("0").weight.shape == (2, 3, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_flags_are_kept(dtype: torch.dtype) -> None:
    model = vgg().to(dtype).train()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8, dtype=dtype)))
    blended.alpha = 0
    small = bp.collapse(blended)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    flags = [p.requires_grad for p in small.parameters()]
    assert flags == [p.requires_grad for p in model.parameters()]
    assert small.state_dict()["1.num_batches_tracked"].dtype == torch.int64


def test_channels_last_is_kept() -> None:
    model = vgg().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    blended = bp.attach(model, bp.plan(model, x)).eval()
    blended.alpha = 0
    small = bp.collapse(blended)
    assert small[4].weight.is_contiguous(memory_format=torch.channels_last)
    assert not small[4].weight.is_contiguous()
    assert relative(spelled_out(blended.double())(x.double()), small.double()(x.double())) < 1e-5


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_strides_of_small_kernels_are_kept(memory: torch.memory_format) -> None:
    """The weight of a 1x1 kernel is contiguous in both senses; convolutions go by its strides."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    ).to(memory_format=memory)
    x = torch.randn(2, 3, 9, 8)
    blended = bp.attach(model, bp.plan(model, x)).eval()
    blended.alpha = 0
    small = bp.collapse(blended)
    for layer in (small[0], small[1], small[3]):
        plain = torch.empty(layer.weight.shape).to(memory_format=memory)
        assert layer.weight.stride() == plain.stride()
    assert small(x).stride() == blended(x).stride() == model(x).stride()


def test_subnormal_numbers_are_flushed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    blended = bp.attach(model, bp.plan(model, torch.randn(1, 1, 4, 4)))
    with torch.no_grad():
        blended.model[0].weight.fill_(1e-39)
        blended.model[2].weight.fill_(1e-30)
    blended.alpha = 0
    small = bp.collapse(blended)
    assert (small[0].weight == 0).all()
    assert torch.equal(small[2].weight, torch.full_like(small[2].weight, 1e-30))


def test_collapse_leaves_the_blended_model_as_it_was() -> None:
    model = vgg()
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8))).train()
    optimizer = torch.optim.SGD(blended.parameters(), 0.01)
    blended.alpha = 0
    blended(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    before = copy.deepcopy(blended.state_dict())
    grads = {k: p.grad for k, p in blended.named_parameters()}
    random = torch.get_rng_state()
    small = bp.collapse(blended)
    assert all(torch.equal(v, before[k]) for k, v in blended.state_dict().items())
    assert all(p.grad is grads[k] for k, p in blended.named_parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert all(m.training for m in blended.modules()) and all(m.training for m in small.modules())
    own = {p.data_ptr() for p in blended.parameters()}
    assert not own & {p.data_ptr() for p in small.parameters()}


def test_some_groups_at_a_time() -> None:
    model = scramble(resnet().double().eval())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    blended = bp.attach(model, bp.plan(model, x))
    scramble(blended, seed=2)
    blended.alpha = {"3": 0, "5": 0}
    zero = {name for name, alpha in blended.alpha.items() if alpha == 0}
    assert zero == {"0", "3.conv1", "5.conv1", "5.down"}
    small = bp.collapse(blended)
    assert tuple(small.get_submodule("3.conv1").weight.shape) == (4, 4, 3, 3)
    assert tuple(small.get_submodule("4.conv1").weight.shape) == (8, 4, 3, 3)
    assert relative(half_spelled_out(blended)(x), small(x)) < EXACT
    assert relative(half_spelled_out(blended)(x), blended(x)) < EXACT
    second = bp.attach(small, bp.plan(small, x, keep={"4": 0.5, "6": 0.5}))
    scramble(second, seed=3)
    second.alpha = 0
    final = bp.collapse(second)
    assert len(final.get_submodule("4.conv1").weight) == 4
    assert relative(spelled_out(second)(x), final(x)) < EXACT


def half_spelled_out(blended: bp.Blended) -> nn.Module:
    """Return what is meant by some α at 0 and the others at 1: ends of the latter are left out."""
    partial, live = copy.deepcopy(blended), blended.alpha
    names = [blended.plan.groups[i].name for i in blended.plan.pruned]
    for part in (partial.reduce, partial.expand, partial.twin):
        for name, module in list(part.named_modules()):
            pieces = getattr(module, "pieces", None)
            structure = partial.plan.structure.channelwise.get(name)
            if pieces is not None:
                wide = all(live[names[p.branch]] == 1 for p in pieces)
            elif structure is not None:
                wide = all(live[partial.plan.groups[p.group].name] == 1 for p in structure.pieces)
            else:
                continue
            if wide:
                parent, _, last = name.rpartition(".")
                del part.get_submodule(parent)._modules[last]
    return spelled_out(partial)


def test_concatenation_with_one_group_collapsed() -> None:
    model = Net(
        lambda m, x: m.c(torch.cat([m.a(x).relu(), m.b(x).tanh()], 1)),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(3, 6, 3),
        c=nn.Conv2d(14, 4, 3),
    )
    scramble(model.double().eval())
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    blended = bp.attach(model, bp.plan(model, x))
    scramble(blended, seed=2)
    blended.alpha = {"a": 0}
    small = bp.collapse(blended)
    a, b, reduce = blended.model.a, blended.model.b, blended.reduce.a.weights[0]
    narrow = torch.einsum("ko,nohw->nkhw", reduce, a(x)).relu()
    part = torch.einsum("ok,nkhw->nohw", blended.expand.c.weights[0], narrow)
    expected = blended.model.c(torch.cat([part, b(x).tanh()], 1))
    assert relative(expected, small(x)) < EXACT
    assert relative(expected, blended(x)) < EXACT
    assert small.c.weight.shape == (4, 4 + 6, 3, 3)


def test_groups_that_share_a_norm_go_together() -> None:
    make, shape = GRAPHS["concatenation"]
    model = make()
    blended = bp.attach(model, bp.plan(model, torch.randn(shape)))
    blended.alpha = {"a": 0}
    with pytest.raises(bp.PruneError, match=r"groups a, b, c meet in bn: bring all to alpha = 0"):
        bp.collapse(blended)


def test_alpha_between_0_and_1_is_refused() -> None:
    model = vgg()
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8)))
    blended.alpha = {"0": 0.0, "4": 0.25}
    with pytest.raises(bp.PruneError, match=r"alpha of 4 is 0\.25"):
        bp.collapse(blended)


def test_all_alpha_at_1_is_refused() -> None:
    model = vgg()
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8)))
    with pytest.raises(bp.PruneError, match="every alpha is 1"):
        bp.collapse(blended)


def test_an_optimizer_from_before_attach_is_refused() -> None:
    model = vgg()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8)))
    blended.alpha = 0
    blended(torch.randn(4, 3, 8, 8)).sum().backward()
    with pytest.raises(bp.PruneError, match="was built before attach"):
        optimizer.step()
    with pytest.raises(bp.PruneError, match="optimizer was built before"):
        bp.collapse(blended)
    torch.optim.SGD(blended.parameters(), 0.1).step()
    assert isinstance(bp.collapse(blended), nn.Sequential)


def test_a_wrong_collapse_is_noticed_and_the_layer_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from branchprune.collapsing import collapse as collapsing

    fold = collapsing.fold_weight

    def wrong(layer: nn.Module, weight: Tensor, *ends: Any) -> Tensor:
        folded = fold(layer, weight, *ends)
        return folded * (1 + 1e-9) if weight.shape[:2] == (12, 8) else folded

    model = vgg()
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8)))
    blended.alpha = 0
    monkeypatch.setattr(collapsing, "fold_weight", wrong)
    with pytest.raises(bp.PruneError, match=r"not exact: relative error .* in 4$"):
        bp.collapse(blended)


def test_a_layer_whose_outputs_cancel_is_no_fault() -> None:
    """What is left of them is rounding, which differs between wide and narrow layers."""
    model = Net(
        lambda m, x: m.d((m.b(m.a(x)) + m.c(x)).tanh()),
        **{"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1, bias=False)},
        **{"c": nn.Conv2d(3, 4, 1), "d": nn.Conv2d(4, 2, 1)},
    )
    x = torch.randn(2, 3, 8, 8)
    blended = bp.attach(model, bp.plan(model, x, keep={"a": 0.5}), init="random")
    with torch.no_grad():
        ends, weight = blended.expand.get_submodule("b").weights[0], blended.model.b.weight
        ends[4:] = ends[:4]
        weight[:, 4:] = -weight[:, :4]
    blended.alpha = 0
    small = bp.collapse(blended)
    assert small.b.weight.abs().max() < 1e-6
    assert relative(blended(x), small(x)) < 1e-5


def test_a_wrong_output_is_noticed_behind_right_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    from branchprune.collapsing import collapse as collapsing

    verify = collapsing.verify

    def shifted(exact: bp.Blended, small: nn.Module) -> tuple[float, list[Tensor]]:
        norm = small.get_submodule("4")
        norm.bias = nn.Parameter(norm.bias.detach().double() + 1e-9)
        return verify(exact, small)

    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)),
        nn.BatchNorm2d(4),
    )
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8)))
    blended.alpha = 0
    monkeypatch.setattr(collapsing, "verify", shifted)
    with pytest.raises(bp.PruneError, match=r"not exact: relative error .* in the output$"):
        bp.collapse(blended)


@pytest.mark.parametrize(
    "head",
    [
        nn.Conv2d(8, 4, 1, padding=2, padding_mode="reflect"),
        nn.ConvTranspose2d(8, 4, 3, padding=4),
    ],
)
def test_a_head_for_training_that_pads_more_than_its_kernel(head: nn.Module) -> None:
    """Evaluation has no need of it, so the collapse tries it on an input of its own."""

    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        return m.b(y) + m.head(y).mean((2, 3), keepdim=True) if m.training else m.b(y)

    model = Net(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1), head=head)
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 12, 12)))
    blended.alpha = 0
    assert bp.collapse(blended).head.in_channels == 4


def test_a_head_for_training_of_two_layers() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        return m.b(y) + m.second(m.first(y).relu()) if m.training else m.b(y)

    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1)}
    layers |= {"first": nn.Conv2d(8, 6, 3, padding=1), "second": nn.Conv2d(6, 4, 1)}
    model = Net(run, **layers)
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8)))
    blended.alpha = 0
    small = bp.collapse(blended)
    assert small.first.weight.shape == (3, 4, 3, 3) and small.second.in_channels == 3
    x = torch.randn(2, 3, 8, 8)
    assert relative(spelled_out(blended).train()(x), small.train()(x)) < 1e-5


def test_nan_in_the_branch_is_refused() -> None:
    model = vgg()
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8)))
    blended.alpha = 0
    with torch.no_grad():
        blended.expand.get_submodule("4").weights[0][0, 0] = float("nan")
    with pytest.raises(bp.PruneError, match="not exact: relative error nan"):
        bp.collapse(blended)


def test_a_constant_example_still_checks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    from branchprune.collapsing import collapse as collapsing

    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 3))
    blended = bp.attach(model, bp.plan(model, torch.zeros(2, 3, 8, 8)))
    blended.alpha = 0
    assert isinstance(bp.collapse(blended), nn.Sequential)
    fold = collapsing.fold_weight
    monkeypatch.setattr(collapsing, "fold_weight", lambda *a: 1.01 * fold(*a))
    with pytest.raises(bp.PruneError, match="not exact"):
        bp.collapse(blended)


def test_dropout_that_is_always_on_is_no_obstacle() -> None:
    model = Net(lambda m, x: m.b(F.dropout(m.a(x), 0.5)), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    blended = bp.attach(model, bp.plan(model, torch.randn(4, 6)))
    scramble(blended)
    blended.alpha = 0
    small = bp.collapse(blended)
    assert small.a.out_features == 4
    x = torch.randn(100, 6)
    torch.manual_seed(5)
    expected = spelled_out(blended.double())(x.double())
    torch.manual_seed(5)
    assert relative(expected, small.double()(x.double())) < 1e-5


def test_casts_in_forward_are_no_obstacle() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x.float() / 255).to(torch.float32).relu()
        return m.b(y.half().type_as(y) + torch.ones(1, dtype=torch.float32)).float()

    model = Net(run, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 3))
    x = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    blended = bp.attach(model, bp.plan(model, x))
    scramble(blended)
    blended.alpha = 0
    small = bp.collapse(blended)
    assert relative(spelled_out(blended)(x), small(x)) < 1e-5
    assert small(x).dtype == torch.float32


def test_outputs_that_are_no_numbers() -> None:
    def run(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        y = m.b(m.a(x).relu())
        return y, y > 0, y.argmax(1)

    model = Net(run, a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    blended = bp.attach(model, bp.plan(model, torch.randn(4, 6)))
    blended.alpha = 0
    y, positive, best = bp.collapse(blended)(torch.randn(4, 6))
    assert torch.equal(positive, y > 0) and torch.equal(best, y.argmax(1))


def test_the_wide_path_is_not_computed_at_alpha_0() -> None:
    model = resnet().eval()
    x = torch.randn(1, 3, 32, 32)
    blended = bp.attach(model, bp.plan(model, x, keep=0.25))
    called: list[str] = []
    for part in ("model", "twin"):
        for name, module in blended.get_submodule(part).named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda *_, key=f"{part}.{name}": called.append(key))
    norms = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for alpha, parts in ((1, ["model"]), (0.5, ["model", "twin"]), (0, ["twin"])):
        blended.alpha, called[:] = alpha, []
        blended(x)
        assert sorted(called) == sorted(f"{part}.{name}" for part in parts for name in norms)


def test_multiply_adds_follow_alpha() -> None:
    model = resnet().eval()
    x = torch.randn(1, 3, 64, 64)
    blended = bp.attach(model, bp.plan(model, x, keep=0.25))
    costs = {}
    for alpha in (1, 0.5, 0):
        blended.alpha = alpha
        costs[alpha] = counted_macs(blended, x)
    dense, small = counted_macs(model, x), counted_macs(bp.collapse(blended), x)
    assert costs[1] == dense
    assert costs[0.5] > dense
    folding = sum(p.numel() * 12 for p in model.parameters() if p.dim() > 1)
    assert small <= costs[0] <= small + folding < dense / 2


def test_a_size_read_from_the_wide_path_does_not_compute_it() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.n(m.a(x)).relu()
        z = F.interpolate(m.stays(x), size=y.shape[2:])
        return m.b(y) + m.c(z) * y.size(1) ** -0.5

    model = Net(
        run,
        a=nn.Conv2d(3, 8, 3, padding=1),
        n=nn.BatchNorm2d(8),
        stays=nn.Conv2d(3, 4, 3, 2),
        b=nn.Conv2d(8, 4, 1),
        c=nn.Conv2d(4, 4, 1),
    ).eval()
    x = torch.randn(2, 3, 9, 8)
    blended = bp.attach(model, bp.plan(model, x, exclude=["stays"]))
    blended.alpha = 0
    wide = []
    blended.model.n.register_forward_hook(lambda *_: wide.append("called"))
    out, small = blended(x), bp.collapse(blended)
    assert not wide
    assert relative(spelled_out(blended)(x), out) < 1e-5
    assert relative(out, small(x)) < 1e-5


def test_sizes_are_those_of_the_form_that_is_computed() -> None:
    """One group at 0, the other at 1: what the wide path measures is wide."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gate = nn.Conv1d(2, 8, 1), nn.Linear(8, 8)
            self.body, self.head = nn.Conv1d(8, 12, 1), nn.Conv1d(20, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x * self.gate(x.mean(2)).view(x.size(0), x.size(1), 1)
            return self.head(torch.cat([x, self.body(x)], 1))

    model, x = Gated().double().eval(), torch.randn(2, 2, 5, dtype=torch.float64)
    blended = bp.attach(model, bp.plan(model, x))
    scramble(blended)
    blended.alpha = {"stem": 0}
    small = bp.collapse(blended)
    assert small.stem.out_channels == 4 and small.body.out_channels == 12
    assert relative(blended(x), small(x)) < 1e-10
    blended.alpha = {"stem": 0.5}
    assert blended(x).shape == (2, 3, 5)


def test_one_part_of_a_layer_s_outputs_at_a_time() -> None:
    """The parts that forward cuts are groups: one of them may stay wide."""

    def run(m: Any, x: Tensor) -> Tensor:
        first, rest = m.a(x).split([m.width, m.rest], 1)
        out: Tensor = m.c(torch.cat([m.b(first).relu(), rest], 1))
        return out

    layers = {"a": nn.Conv2d(3, 16, 1), "b": nn.Conv2d(6, 6, 3, padding=1)}
    model = Net(run, **layers, c=nn.Conv2d(16, 2, 1))
    model.width, model.rest = 6, 10
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    blended = bp.attach(model.double().eval(), bp.plan(model, x))
    scramble(blended)
    blended.alpha = {"a#2": 0.0}
    small = bp.collapse(blended)
    assert (small.width, small.rest, small.c.in_channels) == (6, 5, 11)
    assert relative(blended(x), small(x)) < 1e-12
