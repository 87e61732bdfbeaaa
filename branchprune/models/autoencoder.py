"""The RGB autoencoder of the paper's table 2."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class Autoencoder(nn.Module):
    """A convolutional autoencoder: H x W x channels → H/8 x W/8 x bottleneck → back.

    Encoder stages end in a max-pooling; decoder stages begin with a transposed convolution 2x2.
    The last convolution has neither BatchNorm nor ReLU but a sigmoid: images are in [0, 1], and a
    ReLU would have no gradient where it starts below 0.

    Args:
        encoder: Output channels of the convolutions, stage by stage.
        decoder: Output channels, stage by stage; the first of each is the transposed convolution.
        channels: Channels of the image.
    """

    def __init__(
        self,
        encoder: Sequence[Sequence[int]] = ((64, 64), (128, 128), (128, 128, 128)),
        decoder: Sequence[Sequence[int]] = ((128, 128, 128, 128), (128, 128, 64), (64, 64)),
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential()
        width = channels
        for stage in encoder:
            for outputs in stage:
                self.encoder.extend(_convolution(width, outputs))
                width = outputs
            self.encoder.append(nn.MaxPool2d(2))
        self.decoder = nn.Sequential()
        for first, *rest in decoder:
            self.decoder.append(nn.ConvTranspose2d(width, first, 2, stride=2))
            width = first
            for outputs in rest:
                self.decoder.extend(_convolution(width, outputs))
                width = outputs
        self.decoder.append(nn.Conv2d(width, channels, 3, padding=1))
        self.decoder.append(nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return reconstructions of images in [0, 1], shape (N, channels, H, W)."""
        reconstruction: Tensor = self.decoder(self.encoder(x))
        return reconstruction
