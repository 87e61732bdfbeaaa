"""Channel scores by the curvature of the loss: by its Hessian, or by the empirical Fisher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from branchprune.criteria.gradients import with_gradients
from branchprune.criteria.group_weights import GroupWeights, rows_by_output
from branchprune.errors import PruneError, first_line, whole
from branchprune.graph.inputs import copied
from branchprune.graph.layers import CONVOLUTIONS, TRANSPOSED
from branchprune.graph.plain_model import refuse_wrapped

BY_CHANNEL = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
"""Layers that make each channel by a part of their weight."""


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
    graded: nn.Module = field(repr=False)

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


def obd(model: nn.Module, losses: Iterable[Tensor], draws: int = 4) -> Saliency:
    """Return the criterion of optimal brain damage, by the Hessian: ½ wᵀ H w of each channel.

    LeCun, Denker and Solla (1990) propagate the diagonal of H backwards through layers that they
    know, and add up ½ h w². Here any model will do, and the weights by which a linear layer or a
    convolution makes a channel, which go together, count together: the whole block of H; of other
    parameters, such as scales of norms and gates, the diagonal. Both are the mean of
    `s w ⊙ H (s w)` over random signs s, one a channel or a weight (after Bekas, Kokiopoulou, Saad,
    "An estimator for the diagonal of a matrix", 2007).
    Signs are drawn in one module at a time, whose channels are then the only noise to each other.

    Args:
        model: The model; it is not changed.
        losses: Scalars that it has made, as of a batch each; see `fisher`.
        draws: Signs a loss and module, each a backward pass; drawn by torch's generator. Scores are
            of use from about 16 on, over all losses.

    Raises:
        PruneError: There are none, one is no finite scalar that depends on parameters of the model,
            or an operation of it has no second derivative.
    """
    whole("draws", draws, 1)
    refuse_wrapped(model)
    modules = _modules_with_weights(model)

    def blocks(
        gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]
    ) -> list[Tensor | None]:
        found: list[Tensor | None] = [None if g is None else 0 * g.detach() for g in gradients]
        for module, places in modules:
            curved = {
                i: gradient
                for i in places
                if (gradient := gradients[i]) is not None and gradient.requires_grad
            }
            weights = [parameters[i] for i in curved]
            channels = [_channels(module, weight) for weight in weights]
            for _ in range(draws if curved else 0):
                signs = [_signs(*each) for each in zip(weights, channels, strict=True)]
                products = torch.autograd.grad(
                    [*curved.values()],
                    weights,
                    [sign * weight.detach() for sign, weight in zip(signs, weights, strict=True)],
                    retain_graph=True,
                    allow_unused=True,
                )
                for i, weight, sign, product in zip(curved, weights, signs, products, strict=True):
                    if product is not None:
                        h = torch.where(weight == 0, 0, sign * product / weight.detach())
                        total = found[i]
                        found[i] = h / draws if total is None else total + h / draws
        return found

    return Saliency("obd", _graded(model, losses, blocks, twice=True))


def _modules_with_weights(model: nn.Module) -> list[tuple[nn.Module, list[int]]]:
    """Return each module with the places of its own parameters among those that are trained."""
    places = {id(each): i for i, each in enumerate(_trained(model))}
    return [
        (module, [places.pop(id(p)) for p in module.parameters(False) if id(p) in places])
        for module in model.modules()
    ]


def _channels(module: nn.Module, weight: Tensor) -> Tensor | None:
    """Return which channel each entry of a weight makes; None: each counts alone."""
    if not isinstance(module, BY_CHANNEL) or weight.dim() < 2:
        return None
    entries = rows_by_output(module, torch.arange(weight.numel()).view(weight.shape))
    channels = torch.empty(weight.numel(), dtype=torch.long)
    channels[entries] = torch.arange(len(entries))[:, None]
    return channels.view(weight.shape)


def _signs(weight: Tensor, channels: Tensor | None) -> Tensor:
    """Return random signs for the entries of a weight, one a channel."""
    count = weight.shape if channels is None else (int(channels.max()) + 1,)
    signs = torch.randint(2, count) * 2 - 1
    return (signs if channels is None else signs[channels]).to(weight.device)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [each for each in model.parameters() if each.requires_grad]


Curvature = Callable[[Sequence[Tensor | None], Sequence[Tensor]], list[Tensor | None]]


def _graded(
    model: nn.Module, losses: Iterable[Tensor], curvature: Curvature, twice: bool
) -> nn.Module:
    """Return a copy of a model with the mean curvature of some losses as its gradients."""
    refuse_wrapped(model)
    if not isinstance(losses, Iterable) or (isinstance(losses, Tensor) and not losses.dim()):
        kind = type(losses).__name__
        raise PruneError(f"losses (a {kind}) must be several scalars, such as [loss]")
    parameters = _trained(model)
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
    for parameter, each in zip(_trained(graded), sums, strict=True):
        parameter.grad = None if each is None else each / count
    return graded
