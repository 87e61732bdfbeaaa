"""The memory of a model by its widths, beside live tensors as the model of these widths runs."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from live_memory import measured_memory, weights_of
from models import vgg
from torch import Tensor, nn

import branchprune as bp
from branchprune.graph.build import analyse
from branchprune.graph.exclusive import one_at_a_time
from branchprune.models import UNet
from branchprune.planning.memory_model import memory_of
from branchprune.planning.narrowed import narrowed
from branchprune.planning.profiling import peak_memory


def densely_connected() -> nn.Module:
    """Return a network of concatenations."""
    return torchvision.models.DenseNet(8, (2, 3, 2), 16, num_classes=5)


def flattened() -> nn.Module:
    """Return a network with tensors in which a channel has many entries in a row."""
    first = (nn.Conv2d(3, 8, 3), nn.Flatten(), nn.ReLU())
    return nn.Sequential(*first, nn.Linear(8 * 36, 6), nn.ReLU(), nn.Linear(6, 2))


def in_half() -> nn.Module:
    """Return a network in half precision."""
    return vgg().bfloat16()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (vgg, 8),
    "half": (in_half, 8),
    "flattened": (flattened, 8),
    "dense": (densely_connected, 64),
    "unet": (lambda: UNet((8, 12, 16), 3, 2), 32),
    "resnet18": (torchvision.models.resnet18, 64),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 64),
    "shufflenet": (torchvision.models.shufflenet_v2_x0_5, 64),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_that_of_the_model_at_any_widths(name: str) -> None:
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    x = torch.randn(2, 3, size, size).to(next(model.parameters()).dtype)
    plan, draw = bp.plan(model, x, keep=0.5), random.Random(name)
    memory = memory_of(model, plan.structure)
    groups = plan.structure.groups
    pairs = [*zip(groups, plan.groups, strict=True)]
    choices = [[group.width for group in groups]] + [
        [
            g.blocks * draw.randint(1, g.width // g.blocks) if planned.pruned else g.width
            for g, planned in pairs
        ]
        for _ in range(4)
    ]
    for kept in choices:
        small = one_at_a_time(narrowed)(model, plan.structure, kept).eval()
        assert memory.total(torch.tensor(kept).double()) == measured_memory(small, x)


def test_changes_are_differences_of_totals() -> None:
    model = densely_connected().eval()
    plan, draw = bp.plan(model, torch.randn(4, 3, 64, 64), keep=0.5), random.Random(0)
    cost = memory_of(model, plan.structure)
    for _ in range(3):
        kept = torch.tensor([draw.randint(1, group.width) for group in plan.groups]).double()
        widths = torch.tensor(
            [[1.0, *(draw.randint(1, group.width) for _ in range(4))] for group in plan.groups]
        ).double()
        changes = cost.changes(kept, widths, slice(None))
        for g, row in enumerate(widths):
            for width, change in zip(row, changes[g], strict=True):
                other = kept.clone()
                other[g] = width
                assert float(change) == cost.total(other) - cost.total(kept)
            alone = cost.changes(kept, widths[g : g + 1], slice(g, g + 1))
            assert torch.equal(alone[0], changes[g])


class After(nn.Module):
    """Does something with what a convolution makes."""

    def __init__(self, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.then = nn.Conv2d(3, 8, 3, padding=1), then

    def forward(self, x: Tensor) -> Any:
        """Return what is made of it."""
        return self.then(self.conv(x))


def _written(y: Tensor) -> Tensor:
    y[:, :4] = 0.0
    return y


def _part_changed(y: Tensor) -> Tensor:
    y[:, :4].mul_(2)
    return y


def _resized(y: Tensor) -> Tensor:
    spread = y.mean((2, 3), keepdim=True).expand(-1, -1, 16, 16)
    return F.interpolate((spread + 1 + 1).mean((2, 3), keepdim=True), y.shape[2:])


def _seen_late(y: Tensor) -> Tensor:
    part = y[:, :4]
    y.mul_(2)
    return part + 1


def _added(y: Tensor) -> Tensor:
    y += y.amax((2, 3), keepdim=True)
    return y


WITHOUT_MEMORY = {
    "relu_": lambda y: y.relu_(),
    "inplace": lambda y: F.relu(y, inplace=True),
    "add_": lambda y: y.add_(1).mul_(2),
    "view": lambda y: y.view(2, 4, 2, 256),
    "flatten": lambda y: y.flatten(1),
    "permute": lambda y: y.permute(0, 2, 3, 1).transpose(1, 2),
    "slice": lambda y: y[:, 2:6],
    "chunk": lambda y: y.chunk(2, 1),
    "dropout": lambda y: F.dropout(y, training=False),
    "detach": lambda y: y.detach(),
    "expand": lambda y: y.unsqueeze(1).expand(-1, 5, -1, -1, -1),
    "written": _written,
    "part changed": _part_changed,
}
"""What takes no memory beside that of the convolution's output."""


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_views_and_what_works_in_place_share_memory(name: str) -> None:
    x = torch.randn(2, 3, 16, 16)
    model = nn.Sequential(After(WITHOUT_MEMORY[name]), nn.Identity()).eval()
    made = 2 * 8 * 16 * 16 * 4
    assert total(model, x) == weights_of(model) + x.nbytes + made


