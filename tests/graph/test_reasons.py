"""Every way not to be understood: the plan says why, and the rest of the network is exact."""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from frozen_networks import FROZEN
from models import Between, Net, relative, scramble, spelled_out
from torch import Tensor, nn

import branchprune as bp
from branchprune.criteria.group_weights import rows_by_output
from branchprune.graph.inputs import tensors

IMAGE = (2, 3, 8, 8)
MIXES = "it mixes the channel dimension with others"
UNSPLIT = "it splits the channels where they cannot be split"
UNKNOWN = "its effect on channels is not known"
MIXED = "it mixes the channels"
ALL = "it mixes all channels, or picks some"
Row = tuple[Callable[[], nn.Module], str, str]


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)


def row(run: Callable[..., object], why: str, group: str = "a", **layers: nn.Module) -> Row:
    """Describe a network with the layers a (3 to 8), b (8 to 4) and others, and a reason."""
    return lambda: Net(run, **({"a": conv(3, 8), "b": conv(8, 4)} | layers)), group, why


class Holder(nn.Module):
    """Parameters and buffers that are read from outside."""

    def __init__(self, persistent: bool = True, names: int = 1) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        if names > 1:
            self.again = self.scale
        self.register_buffer("shift", torch.randn(8, 1, 1), persistent=persistent)
        self.register_buffer("mean", torch.randn(8), persistent=persistent)


class Competing(nn.Conv2d):
    """The weight that is applied to an output channel depends on those of all others."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.softmax(0), self.bias, padding=self.padding)


class Shared(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Fixed(nn.Conv2d):
    """A forward that names its width."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, 3, *x.shape[2:])).view(-1, 8, *x.shape[2:])


class RolledNorm(nn.BatchNorm2d):
    """A norm that looks at the channel before."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.roll(1, 1))


class CentredNorm(nn.BatchNorm2d):
    """A norm that treats all channels alike, as LayerNorm does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(1, keepdim=True))


