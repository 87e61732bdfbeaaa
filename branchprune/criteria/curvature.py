"""Channel scores by the curvature of the loss: the diagonal of its Hessian, or of the Fisher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from branchprune.criteria.gradients import with_gradients
from branchprune.criteria.group_weights import GroupWeights
from branchprune.errors import PruneError, first_line, whole
from branchprune.graph.inputs import copied


@dataclass(frozen=True)
class Saliency:
    """A criterion: how much the loss rises without each channel, by its curvature alone.

    It is `½ Σ h w²` over all weights of a channel: its rows in every layer that makes it, its scale
    in every norm, and their biases (optimal brain damage, LeCun, Denker, Solla, 1990, summed up
    over a channel). The gradient itself is held to be 0, as where training has ended.

    Attributes:
        name: What errors call it.
        graded: A copy of the model, with h in place of the gradient of each parameter.
    """

    name: str
    graded: nn.Module

    def __call__(self, group: GroupWeights) -> Tensor:
        """Return the scores, shape (C,).

        Raises:
            PruneError: The loss does not depend on the weights of the group.
        """
        pairs = with_gradients(group, self.name, "let the losses depend on them, or exclude it")
        return (
            torch.stack([(h * weight.double().square()).sum(1) for weight, h in pairs]).sum(0) / 2
        )


def fisher(model: nn.Module, losses: Iterable[Tensor]) -> Saliency:
    """Return the criterion whose h is the diagonal of the empirical Fisher information.

    ```python
    model.eval()
    losses = (F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) for i in range(len(x)))
    blended = bp.attach(model, plan, init=bp.fisher(model, losses))
    ```

    It is the mean of the squared gradients (Theis, Korshunova, Tejani, Huszár, "Faster gaze
    prediction with dense networks and Fisher pruning", 2018), which near a minimum is that of the
    Hessian; they take it of one gate a channel, here it is that of each weight.

    Args:
        model: The model; it is not changed.
        losses: Finite scalars that it has made, of one example each, such as a generator, which has
            them one by one, or a tensor of shape (N,).

    Raises:
        PruneError: There are none, or one is no finite scalar that depends on parameters of the
            model.
    """

    def squares(gradients: Sequence[Tensor | None], _: Sequence[Tensor]) -> list[Tensor | None]:
        return [None if each is None else each.double().square() for each in gradients]

    return Saliency("fisher", _graded(model, losses, squares, twice=False))


def obd(model: nn.Module, losses: Iterable[Tensor], draws: int = 8) -> Saliency:
    """Return the criterion whose h is the diagonal of the Hessian (optimal brain damage).

    LeCun, Denker and Solla (1990) propagate it backwards through layers that they know; here it is
    estimated for any model by the mean of `z ⊙ H z` over random signs z (Bekas, Kokiopoulou, Saad,
    "An estimator for the diagonal of a matrix", 2007), one more backward pass each.

    Args:
        model: The model; it is not changed.
        losses: Scalars that it has made, as of a batch each; see `fisher`.
        draws: Signs z a loss, drawn by torch's generator.

    Raises:
        PruneError: There are none, one is no finite scalar that depends on parameters of the model,
            or an operation of it has no second derivative.
    """
    whole("draws", draws, 1)

    def diagonal(
        gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]
    ) -> list[Tensor | None]:
        found: list[Tensor | None] = [None if g is None else 0 * g.detach() for g in gradients]
        curved = [each for each in gradients if each is not None and each.requires_grad]
        places = [i for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        for _ in range(draws if curved else 0):
            signs = [torch.randint_like(each, 2) * 2 - 1 for each in parameters]
            products = torch.autograd.grad(
                curved, parameters, [signs[i] for i in places], retain_graph=True, allow_unused=True
            )
            for i, product in enumerate(products):
                total = found[i]
                if product is not None and total is not None:
                    found[i] = total + signs[i] * product / draws
        return found

    return Saliency("obd", _graded(model, losses, diagonal, twice=True))


Curvature = Callable[[Sequence[Tensor | None], Sequence[Tensor]], list[Tensor | None]]


def _graded(
    model: nn.Module, losses: Iterable[Tensor], curvature: Curvature, twice: bool
) -> nn.Module:
    """Return a copy of a model with the mean curvature of some losses as its gradients."""
    if not isinstance(losses, Iterable) or (isinstance(losses, Tensor) and not losses.dim()):
        kind = type(losses).__name__
        raise PruneError(f"losses (a {kind}) must be several scalars, such as [loss]")
    parameters = [each for each in model.parameters() if each.requires_grad]
    sums: list[Tensor | None] = [None] * len(parameters)
    count = 0
    for count, loss in enumerate(losses, start=1):
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            told = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise PruneError(
                f"losses[{count - 1}] ({told}) must be a scalar that depends on the parameters"
            )
        if not loss.isfinite().all():
            raise PruneError(f"losses[{count - 1}] (={loss.item()}) must be finite")
        try:
            # What several losses have in common is kept, as long as they are.
            gradients = torch.autograd.grad(
                loss.reshape(()),
                parameters,
                retain_graph=True,
                create_graph=twice,
                allow_unused=True,
            )
            found = curvature(gradients, parameters)
        except RuntimeError as error:
            raise PruneError(f"losses[{count - 1}]: {first_line(error)}") from error
        for i, each in enumerate(found):
            if each is not None:
                before = sums[i]
                sums[i] = each.detach().double() if before is None else before + each.detach()
        del loss, gradients, found  # the next is made without what this one keeps
    if not count:
        raise PruneError("losses must be some scalars that the model has made: there are none")
    graded = copied(model).double()  # squares of small gradients are 0 in half precision
    theirs = [each for each in graded.parameters() if each.requires_grad]
    for parameter, each in zip(theirs, sums, strict=True):
        parameter.grad = None if each is None else each / count
    return graded
