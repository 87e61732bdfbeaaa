"""Losses that the standard libraries do not have in one piece."""

from __future__ import annotations

import pytorch_msssim
from torch import Tensor, nn
from torch.nn.functional import kl_div, l1_loss, log_softmax, mse_loss


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


def distillation(logits: Tensor, expected: Tensor, temperature: float | None = 4.0) -> Tensor:
    """Return how far a student's logits are from those of its teacher.

    With a temperature T: T² times the Kullback-Leibler divergence of the softened classes (Hinton,
    Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015). Without: the mean squared
    error of the logits, a regression.

    Args:
        logits: Those of the student, shape (N, classes).
        expected: Those of the teacher.
        temperature: T, or None.
    """
    if temperature is None:
        return mse_loss(logits, expected)
    soft, target = (log_softmax(z / temperature, 1) for z in (logits, expected))
    distance = kl_div(soft, target, reduction="batchmean", log_target=True)
    return temperature**2 * distance
