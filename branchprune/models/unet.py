"""A small U-Net: an encoder and a decoder with skip connections between them.

Source: Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation" (MICCAI 2015); convolutions are padded and have BatchNorm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        layers += [
            nn.Conv2d(before, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Two convolutions a level, max-pooling down, transposed convolutions up, concatenated skips.

    Args:
        widths: Channels of the levels, from the image's size down; at least two.
        in_channels: Channels of the input.
        out_channels: Channels of the output: of an image, or classes of a segmentation.
        sigmoid: End in a sigmoid, for images in [0, 1]; else in logits.

    Raises:
        PruneError: There are fewer than two levels.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128),
        in_channels: int = 1,
        out_channels: int = 1,
        sigmoid: bool = True,
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise PruneError(f"widths (={list(widths)}) must name at least two levels")
        self.pool = nn.MaxPool2d(2)
        self.down, self.up, self.join = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for before, width in zip([in_channels, *widths], widths, strict=False):
            self.down.append(_twice(before, width))
        for deep, width in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.up.append(nn.ConvTranspose2d(deep, width, 2, stride=2))
            self.join.append(_twice(2 * width, width))
        self.head = nn.Conv2d(widths[0], out_channels, 1)
        self.end = nn.Sigmoid() if sigmoid else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (N, out_channels, H, W) of inputs (N, in_channels, H, W).

        H and W are multiples of 2 to the power of the number of levels less one.
        """
        skips: list[Tensor] = []
        for i, level in enumerate(self.down):
            x = level(self.pool(x) if i else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        output: Tensor = self.end(self.head(x))
        return output
