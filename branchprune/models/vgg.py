"""VGG in the form used for small images: BatchNorm, and one fully connected layer as head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Convolutions 3x3 with BatchNorm and ReLU in stages, a max-pooling after each.

    Args:
        stages: Output channels of each convolution, stage by stage; the default is VGG-16.
        classes: Number of classes.
        in_channels: Channels of the image.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]] = VGG16_STAGES,
        classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in stages:
            for width in stage:
                layers += [
                    nn.Conv2d(in_channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                in_channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(in_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, in_channels, H, W)."""
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits
