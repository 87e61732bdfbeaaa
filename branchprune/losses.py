"""Losses that the standard libraries do not have in one piece."""

from __future__ import annotations

import pytorch_msssim
from torch import Tensor, nn
from torch.nn.functional import l1_loss


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
