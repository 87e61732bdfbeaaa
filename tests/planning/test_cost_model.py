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
    """Multiplies in `forward`: with its own weights, and by attention of two heads, in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.qkv, self.out = nn.Parameter(torch.randn(48, 16)), nn.Linear(16, 16)
        self.keys, self.values = nn.Linear(16, 12), nn.Linear(16, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = F.linear(x, self.qkv).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        x = x + self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))
        keys = self.keys(x)
        y = F.scaled_dot_product_attention(keys, keys, self.values(x))
        return self.head(torch.einsum("bnc->bc", y))


NETWORKS = {
    "products of forward": (Products, 16),
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
