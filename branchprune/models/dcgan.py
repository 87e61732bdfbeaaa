"""A deep convolutional generative adversarial network (DCGAN) for small images.

Source: Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks" (ICLR 2016).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError


class Generator(nn.Module):
    """Noise to images: transposed convolutions 4x4 with BatchNorm and ReLU, and a sigmoid.

    The first layer projects the noise to 4x4 pixels, each further one doubles height and width:
    n widths give images of 4 · 2ⁿ pixels. Images are in [0, 1] like those of the data modules, so
    the last layer is a sigmoid where the paper has a tanh.

    Args:
        latent: Channels of the noise.
        widths: Output channels of all layers but the last.
        channels: Channels of the image.

    Raises:
        PruneError: `widths` is empty.
    """

    def __init__(
        self, latent: int = 100, widths: Sequence[int] = (128, 64), channels: int = 1
    ) -> None:
        super().__init__()
        if not widths:
            raise PruneError("widths (=[]) must name at least one layer")
        self.latent = latent
        self.layers = nn.Sequential()
        before = latent
        for i, width in enumerate(widths):
            stride, padding = (2, 1) if i else (1, 0)
            self.layers.extend(
                [
                    nn.ConvTranspose2d(before, width, 4, stride, padding, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
            )
            before = width
        self.layers.extend([nn.ConvTranspose2d(before, channels, 4, 2, 1), nn.Sigmoid()])
        self.apply(_initialise)

    def forward(self, noise: Tensor) -> Tensor:
        """Return images in [0, 1], shape (N, channels, H, W), of noise (N, latent, 1, 1)."""
        images: Tensor = self.layers(noise)
        return images


class Discriminator(nn.Module):
    """Images to logits: convolutions 4x4 of stride 2 with BatchNorm and LeakyReLU.

    n widths halve height and width n times; what is left, 4x4 pixels of an image of 4 · 2ⁿ, is
    read by one convolution. The first layer has no BatchNorm, as in the paper.

    Args:
        widths: Output channels of all layers but the last.
        channels: Channels of the image.

    Raises:
        PruneError: `widths` is empty.
    """

    def __init__(self, widths: Sequence[int] = (64, 128), channels: int = 1) -> None:
        super().__init__()
        if not widths:
            raise PruneError("widths (=[]) must name at least one layer")
        self.layers = nn.Sequential()
        before = channels
        for i, width in enumerate(widths):
            self.layers.append(nn.Conv2d(before, width, 4, 2, 1, bias=i == 0))
            if i:
                self.layers.append(nn.BatchNorm2d(width))
            self.layers.append(nn.LeakyReLU(0.2, inplace=True))
            before = width
        self.layers.extend([nn.Conv2d(before, 1, 4), nn.Flatten()])
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, 1) that images (N, channels, H, W) are real."""
        logits: Tensor = self.layers(images)
        return logits


class DCGAN(nn.Module):
    """Generator and discriminator as one network, so that both can be pruned in one training.

    ```python
    gan = DCGAN()
    plan = bp.plan(gan, images)  # both; `gan.generator` alone works too
    ```

    The discriminator is called once, on generated and real images together: a layer that is called
    twice would stay as it is.

    Args:
        latent: Channels of the noise.
        generator_widths: See `Generator`.
        discriminator_widths: See `Discriminator`; as many as the generator's.
        channels: Channels of the image.

    Raises:
        PruneError: The two lists of widths have different lengths.
    """

    def __init__(
        self,
        latent: int = 100,
        generator_widths: Sequence[int] = (128, 64),
        discriminator_widths: Sequence[int] = (64, 128),
        channels: int = 1,
    ) -> None:
        super().__init__()
        if len(generator_widths) != len(discriminator_widths):
            raise PruneError(
                f"generator_widths (={list(generator_widths)}) and discriminator_widths "
                f"(={list(discriminator_widths)}) must be equally many: both say the image's size"
            )
        self.generator = Generator(latent, generator_widths, channels)
        self.discriminator = Discriminator(discriminator_widths, channels)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Generate images and judge them together with real ones.

        Args:
            images: Real images in [0, 1], shape (N, channels, H, W).
            noise: Shape (M, latent, 1, 1); None: N standard normal vectors.

        Returns:
            Generated images (M, channels, H, W), their logits (M, 1), logits of the real images
            (N, 1).
        """
        if noise is None:
            noise = images.new_empty(images.size(0), self.generator.latent, 1, 1).normal_()
        generated = self.generator(noise)
        logits = self.discriminator(torch.cat([generated, images]))
        count = noise.size(0)
        return generated, logits[:count], logits[count:]


def _initialise(module: nn.Module) -> None:
    """Draw weights as the paper does: standard deviation 0.02, BatchNorm's around 1."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
