"""How far the outputs of a model are from those of the dense one, as one number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from branchprune.errors import PruneError


def output_change(dense: Sequence[Tensor], small: Sequence[Tensor]) -> float:
    """Return how much outputs have changed, 0 where they are the same.

    Of vectors (N, k), which may be logits of classes, it is the mean Kullback-Leibler divergence of
    their softmax; of others the squared error as a share of the variance of the dense outputs. Of
    several outputs it is the mean.

    Args:
        dense: The outputs of the dense model, floating point.
        small: Those of the other, of the same shapes.
    """
    pairs = [*zip(dense, small, strict=True)]
    return sum(_change(wanted.double(), found.double()) for wanted, found in pairs) / len(pairs)


def _change(wanted: Tensor, found: Tensor) -> float:
    if wanted.shape != found.shape:
        shapes = f"{tuple(wanted.shape)} to {tuple(found.shape)}"
        raise PruneError(
            f"target needs outputs of one shape, which here changes from {shapes}: plan a part "
            "with `inside`"
        )
    if not wanted.numel():
        raise PruneError("batches hold one without an example")
    if not wanted.dim():
        wanted, found = wanted[None], found[None]
    if wanted.dim() == 2 and wanted.shape[1] > 1:
        logs = found.log_softmax(1)
        divergence = torch.nn.functional.kl_div(
            logs, wanted.log_softmax(1), log_target=True, reduction="batchmean"
        )
        return float(divergence)
    spread = (
        (wanted - wanted.mean(0)).square().mean() if len(wanted) > 1 else wanted.square().mean()
    )
    return float((found - wanted).square().mean() / spread.clamp_min(1e-12))
