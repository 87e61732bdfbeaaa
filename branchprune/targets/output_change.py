"""How far the outputs of a model are from those of the dense one, as one number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from branchprune.errors import PruneError

Outputs = Sequence[Sequence[Tensor]]
"""Those of each batch, floating point."""
OF_LOGITS = "the Kullback-Leibler divergence of the softmax, in nats"
OF_OTHERS = "the squared error, as a share of the variance of the outputs"


class OutputChange:
    """The change of outputs on some batches, whatever their sizes, beside those of the dense model.

    Of vectors (N, k), k > 1, which may be logits of classes, it is the mean Kullback-Leibler
    divergence of their softmax; of others the squared error as a share of the variance of the dense
    outputs over all examples. Of several outputs it is the mean.

    Args:
        dense: The outputs of the dense model.

    Raises:
        PruneError: A batch has no example, or other outputs than the rest.
    """

    def __init__(self, dense: Outputs) -> None:
        self.dense = [[_examples(each) for each in batch] for batch in dense]
        if not all(each.numel() for batch in self.dense for each in batch):
            raise PruneError("batches hold one without an example")
        if len({*map(len, self.dense)}) > 1:
            raise PruneError("batches give different numbers of outputs")
        self.sizes = [*map(_size, zip(*self.dense, strict=True))]

    @property
    def kind(self) -> str:
        """What is measured, in words."""
        outputs = self.dense[0]
        kinds = [OF_LOGITS if _are_logits(each) else OF_OTHERS for each in outputs]
        return " and ".join(dict.fromkeys(kinds)) + ", on average" * (len(outputs) > 1)

    def of(self, small: Outputs) -> float:
        """Return how much other outputs differ, 0 where they are the same.

        Args:
            small: They, of the same shapes.

        Raises:
            PruneError: They are of others.
        """
        sums = [0.0] * len(self.sizes)
        for wanted, found in zip(self.dense, small, strict=True):
            for i, pair in enumerate(zip(wanted, map(_examples, found), strict=True)):
                sums[i] += _difference(*pair)
        changes = [found / size for found, size in zip(sums, self.sizes, strict=True)]
        return sum(changes) / len(changes)


def _examples(output: Tensor) -> Tensor:
    """Return an output in float64, with a first dimension for the examples."""
    return (output if output.dim() else output[None]).double()


def _are_logits(output: Tensor) -> bool:
    return output.dim() == 2 and output.shape[1] > 1


def _size(batches: Sequence[Tensor]) -> float:
    """Return what differences of an output, summed over all batches, are divided by."""
    if _are_logits(batches[0]):
        return sum(map(len, batches))
    count = sum(map(len, batches))
    mean: Tensor | float = 0.0
    if len({each.shape[1:] for each in batches}) > 1:  # images of several sizes
        mean = float(sum(each.sum() for each in batches)) / sum(map(Tensor.numel, batches))
    elif count > 1:
        mean = torch.stack([each.sum(0) for each in batches]).sum(0) / count
    return max(sum(float((each - mean).square().sum()) for each in batches), 1e-12)


def _difference(wanted: Tensor, found: Tensor) -> float:
    if wanted.shape != found.shape:
        shapes = f"{tuple(wanted.shape)} to {tuple(found.shape)}"
        raise PruneError(
            f"target needs outputs of one shape, which here changes from {shapes}: plan a part "
            "with `inside`"
        )
    if not _are_logits(wanted):
        return float((found - wanted).square().sum())
    logs = found.log_softmax(1), wanted.log_softmax(1)
    divergence = torch.nn.functional.kl_div(*logs, log_target=True, reduction="sum")
    return float(divergence)
