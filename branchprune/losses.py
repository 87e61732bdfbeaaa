"""Losses that the standard libraries do not have in one piece."""

from __future__ import annotations

import pytorch_msssim
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, l1_loss, log_softmax, mse_loss

from branchprune.calls import copied
from branchprune.errors import PruneError


class L1SSIM(nn.Module):
    """Weighted L1 plus structural dissimilarity, the paper's loss for the autoencoder.

    Args:
        l1_weight: Weight of the mean absolute error.
        ssim_weight: Weight of 1 − SSIM.
        window: Size of the SSIM window in pixels, odd and at most the image's size.
    """

    def __init__(self, l1_weight: float = 1.0, ssim_weight: float = 1.0, window: int = 11) -> None:
        super().__init__()
        self.l1_weight, self.ssim_weight, self.window = l1_weight, ssim_weight, window

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of images in [0, 1], shape (N, C, H, W)."""
        loss: Tensor = self.l1_weight * l1_loss(output, target)
        return loss + self.ssim_weight * (1 - self.ssim(output, target))

    def ssim(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean structural similarity of images in [0, 1]."""
        value: Tensor = pytorch_msssim.ssim(output, target, data_range=1.0, win_size=self.window)
        return value


class Distillation(nn.Module):
    """How far a network's logits are from those of its teacher.

    With a temperature T: T² times the Kullback-Leibler divergence of the softened classes (Hinton,
    Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015). Without: the mean squared
    error of the logits, a regression.

    The teacher is a copy of the network as it is when this is made, in evaluation mode. It is no
    part of the module: no optimizer, checkpoint or `plan` sees it.

    Args:
        network: The network to copy.
        temperature: T, or None.
    """

    def __init__(self, network: nn.Module, temperature: float | None = 4.0) -> None:
        super().__init__()
        if temperature is not None and temperature <= 0:
            raise PruneError(f"temperature (={temperature}) must be positive, or None")
        self.temperature = temperature
        self._hidden = [copied(network).eval().requires_grad_(False)]

    def forward(self, logits: Tensor, x: Tensor) -> Tensor:
        """Return the distance, for logits (N, classes) that a student gave for the input x."""
        with torch.no_grad():
            expected = self._hidden[0].to(x.device)(x)
        if self.temperature is None:
            return mse_loss(logits, expected)
        soft, target = (log_softmax(z / self.temperature, 1) for z in (logits, expected))
        distance = kl_div(soft, target, reduction="batchmean", log_target=True)
        return self.temperature**2 * distance
