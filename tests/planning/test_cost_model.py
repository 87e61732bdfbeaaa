"""The cost of a model as a polynomial of its widths, beside that of the model at these widths."""

import random

import pytest
import torch
import torch.nn.functional as F
import torchvision
from models import counted_macs, resnet, vgg
from torch import Tensor, nn

import branchprune as bp
from branchprune.graph.exclusive import one_at_a_time
from branchprune.planning.cost_model import params_and_macs
from branchprune.planning.costs import amounts
from branchprune.planning.narrowed import narrowed


class Products(nn.Module):
    """Multiplies in `forward`: attention, with heads of which each shrinks or that all go; weights.

    A product of three and a sum before a product, of which less is known, are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(10, 5)
        self.keys, self.values = nn.Linear(16, 12), nn.Linear(16, 20)
        self.mix = nn.Parameter(torch.randn(10, 20))
        self.square = nn.Parameter(torch.randn(14, 20))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        keys, values = (
            each.unflatten(2, (2, -1)).transpose(1, 2) for each in (self.keys(x), self.values(x))
        )
        by_hand = ((keys @ keys.mT).softmax(-1) @ values).transpose(1, 2).flatten(2)
        heads = keys.reshape(*keys.shape[:2], -1, keys.shape[3])
        fused = F.scaled_dot_product_attention(heads, heads, values).transpose(1, 2).flatten(2)
        made = F.linear(by_hand + fused, self.square).sum(2, keepdim=True)
        return self.head(F.linear(by_hand + made, self.mix).mean(1))


class Heads(nn.Module):
    """Attention with heads of four channels: as many heads go as channels do."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.out = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = (f(x).unflatten(2, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v) + (q @ k.mT).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2).mean(1))


class Einsums(nn.Module):
    """A product of two, one of three, and one of which a factor is summed first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 4, 4), nn.Conv2d(3, 8, 4, 4)
        self.w, self.v = nn.Parameter(torch.randn(12, 6)), nn.Parameter(torch.randn(6, 7))

    def forward(self, x: Tensor) -> Tensor:
        a, b = (f(x).flatten(2) for f in (self.a, self.b))
        two = torch.einsum("bcn,bdn->bcd", a, b).mean((1, 2))
        first = torch.einsum("bcn,bdn->bd", a, b).mean(1)
        three = torch.einsum("bcn,cd,de->bne", a, self.w, self.v).mean((1, 2))
        return two + first + three


class Prompted(nn.Module):
    """Attention weights of words, (N, 9, 6), for a prompt that all examples share, (1, 4, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(4, 5)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        return self.out((self.k(prompt) @ self.q(x).mT).mT)


NETWORKS = {
    "products of forward": (Products, 16),
    "heads": (Heads, 16),
    "einsums": (Einsums, 16),
    "vgg": (vgg, 8),
    "resnet": (resnet, 16),
    "shufflenet_v2_x0_5": (torchvision.models.shufflenet_v2_x0_5, 64),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, 64),
    "densenet121": (torchvision.models.densenet121, 32),
    "resnext50_32x4d": (torchvision.models.resnext50_32x4d, 32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_that_of_the_model_at_any_widths(name):
    make, size = NETWORKS[name]
    model = make().eval()
    x = torch.randn(1, 3, size, size)
    plan, draw = bp.plan(model, x, keep=0.5), random.Random(name)
    params, macs = params_and_macs(amounts(model, plan.structure), len(plan.groups))
    groups = plan.structure.groups
    wide = torch.tensor([group.width for group in groups]).double()
    kept = [
        group.blocks * draw.randint(1, group.width // group.blocks)
        if planned.pruned
        else group.width
        for group, planned in zip(groups, plan.groups, strict=True)
    ]
    small = one_at_a_time(narrowed)(model, plan.structure, kept)
    for widths, net in ((wide, model), (torch.tensor(kept).double(), small.eval())):
        assert params.total(widths) == pytest.approx(
            sum(p.numel() for p in net.parameters()), abs=0.01
        )
        assert macs.total(widths) == pytest.approx(counted_macs(net, x), abs=0.01)


def test_costs_are_of_one_example_where_an_operand_has_no_batch():
    """As keys that are a constant prompt."""
    model = Prompted().eval()
    plan = bp.plan(model, (torch.randn(3, 9, 6), torch.randn(1, 4, 6)), keep=0.5)
    assert plan.before.macs == 9 * 6 * 8 + 4 * 6 * 8 + 4 * 9 * 8 + 9 * 4 * 5


def test_changes_are_differences_of_totals():
    model = resnet().eval()
    plan = bp.plan(model, torch.randn(1, 3, 16, 16), keep=0.5)
    for cost in params_and_macs(amounts(model, plan.structure), len(plan.groups)):
        kept = torch.tensor([float(group.kept) for group in plan.groups])
        kept = kept.double()
        widths = torch.tensor([[1.0, group.width] for group in plan.groups]).double()
        changes = cost.changes(kept, widths, slice(None))
        for g, row in enumerate(widths):
            for width, change in zip(row, changes[g], strict=True):
                other = kept.clone()
                other[g] = width
                assert float(change) == pytest.approx(cost.total(other) - cost.total(kept))
            assert torch.equal(
                cost.changes(kept, widths[g : g + 1], slice(g, g + 1))[0], changes[g]
            )