WITH_MEMORY: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "clone": (lambda y: y.clone(), 2 * 8 * 256 * 4),
    "sum": (lambda y: y + 1, 2 * 8 * 256 * 4),
    "copied": (lambda y: y.permute(0, 2, 3, 1).reshape(2, -1), 2 * 8 * 256 * 4),
    "indexed": (lambda y: y[torch.tensor([1])], 8 * 256 * 4 + 8),
    # The number is made while both tensors are there.
    "indexed late": (lambda y: (y * 2).mean() + y[torch.tensor([1])], 2 * 8 * 256 * 4 + 8 + 4),
    "seen late": (_seen_late, 2 * 4 * 256 * 4),
    "changed before": (lambda y: _part_changed(y) + 1, 2 * 8 * 256 * 4),
    "in place": (_added, 2 * 8 * 4),
    "halved": (lambda y: y.half(), 2 * 8 * 256 * 2),
    # A size does not keep a tensor, and a tensor ends before the next one begins.
    "size": (_resized, 2 * 8 * 256 * 4),
    "chain": (lambda y: ((y + 1) * 2).exp(), 2 * 8 * 256 * 4),
    "skip": (lambda y: (y + 1) * 2 + y, 2 * 2 * 8 * 256 * 4),
    "two": (lambda y: y.max(1), 2 * 256 * (4 + 8)),
}
"""What takes so many bytes more at its peak."""


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_what_makes_tensors_takes_memory_as_long_as_they_are_read(name: str) -> None:
    then, more = WITH_MEMORY[name]
    x = torch.randn(2, 3, 16, 16)
    model = After(then).eval()
    made = 2 * 8 * 16 * 16 * 4
    assert total(model, x) == weights_of(model) + x.nbytes + made + more


def total(model: nn.Module, x: Tensor) -> float:
    """Return the memory of a model as it is, in which perhaps nothing can be pruned."""
    structure = one_at_a_time(analyse)(model, x)
    wide = torch.tensor([group.width for group in structure.groups]).double()
    return memory_of(model, structure).total(wide)


def test_pytorch_itself_takes_as_much_where_no_variable_keeps_a_tensor() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, 2), nn.ReLU(inplace=True), nn.Conv2d(16, 4, 1), nn.Flatten()),
    ).eval()
    x = torch.randn(5, 3, 20, 20)
    plan = bp.plan(model, x, keep=0.5)
    kept = [group.kept for group in plan.groups]
    small = one_at_a_time(narrowed)(model, plan.structure, kept)
    memory = memory_of(model, plan.structure)
    assert memory.total(torch.tensor(kept).double()) == peak_memory(small, x)
