"""What can be done when a narrow model has learnt: weights averaged, norms and ends fitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from branchprune.blending.bn_recalibration import Inputs, batch_norms, reestimate
from branchprune.blending.fit_expand import products, write_fit
from branchprune.few_images.head import reading
from branchprune.few_images.start import RIDGE
from branchprune.few_images.student import Student
from branchprune.graph.inputs import training_mode


class Averaging:
    """The mean of weights over the last steps; called after each, as `Progress`.

    Args:
        weights: What is averaged.
        share: Of all steps those that count.
    """

    def __init__(self, weights: Sequence[Tensor], share: float) -> None:
        self.weights, self.share = weights, share
        self.means: list[Tensor] = []
        self.count = 0

    def __call__(self, step: int, steps: int, loss: float) -> None:
        """Take the weights after a step into the mean, if it is one of the last."""
        if step <= steps * (1 - self.share):
            return
        self.count += 1
        self.means = self.means or [weight.detach().clone() for weight in self.weights]
        for mean, weight in zip(self.means, self.weights, strict=True):
            mean.lerp_(weight.detach(), 1 / self.count)

    def apply(self) -> None:
        """Write the means into the weights."""
        with torch.no_grad():
            for weight, mean in zip(self.weights, self.means, strict=True) if self.count else ():
                weight.copy_(mean)


def recalibrate(model: nn.Module, batches: Iterator[Tensor], count: int) -> None:
    """Give the norms of a model the mean statistics of some batches.

    Args:
        model: The model.
        batches: Images.
        count: How many batches; 0: nothing is done.
    """
    if count:
        calls: Iterator[Inputs] = (((batch,), {}) for batch in islice(batches, count))
        norms = batch_norms(model)
        with torch.no_grad(), training_mode(model, False):
            reestimate(norms, calls, lambda call: model(*call[0]))


def refit(student: Student, dense: nn.Module, batches: Iterator[Tensor], count: int) -> None:
    """Fit the ends before the head once more by least squares, in evaluation mode.

    Args:
        student: The student.
        dense: The dense model.
        batches: Images.
        count: How many batches; 0: nothing is done.
    """
    seen = [*islice(batches, count)]
    with torch.no_grad(), training_mode(student.model, False), training_mode(dense, False):
        for path, end in student.ends.items() if seen else ():
            found = [
                products(end, narrow, wide, layer)
                for layer in student.head
                if student.head[layer] == path
                for images in seen
                for narrow, wide in _pairs(student.model, dense, layer, images)
            ]
            sums = [
                (torch.stack(squares).sum(0), torch.stack(mixed).sum(0))
                for squares, mixed in (
                    zip(*piece, strict=True) for piece in zip(*found, strict=True)
                )
            ]
            write_fit(end, sums, RIDGE, path)


def _pairs(
    narrow: nn.Module, dense: nn.Module, layer: str, images: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what reaches a layer's end in the narrow model and what it reads in the dense one.

    Of each call: a head may be shared by several levels of features.
    """
    with reading(narrow, [layer], first=True) as found, reading(dense, [layer]) as wanted:
        narrow(images)
        dense(images)
    return zip(found[layer], wanted[layer], strict=True)