class FixedNorm(nn.BatchNorm2d):
    """A norm that works at one width alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(-1, 8, *x.shape[2:]))


def with_itself(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).flatten(2).transpose(1, 2)
    return m.fc(m.two(y, y))


def unbound(m: Any, x: Tensor) -> Tensor:
    return m.c(m.a(x).unbind(1)[3][:, None])


def narrow_norm(m: Any, x: Tensor) -> Tensor:
    return m.b(F.batch_norm(m.a(x), torch.zeros(8).to(x), torch.ones(8).to(x)))


def width_as_a_size(m: Any, x: Tensor) -> Tensor:
    n, c, _, _ = m.a(x).shape
    return m.b(x.reshape(n, c, 3, 8))


Both = namedtuple("Both", "small large")

TENSORS: dict[str, Row] = {
    "einsum": row(
        lambda m, x: torch.einsum("nchw,oc->nohw", m.a(x), m.w.weight[:, :, 0, 0]),
        "tied by einsum to w.weight, whose width stays",
        w=conv(8, 4),
    ),
    "layer without a rule": row(
        with_itself,
        f"read by two (Bilinear): {UNKNOWN}",
        two=nn.Bilinear(8, 8, 8),
        fc=nn.Linear(8, 2),
    ),
    "gram": row(
        lambda m, x: m.b(m.a2(x)) + torch.matmul(y := m.a(x).flatten(2), y.transpose(1, 2)).mean(),
        "its channels meet others in `matmul`",
        a2=conv(3, 8),
    ),
    "concatenation of two dimensions": row(
        lambda m, x: m.b(torch.cat([m.a(x), m.l(x)], 1)),
        f"read by `cat`: {UNKNOWN}",
        l=nn.Linear(8, 8),
        b=conv(11, 4),
    ),
    "stack of two dimensions": row(
        lambda m, x: m.b(torch.stack([m.a(x), m.l(m.a2(x))]).sum(0)),
        f"read by `stack`: {UNKNOWN}",
        a2=conv(3, 8),
        l=nn.Linear(8, 8),
    ),
    "stack with the image": row(
        lambda m, x: m.b(torch.stack([m.a(x), x.mean(1, keepdim=True).expand(2, 8, 8, 8)]).sum(0)),
        f"read by `stack`: {UNKNOWN}",
    ),
    "named tuple": row(lambda m, x: Both(m.b(y := m.a(x)), y), "it is an output of the model"),
    "nested outputs": row(
        lambda m, x: {"levels": [m.b(m.a(x)), (m.a2(x), 3)]},
        "it is an output of the model",
        "a2",
        a2=conv(3, 6),
    ),
    "an average over channels that do not exist elsewhere": row(
        lambda m, x: m.b(m.a(x) + x.mean(1, keepdim=True).expand(-1, 8, -1, -1)),
        "tied by `add` to the output of `expand`, whose width stays "
        "(`mean`: it mixes all channels)",
    ),
    "concatenation with a constant, added": row(
        lambda m, x: m.b(m.a(x) + torch.cat([torch.ones(2, 3, 8, 8), m.a2(x)], 1)),
        "no layer makes a constant of forward",
        "a",
        a2=conv(3, 5),
    ),
}

SHAPES: dict[str, Row] = {
    "split by number": row(
        lambda m, x: m.b(m.a(x).split(4, 1)[0]),
        "`split` names the size 4",
        b=conv(4, 4),
    ),
    "split by numbers": row(
        lambda m, x: m.b(torch.split(m.a(x), [3, 5], dim=1)[1]),
        "`split` names the size 3",
        b=conv(5, 4),
    ),
    "split along what is computed": row(
        lambda m, x: m.b(m.a(x).chunk(2, x.dim() - 3)[0]),
        f"read by `chunk`: {UNKNOWN}",
        b=conv(4, 4),
    ),
    "chunk into unequal parts": row(
        lambda m, x: m.c(m.a(x).chunk(3, 1)[0]),
        f"read by `chunk`: {UNSPLIT}",
        c=conv(3, 4),
    ),
    "pixel shuffle through blocks": row(
        lambda m, x: m.c(F.pixel_shuffle(m.g(m.a(x)), 2)),
        f"read by `pixel_shuffle`: {UNSPLIT}",
        "g",
        a=conv(3, 6),
        g=conv(6, 12, groups=2),
        c=conv(3, 4),
    ),
    "unbind along the channels": row(
        unbound, "read by `unbind`: it splits the channels one by one", c=conv(1, 4)
    ),
    "view that merges the batch": row(
        lambda m, x: m.c(m.a(x).reshape(1, -1, 8, 8)),
        "read by `reshape`: it merges the batch into the channels",
        c=conv(16, 4),
    ),
    "view that mixes": row(
        lambda m, x: m.c(m.a(x).view(2, -1, 12, 8)),
        f"read by `view`: {MIXES}",
        a=conv(3, 9),
        c=conv(6, 4),
    ),
    "view whose sizes are those of another tensor": row(
        lambda m, x: m.b(m.a(x).flatten(2).view(2, (y := m.c(x).softmax(1)).size(1), 8, 8)) + y,
        "read by `view`: it names a size of the output of `softmax`, whose width stays "
        f"(`softmax`: {MIXED})",
        c=conv(3, 8),
        b=conv(8, 8),
    ),
    "view as the image": row(
        lambda m, x: m.b(m.a(x).flatten(2).view_as(y := m.c(x).softmax(1)) + y),
        "read by `view_as`: it takes the shape of the output of `softmax`, whose width stays "
        f"(`softmax`: {MIXED})",
        c=conv(3, 8),
    ),
    "width as a size": row(width_as_a_size, "its width is a size in `reshape`"),
    "expand by number": row(
        lambda m, x: m.b(m.a(x).mean((2, 3), keepdim=True).expand(2, 8, 8, 8)),
        "read by `expand`: it names the size 8",
    ),
    "squeeze of a single channel": row(
        lambda m, x: m.c(m.one(m.a(x).relu()).squeeze().unsqueeze(1)),
        f"read by `squeeze`: {UNKNOWN}",
        "one",
        one=conv(8, 1),
        c=conv(1, 4),
    ),
    "unsqueeze where it is computed": row(
        lambda m, x: m.b(m.a(x).unsqueeze(x.dim()).mean(4)),
        f"read by `unsqueeze`: {UNKNOWN}",
    ),
    "permute by what is computed": row(
        lambda m, x: m.b(m.a(x).permute(0, 1, x.dim() - 1, 2)),
        f"read by `permute`: {UNKNOWN}",
    ),
    "every other channel": row(
        lambda m, x: m.c(m.a(x)[:, ::2]),
        "read by `getitem`: it picks some of the channels",
        c=conv(4, 4),
    ),
    "one channel": row(
        lambda m, x: m.c(m.a(x)[:, 3, None]),
        "read by `getitem`: it picks some of the channels",
        c=conv(1, 4),
    ),
    "narrow": row(
        lambda m, x: m.c(m.a(x).narrow(1, 0, 4)),
        "`narrow` names the size 4",
        c=conv(4, 4),
    ),
}

LAYERS: dict[str, Row] = {
    "grouped convolution whose blocks begin within channels": row(
        lambda m, x: m.b(m.g(F.pixel_unshuffle(m.a(x), 2))),
        "a block of grouped convolution g ends within a channel",
        a=conv(3, 6),
        g=conv(24, 8, groups=4),
    ),
    "buffer that is not saved": row(
        lambda m, x: m.b(m.a(x) + m.h.shift),
        "tied by `add` to h.shift, whose width stays",
        h=Holder(persistent=False),
    ),
    "parameter with two names": row(
        lambda m, x: m.b(m.a(x) + m.h.scale),
        "tied by `add` to h.scale, whose width stays",
        h=Holder(names=2),
    ),
    "weight that depends on all outputs": row(
        lambda m, x: m.b(m.a(x).relu()),
        "a (Competing) has a forward of its own, which is not that of its class",
        a=Competing(3, 8, 3, padding=1),
    ),
    "behind a weight that depends on all outputs": row(
        lambda m, x: m.b(m.a(x).relu()),
        "b (Competing) has a forward of its own, which is not that of its class",
        b=Competing(8, 4, 3, padding=1),
    ),
    "softmax over the outputs": row(
        lambda m, x: m.b(m.a(x)),
        "a (Shared) has a forward of its own, which is not that of its class",
        a=Shared(3, 8, 1),
    ),
    "norm that looks at the neighbours": row(
        lambda m, x: m.b(m.n(m.a(x))),
        "n (RolledNorm) does not treat its channels alike",
        n=RolledNorm(8),
    ),
    "layer with a fixed width": row(
        lambda m, x: m.b(m.a(x)),
        "a (Fixed) has a forward of its own, which fails at other widths: ",
        a=Fixed(3, 8, 1),
    ),
    "parameter of a layer that is called too": row(
        lambda m, x: m.b(m.n(m.a(x)) * m.n.weight.view(1, -1, 1, 1)),
        "forward itself reads n.weight",
        n=nn.BatchNorm2d(8),
    ),
    "functional LayerNorm": row(
        lambda m, x: m.fc(F.layer_norm(m.a(x).permute(0, 2, 3, 1), (8,))),
        "`layer_norm` names the size 8",
        fc=nn.Linear(8, 2),
    ),
    "function with running statistics of a fixed width": row(
        narrow_norm,
        "read by `batch_norm`: the output of `to`, whose width stays",
    ),
    "function with running statistics that are not saved": row(
        lambda m, x: m.b(F.batch_norm(m.a(x), m.h.mean, m.h.mean.square())),
        "read by `batch_norm`: h.mean, whose width stays",
        h=Holder(persistent=False),
    ),
}
ROWS = TENSORS | SHAPES | LAYERS


def overwritten(x: Tensor) -> Tensor:
    x[:, :, 1:3] = x[:, :, 4:6].sigmoid()
    x[..., 0] *= 2
    return x


FINE: dict[str, Row] = {
    "clamp at a tensor": row(lambda m, x: m.b(m.a(x).clamp(min=m.c(x))), "", c=conv(3, 8)),
    "maximum and its index": row(lambda m, x: m.b(m.a(x).max(2, keepdim=True)[0]), ""),
    "functional GroupNorm": row(lambda m, x: m.b(F.group_norm(m.a(x), 2)), ""),
    "slice of all channels": row(lambda m, x: m.b(m.a(x)[:, :8]), ""),
    "slice from the first channel": row(lambda m, x: m.b(m.a(x)[:, 0:, 1:, :-1]), ""),
    "slice of rows behind an ellipsis": row(lambda m, x: m.b(m.a(x)[..., 2:5, :]), ""),
    "split by half of the width": row(
        lambda m, x: m.b((y := m.a(x)).split(y.shape[1] // 2, 1)[1]), "", b=conv(4, 4)
    ),
    "tensor_split into equal parts": row(
        lambda m, x: m.b(torch.cat(m.a(x).tensor_split(sections=2, dim=1)[::-1], 1)), ""
    ),
    "padding that is computed": row(lambda m, x: m.b(F.pad(m.a(x), x.shape[2:])), ""),
    "one part of those that chunk returns, by a number": row(
        lambda m, x: m.b(m.a(x).chunk(2, 1)[x.dim() - 3]), "", b=conv(4, 4)
    ),
    "a list of those that chunk returns": row(
        lambda m, x: m.b(torch.cat([p.relu() for p in [*m.a(x).chunk(2, 1)][::-1]], 1)), ""
    ),
    "rows that are overwritten": row(lambda m, x: m.b(overwritten(m.a(x))), ""),
    "split of rows by number": row(lambda m, x: m.b(m.a(x).split([3, 5], 2)[1]), ""),
    "unbind of rows": row(lambda m, x: m.c(m.a(x).unbind(2)[3]), "", c=nn.Conv1d(8, 4, 1)),
    "view by its own size": row(
        lambda m, x: m.b((y := m.a(x)).view(2, y.size(1), -1).unflatten(2, (8, 8))), ""
    ),
    "view by the size of a tensor of the same group": row(
        lambda m, x: m.b(m.a(x).flatten(2).view(2, (y := m.c(x)).shape[1], 8, 8) + y),
        "",
        c=conv(3, 8),
    ),
    "view by the size of a tensor that is tied by it": row(
        lambda m, x: m.b(m.a(x).flatten(2).view(2, (y := m.c(x)).shape[1], 8, 8)) + m.c2(y),
        "",
        c=conv(3, 8),
        c2=conv(8, 4),
    ),
    "expand to -1": row(
        lambda m, x: m.b(m.a(x).mean((2, 3), keepdim=True).expand(2, -1, 8, 8)), ""
    ),
    "norm that treats all channels alike": row(
        lambda m, x: m.b(m.n(m.a(x)).relu()), "", n=CentredNorm(8)
    ),
    "maximum of two": row(lambda m, x: m.b(torch.maximum(m.a(x), m.c(x))), "", c=conv(3, 8)),
    "map of one channel times all channels": row(
        lambda m, x: m.b(m.one(x).sigmoid() * m.a(x)), "", one=conv(3, 1)
    ),
    "gated linear unit along a dimension that is counted from the end": row(
        lambda m, x: m.b(F.glu(m.a(x), -3)), "", b=conv(4, 4)
    ),
    "stack along a dimension that is counted from the end": row(
        lambda m, x: m.b(torch.stack([m.a(x), m.c(x)], -1).mean(-1)), "", c=conv(3, 8)
    ),
    "sum over rows": row(lambda m, x: m.fc(m.a(x).sum((2, 3))), "", fc=nn.Linear(8, 3)),
}


def network(make: Callable[[], nn.Module]) -> nn.Module:
    """Put a network behind two layers whose channels in between can always shrink."""
    return nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 3), make())


def reasons(plan: bp.Plan) -> dict[str, str | None]:
    return {
        group.name.removeprefix("3."): group.reason and group.reason.replace("3.", "", 1)
        for group in plan.groups
    }


def by_other_means(blended: bp.Blended) -> nn.Module:
    """Return the branch as layers between matrices; what stays is left alone."""
    model = spelled_out(blended)
    for name, module in list(model.named_modules()):
        if isinstance(module, Between) and module.before is None and module.behind is None:
            model.set_submodule(name, module.layer)
    return model


def check_that_the_rest_is_exact(model: nn.Module, **options: Any) -> bp.Plan:
    model = scramble(model.double().eval())
    plan = bp.plan(model, torch.randn(IMAGE, dtype=torch.float64), **options)
    blended = bp.attach(model, plan)
    x = torch.randn(IMAGE, dtype=torch.float64)
    assert all(map(torch.equal, tensors(blended(x)), tensors(model(x))))
    scramble(blended, seed=2)
    blended.alpha = 0
    small = bp.collapse(blended)
    with torch.no_grad():
        outputs = [tensors(net(x)) for net in (by_other_means(blended), small, blended, model)]
    changed = []
    for expected, found, branch, before in zip(*outputs, strict=True):
        assert relative(expected, found) < 1e-10
        assert relative(expected, branch) < 1e-10
        changed.append(relative(expected, before))
    assert max(changed) > 1e-3
    shapes = {name: p.shape for name, p in small.named_parameters()}
    narrower = [name for name, p in model.named_parameters() if p.shape != shapes[name]]
    assert {"0.weight", "2.weight"} <= set(narrower)
    shrunk = {layer for group in plan.groups if group.pruned for layer in group.layers}
    for layer in {layer for group in plan.groups for layer in group.layers} - shrunk:
        wide, narrow = (rows_by_output(net.get_submodule(layer)) for net in (model, small))
        assert len(wide) == len(narrow)
    return plan


@pytest.mark.parametrize("name", ROWS)
def test_reasons(name: str) -> None:
    make, group, reason = ROWS[name]
    plan = bp.plan(network(make), torch.randn(IMAGE))
    found = reasons(plan)
    assert found["0"] is None
    said = re.sub(r" \((in|node) [\w.]+\)", "", found.get(group, found["2"]) or "")
    said = said.replace("_3_", "_")
    assert said == reason or (reason.endswith(": ") and said.startswith(reason))


@pytest.mark.parametrize("name", FROZEN | ROWS)
def test_the_rest_is_exact(name: str) -> None:
    make, _, _ = (FROZEN | ROWS)[name]
    check_that_the_rest_is_exact(network(make))


@pytest.mark.parametrize("name", FINE)
def test_what_may_shrink(name: str) -> None:
    plan = check_that_the_rest_is_exact(network(FINE[name][0]))
    assert reasons(plan)["a"] is None


def three() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 2))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"exclude": ["3.0"]}, "0 is excluded"),
        ({"exclude": "3"}, "0 is excluded"),
        ({"keep": {"0": 0.5}}, "not named in keep"),
        ({"keep": {"0": 0.5, "3.0": 0.95}}, "8 channels cannot shrink to 0.95 of them"),
    ],
)
def test_what_a_user_leaves_out(options: dict[str, Any], reason: str) -> None:
    plan = check_that_the_rest_is_exact(network(three), **options)
    assert reasons(plan)["0"] in (reason, None)
    assert next(g.reason for g in plan.groups if g.name == "3.0").replace("3.", "") == reason


def test_blocks_that_cannot_shrink() -> None:
    model = network(lambda: nn.Sequential(conv(3, 6), nn.ReLU(), nn.GroupNorm(6, 6), conv(6, 3)))
    plan = check_that_the_rest_is_exact(model)
    reason = "6 channels cannot shrink to 0.5 of them in multiples of 6"
    assert [g.reason for g in plan.groups if g.name == "3.0"] == [reason]


def test_a_norm_of_a_fixed_width_stays() -> None:
    model = network(row(lambda m, x: m.b(m.n(m.a(x))), "", n=FixedNorm(8))[0])
    reasons = [group.reason or "" for group in bp.plan(model, torch.randn(IMAGE)).groups]
    assert any(
        "FixedNorm) has a forward of its own, which fails at other widths" in r for r in reasons
    )
    check_that_the_rest_is_exact(model)
