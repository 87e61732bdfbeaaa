"""Structures that the other networks of the suite do not have."""

from collections.abc import Callable

import pytest
import torch
from models import Net
from torch import Tensor, nn

import branchprune as bp


class GroupedAndDenseReaders(nn.Module):
    """One tensor, read by a grouped and by an ordinary convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 4, 3, groups=2)
        self.dense = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.grouped(x) + self.dense(x)


class NormOverPositionsAndChannels(nn.Module):
    """A LayerNorm whose channels are the second of the dimensions it normalises."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(5, 8), nn.LayerNorm([6, 8]), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)).relu())


class GroupedPlusConcatenation(nn.Module):
    """A grouped convolution, whose output cannot be cut anywhere, added to two layers' outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, groups=4)
        self.left, self.right = nn.Conv2d(4, 3, 3), nn.Conv2d(4, 5, 3)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(x) + torch.cat([self.left(x), self.right(x)], 1))


def spread(blended: bp.Blended) -> None:
    """Make every parameter of the branch different from a selection."""
    with torch.no_grad():
        for parameter in blended.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(GroupedAndDenseReaders, (2, 3, 9, 9)), (NormOverPositionsAndChannels, (2, 6, 5))],
)
def test_collapse_computes_what_the_branch_does(kind: type[nn.Module], shape: tuple[int, ...]):
    model = kind().double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    blended = bp.attach(model, bp.plan(model, x))
    spread(blended)
    blended.alpha = 0
    small, expected = bp.collapse(blended), blended(x)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(small(x), expected, rtol=1e-10, atol=1e-10)


def test_groups_that_are_cut_into_single_channels_stay():
    model, x = GroupedPlusConcatenation().eval(), torch.randn(2, 4, 6, 6)
    with pytest.raises(bp.PruneError, match="grouped#2: 1 channel cannot shrink"):
        bp.plan(model, x)


def by_mode(training: Callable[[Net, Tensor], Tensor], evaluation: Callable[[Net, Tensor], Tensor]):
    """Two layers of 8 channels, of which training runs one and evaluation the other."""
    layers = {"a": nn.Conv2d(3, 8, 1), "c": nn.Conv2d(3, 8, 1)}
    readers = {"b": nn.Conv2d(8, 4, 1), "d": nn.Conv2d(8, 4, 1), "norm": nn.BatchNorm2d(8)}
    return Net(lambda m, x: (training if m.training else evaluation)(m, x), **layers, **readers)


@pytest.mark.parametrize(
    "model",
    [
        by_mode(lambda m, x: m.b(m.a(x).relu()), lambda m, x: m.b(m.c(x).relu())),
        by_mode(lambda m, x: m.b(m.norm(m.a(x))), lambda m, x: m.d(m.norm(m.c(x)))),
    ],
)
def test_what_one_layer_reads_in_either_mode_is_one_group(model: Net):
    plan = bp.plan(model, torch.randn(2, 3, 4, 4))
    assert set(plan.groups[0].layers) == {"a", "c"} and plan.groups[0].kept == 4
