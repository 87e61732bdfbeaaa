"""ResNet in the form used for small images: three stages of basic blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from branchprune.errors import PruneError


class ResNet(nn.Module):
    """A convolution 3x3, stages of basic blocks, global pooling (He et al., 2016, for CIFAR-10).

    Every stage but the first halves height and width. Where a block changes the width, its shortcut
    is a convolution 1x1 (option B).

    Args:
        depth: Layers with weights, shortcuts aside: 2 a block, and 2; ResNet-20 and ResNet-56 have
            3 and 9 blocks a stage.
        widths: Channels of each stage.
        classes: Number of classes.
        in_channels: Channels of the image.

    Raises:
        PruneError: The blocks of such a depth cannot be shared out equally.
    """

    def __init__(
        self,
        depth: int = 20,
        widths: Sequence[int] = (16, 32, 64),
        classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        blocks, left = divmod(depth - 2, 2 * len(widths))
        if left or blocks < 1:
            raise PruneError(
                f"depth (={depth}) must be 2 and {2 * len(widths)} for each block of all "
                f"{len(widths)} stages, such as {2 + 6 * len(widths)}"
            )
        width = widths[0]
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stages = nn.Sequential()
        for stage, outputs in enumerate(widths):
            strides = [2 if stage else 1, *[1] * (blocks - 1)]
            made = []
            for stride in strides:
                made.append(BasicBlock(width, outputs, stride))
                width = outputs
            self.stages.append(nn.Sequential(*made))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, in_channels, H, W)."""
        x = self.stages(F.relu(self.bn(self.conv(x))))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


class BasicBlock(nn.Module):
    """Two convolutions 3x3 with BatchNorm beside a shortcut.

    Args:
        inputs: Channels before it.
        outputs: Channels behind it.
        stride: Of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
