"""Small networks, and the computations by other means that the tests compare with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import branchprune as bp
from branchprune.blending.projections import LinearEnd
from branchprune.graph.fast_path import without_fast_path


class Net(nn.Module):
    """Layers given by name, and what to do with them and the inputs."""

    def __init__(self, run: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def vgg(widths: Sequence[int] = (8, 12, 16), classes: int = 5) -> nn.Sequential:
    """Conv, BatchNorm, ReLU, max-pooling, …, and two fully connected layers; for 8x8 images."""
    layers: list[nn.Module] = []
    before = 3
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width)]
        layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        before = width
    size = 8 >> len(widths)
    layers += [nn.Flatten(), nn.Linear(before * size * size, 20), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(20, classes))


class Residual(nn.Module):
    """Two convolutions beside a shortcut, with an in-place addition and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.down: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.down = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.down(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += shortcut
        return self.relu(x)


def resnet() -> nn.Sequential:
    """A stem, two stages of residual blocks and a classifier."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(Residual(8, 8), Residual(8, 8), Residual(8, 12, 2), Residual(12, 12)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)),
    )


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.adaptive_avg_pool2d(x, 1)
        return x * self.up(F.relu(self.down(gate))).sigmoid()


def scramble(module: nn.Module, seed: int = 1) -> nn.Module:
    """Give every parameter and every running statistic values without structure, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif name.endswith("running_mean"):
                tensor.copy_(0.3 * noise)
            elif tensor.is_floating_point() and name.rpartition(".")[2] != "alphas":
                tensor.add_(0.2 * noise)
    return module


def relative(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference over the largest expected value."""
    assert expected.shape == found.shape
    return float((expected - found).detach().abs().max() / expected.detach().abs().max())


def matrix(end: LinearEnd) -> Tensor:
    """Return a linear end as one dense matrix over all entries of the channel dimension."""
    blocks = []
    for piece, weight in end.each():
        dense = torch.eye(piece.wide, dtype=torch.float64)
        if weight is not None:
            dense = torch.block_diag(*weight.detach().double().chunk(piece.blocks))
        blocks.append(torch.kron(dense, torch.eye(piece.repeat, dtype=torch.float64)))
    return torch.block_diag(*blocks)


class Between(nn.Module):
    """A layer between two dense matrices on its channels."""

    def __init__(self, layer: nn.Module, before: Tensor | None, behind: Tensor | None) -> None:
        super().__init__()
        self.layer, self.before, self.behind = layer, before, behind
        self.dim = -1 if isinstance(layer, nn.Linear) else 1

    def forward(self, x: Tensor) -> Tensor:
        return self._times(self.behind, self.layer(self._times(self.before, x)))

    def _times(self, by: Tensor | None, x: Tensor) -> Tensor:
        if by is None:
            return x
        return (
            torch.tensordot(x, by.to(x.dtype), dims=([self.dim], [1]))
            .movedim(-1, self.dim)
            .contiguous()
        )


def put_everywhere(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module at each path at which a model has that of a name."""
    old = model.get_submodule(name)
    named = [path for path, m in model.named_modules(remove_duplicate=False) if m is old]
    for path in named:
        model.set_submodule(path, new)


def spelled_out(blended: bp.Blended) -> nn.Module:
    """Return what α = 0 stands for, in the user's own class and with no tracing or folding.

    Every wide layer stays as it is, between explicit matrices; every norm is its twin, and so is
    every tensor that forward itself reads.
    """
    model = copy.deepcopy(blended.model)
    reduce = {k: m for k, m in blended.reduce.named_modules() if isinstance(m, LinearEnd)}
    expand = {k: m for k, m in blended.expand.named_modules() if isinstance(m, LinearEnd)}
    structure = blended.plan.structure
    for name, layer in structure.linears.items():
        before, behind = expand.get(layer.expand), reduce.get(name)
        matrices = [None if end is None else matrix(end) for end in (before, behind)]
        put_everywhere(model, name, Between(model.get_submodule(name), *matrices))
    for name in (*structure.channelwise, *structure.twins):
        try:
            twin = blended.twin.get_submodule(name)
        except AttributeError:
            continue
        put_everywhere(model, name, copy.deepcopy(twin))
    twins = {**dict(blended.twin.named_parameters()), **dict(blended.twin.named_buffers())}
    for name in structure.parameters.keys() & twins.keys():
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, copy.deepcopy(twins[name]))
    return model


def counted_macs(model: Callable[[Tensor], object], x: Tensor) -> int:
    """Return the multiply-adds of convolutions and matrix products, as PyTorch counts them.

    Attention is made of products here: torch 2.11 does not count what it fuses on a CPU.
    """
    with (
        torch.no_grad(),
        without_fast_path(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(x)
    return counter.get_total_flops() // 2
