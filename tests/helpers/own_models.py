"""Networks as people bring them: written for their own purpose, with no thought of pruning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class BasicBlock(nn.Module):
    """A residual block of He et al., section 4.2, with one of the shortcuts A and B."""

    def __init__(self, inputs: int, outputs: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.missing, self.option = outputs - inputs, option
        self.shortcut = nn.Sequential()
        if self.missing and option == "B":
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.missing and self.option == "A":
            half = self.missing // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.missing - half), "constant", 0)
        out += self.shortcut(x)
        return F.relu(out)


class ResNet20(nn.Module):
    """The network for CIFAR-10 of He et al., "Deep Residual Learning" (2016); width 16 there."""

    def __init__(self, option: str, width: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, outputs in enumerate((width, 2 * width, 4 * width), 1):
            blocks = nn.Sequential()
            for block in range(3):
                stride = 2 if stage > 1 and block == 0 else 1
                blocks.append(BasicBlock(inputs, outputs, stride, option))
                inputs = outputs
            self.add_module(f"layer{stage}", blocks)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))


class WaveBlock(nn.Module):
    """A gated layer of van den Oord et al., "WaveNet" (2016): tanh(filter) · sigmoid(gate)."""

    def __init__(self, stream: int, width: int, skip: int, dilation: int, chunk: bool) -> None:
        super().__init__()
        self.chunk = chunk
        self.pad = (dilation, 0)
        if chunk:
            self.both = nn.Conv1d(stream, 2 * width, 2, dilation=dilation)
        else:
            self.filter = nn.Conv1d(stream, width, 2, dilation=dilation)
            self.gate = nn.Conv1d(stream, width, 2, dilation=dilation)
        self.residual = nn.Conv1d(width, stream, 1)
        self.skip = nn.Conv1d(width, skip, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        past = F.pad(x, self.pad)
        if self.chunk:
            a, b = self.both(past).chunk(2, dim=1)
        else:
            a, b = self.filter(past), self.gate(past)
        z = torch.tanh(a) * torch.sigmoid(b)
        return x + self.residual(z), self.skip(z)


class WaveNet(nn.Module):
    """Dilated causal convolutions with a residual stream and a sum of skips."""

    def __init__(self, chunk: bool, dilations: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        self.front = nn.Conv1d(1, 8, 2)
        self.blocks = nn.ModuleList(WaveBlock(8, 6, 10, d, chunk) for d in dilations)
        self.end1, self.end2 = nn.Conv1d(10, 12, 1), nn.Conv1d(12, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(F.pad(x, (1, 0)))
        skips = []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        return self.end2(F.relu(self.end1(F.relu(sum(skips)))))


class CausalConv1d(nn.Conv1d):
    """A convolution that sees the past alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class Causal(nn.Sequential):
    """Layers of a class that pads by itself."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8), nn.ReLU()),
            *(CausalConv1d(8, 6, 2), nn.ReLU(), CausalConv1d(6, 10, 3, dilation=2), nn.ReLU()),
            *(nn.Conv1d(10, 12, 1), nn.ReLU(), nn.Conv1d(12, 4, 1)),
        )


class MLP(nn.Module):
    """Fully connected layers with LayerNorm and dropout."""

    def __init__(self, inputs: int = 9, widths: tuple[int, ...] = (16, 12)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(inputs, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(0.3)]
            inputs = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Conditioned(nn.Module):
    """Image and vector in, a dictionary out; the vector scales and shifts the channels (FiLM)."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.scale, self.shift = nn.Linear(5, 8), nn.Linear(5, 8)
        self.mask, self.feature = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 6, 3)
        self.label = nn.Linear(6, 4)

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, Tensor]:
        x = self.image(image)
        x = F.relu(x * self.scale(vector)[:, :, None, None] + self.shift(vector)[..., None, None])
        feature = F.relu(self.feature(x))
        return {"mask": self.mask(x), "label": self.label(feature.mean(dim=(2, 3)))}


class Pyramid(nn.Module):
    """Features of every scale are outputs, and go on to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(8, 6, 3, 2, 1), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(6, 10, 1), nn.ReLU())
        self.second = nn.Conv2d(10, 6, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.first(self.stem(x))
        return [first, self.second(self.inner(first))]


class Odd(nn.Module):
    """A front and a back as usual, and between them something that does not go by the book."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.a, self.b = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.back = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 10, 1), nn.ReLU(), nn.Conv2d(10, 4, 1))

    def between(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.between(self.front(x)))


class NamesWidth(Odd):
    """Regroups the channels by their number: 8 here, and two halves of 4."""

    def between(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x.view(x.size(0), 2, 4, x.size(2), x.size(3)).transpose(1, 2).reshape(x.shape)
        return self.b(F.relu(x))


class ScalesByWidth(Odd):
    """Divides by the root of a number of channels that it writes out."""

    def between(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh() / 8**0.5)


class SplitsByNumber(Odd):
    """Treats 3 of the 8 channels differently."""

    def between(self, x: Tensor) -> Tensor:
        few, many = torch.split(self.a(x), [3, 5], dim=1)
        return self.b(torch.cat([few.tanh(), many.relu()], 1))


class WeightNorm(Odd):
    """A convolution with weight norm, of Salimans and Kingma (2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.b = parametrizations.weight_norm(self.b)


class SpectralNorm(Odd):
    """A convolution with spectral norm, of Miyato et al. (2018), as in many discriminators."""

    def __init__(self) -> None:
        super().__init__()
        self.b = parametrizations.spectral_norm(self.b)


class Shared(Odd):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.b

    def between(self, x: Tensor) -> Tensor:
        return self.again(F.relu(super().between(x)))


class Recurrent(Odd):
    """One layer, applied three times."""

    def between(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for _ in range(3):
            x = x + F.relu(self.b(x))
        return x


class Standardised(Odd):
    """Buffers with one entry a channel, as for whitened features."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-0.5, 0.5, 8).view(1, 8, 1, 1))
        self.register_buffer("std", torch.linspace(0.5, 1.5, 8).view(1, 8, 1, 1))

    def between(self, x: Tensor) -> Tensor:
        return self.b(((self.a(x) - self.mean) / self.std).relu())


class LearnedScale(Odd):
    """A parameter that scales each channel, without a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 8).view(8, 1, 1))

    def between(self, x: Tensor) -> Tensor:
        return self.b(self.gamma * self.a(x).relu())
