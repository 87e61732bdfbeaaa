"""Views of unlabelled images: crops, other colours, noise; and mixtures of two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Mixing = Literal["mixup", "cutmix", "either"]
View = Callable[[Tensor, torch.Generator], Tensor]
"""Makes other images of some (N, …), by numbers that a generator draws on the CPU."""


def crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random crop of each image, as large as before, half of them mirrored.

    The border, an eighth of each side, is the image reflected.

    Args:
        images: Tensor of shape (N, C, H, W); others are returned as they are.
        generator: Draws the crops, on the CPU.
    """
    if images.dim() != 4:
        return images
    n, _, height, width = images.shape
    places = []
    for size in (height, width):
        shift = torch.randint(-(size // 8), size // 8 + 1, (n, 1), generator=generator)
        place = (torch.arange(size) + shift).abs()
        places.append(torch.where(place < size, place, 2 * size - 2 - place))
    rows, columns = places
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    flat = (rows[:, :, None] * width + columns[:, None]).flatten(1)[:, None].to(images.device)
    pixels = images.flatten(2).gather(2, flat.expand(-1, images.shape[1], -1))
    cropped: Tensor = pixels.unflatten(2, (height, width))
    return cropped


def mixtures(images: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Return images, each mixed with another by a share from Beta(α, α); see `Mixup`.

    Args:
        images: Tensor of shape (N, …).
        alpha: α; 0: none is mixed.
        generator: Draws the shares and partners, on the CPU.
    """
    if not alpha:
        return images
    share = shares(len(images), alpha, generator).to(images).view(-1, *[1] * (images.dim() - 1))
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    found: Tensor = torch.lerp(images[partner], images, share)
    return found


def cut_mixtures(images: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Return images, of each a rectangle replaced by that of another ("CutMix", Yun et al., 2019).

    The share of the image that stays comes from Beta(α, α); rectangles end at the border.

    Args:
        images: Tensor of shape (N, C, H, W); others are returned as they are.
        alpha: α; 0: none is mixed.
        generator: Draws the shares, places and partners, on the CPU.
    """
    if not alpha or images.dim() != 4:
        return images
    n, _, height, width = images.shape
    side = (1 - shares(n, alpha, generator)).sqrt()
    inside = []
    for size in (height, width):
        middle = torch.rand(n, generator=generator) * size
        distance = (torch.arange(size) + 0.5 - middle[:, None]).abs()
        inside.append(distance < (side * size / 2)[:, None])
    rectangle = (inside[0][:, :, None] & inside[1][:, None, :])[:, None].to(images.device)
    partner = torch.randperm(n, generator=generator).to(images.device)
    return torch.where(rectangle, images[partner], images)


def either_mixtures(images: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Return images mixed in one of the two ways, of which each batch draws one.

    Args:
        images: Tensor of shape (N, …).
        alpha: α; 0: none is mixed.
        generator: Draws the way, shares, places and partners, on the CPU.
    """
    way = mixtures if torch.rand((), generator=generator) < 0.5 else cut_mixtures
    return way(images, alpha, generator)


def colours(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images with other colours: each one's channels scaled, mixed and shifted at random.

    Args:
        images: Tensor of shape (N, C, H, W), of about unit variance.
        generator: Draws the colours.
    """
    n, channels = images.shape[:2]
    mixes = torch.eye(channels) + 0.3 * torch.randn(n, channels, channels, generator=generator)
    shifts = 0.5 * torch.randn(n, channels, generator=generator)
    seen = torch.einsum("ndc,nc...->nd...", mixes.to(images), images)
    return seen + shifts.to(images).view(n, channels, *[1] * (images.dim() - 2))


def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images with Gaussian noise, of each a standard deviation drawn from [0, 0.5].

    Args:
        images: Tensor of shape (N, …), of about unit variance.
        generator: Draws the noise.
    """
    size = 0.5 * torch.rand(len(images), *[1] * (images.dim() - 1), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    return images + (size * noise).to(images)


def shares(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Return numbers from Beta(α, α), shape (count,), on the CPU."""
    shape = torch.full((count,), float(alpha), dtype=torch.float32)
    first, second = (torch._standard_gamma(shape, generator=generator) for _ in range(2))
    lost = torch.maximum(first, second) <= torch.finfo(torch.float32).tiny
    if lost.any():  # of a small α: then one of them is as good as nothing beside the other
        first = torch.where(lost, torch.rand(count, generator=generator).round(), first)
    return first / (first + second)


VIEWS: dict[str, View] = {"crops": crops, "colours": colours, "noise": noisy}
MIXING: dict[Mixing, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "mixup": mixtures,
    "cutmix": cut_mixtures,
    "either": either_mixtures,
}
