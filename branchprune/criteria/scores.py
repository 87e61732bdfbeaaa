"""Channel scores: which channels of a group the branch starts from.

A criterion is a function of a `GroupWeights` that returns one score a channel, shape (C,); the
channels with the highest scores are selected. With a selection, α = 0 at once *is* classic
pruning by that criterion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from branchprune.criteria.input_statistics import Reading
from branchprune.criteria.twin_rows import rows_of_twins
from branchprune.errors import PruneError
from branchprune.graph.structure import Piece, Pieces, Structure


@dataclass(frozen=True)
class GroupWeights:
    """The weights that make the channels of one group.

    Attributes:
        name: Name of the group.
        width: Number of channels, C.
        producers: For each layer that makes the channels, its weight as a (C, n) matrix: row c
            makes channel c.
        norms: For each norm that scales the channels, its weight, shape (C,).
        biases: The biases of these layers and norms, those there are, shape (C, n).
        producer_gradients: The gradient of each of `producers`, None where there is none.
        norm_gradients: The gradient of each of `norms`, None where there is none.
        bias_gradients: The gradient of each of `biases`, None where there is none.
        readings: What layers read of the channels, where `attach` was given batches.
        kept: How many channels will be kept.
        ends: Whether no layer reads the channels: they end in a product, as query and key.
    """

    name: str
    width: int
    producers: tuple[Tensor, ...]
    norms: tuple[Tensor, ...]
    biases: tuple[Tensor, ...] = ()
    producer_gradients: tuple[Tensor | None, ...] = ()
    norm_gradients: tuple[Tensor | None, ...] = ()
    bias_gradients: tuple[Tensor | None, ...] = ()
    readings: tuple[Reading, ...] = ()
    kept: int = 0
    ends: bool = False


Criterion = Callable[[GroupWeights], Tensor]


def l1(group: GroupWeights) -> Tensor:
    """Return the L1 norm of the weights that make each channel (Li et al., 2017), shape (C,)."""
    return torch.stack([weight.abs().sum(1) for weight in group.producers]).sum(0)


def l2(group: GroupWeights) -> Tensor:
    """Return the L2 norm of the weights that make each channel, shape (C,)."""
    return torch.stack([weight.square().sum(1) for weight in group.producers]).sum(0).sqrt()


def bn_scale(group: GroupWeights) -> Tensor:
    """Return how much the norms scale each channel (network slimming, Liu et al., 2017).

    Args:
        group: The weights. |γ| adds up over all its norms.

    Returns:
        The scores, shape (C,).

    Raises:
        PruneError: The group has no norm with a scale.
    """
    if not group.norms:
        raise PruneError(f"init 'bn_scale' needs a norm with a weight behind {group.name}")
    return torch.stack([scale.abs() for scale in group.norms]).sum(0)


def geometric_median(group: GroupWeights) -> Tensor:
    """Return how far each channel's weights are from all others (FPGM, He et al., 2019).

    A filter near the geometric median of all can be replaced by the others.

    Args:
        group: The weights. A channel that several layers make is the concatenation of its rows.

    Returns:
        The sums of the Euclidean distances, shape (C,).
    """
    rows = torch.cat(group.producers, 1).double()
    return torch.cdist(rows, rows).sum(1)


def taylor(group: GroupWeights) -> Tensor:
    """Return how much the loss changes without each channel (Molchanov et al., 2019, eq. 8).

    It is `(Σ w · ∂L/∂w)²`, to first order, over all weights of a channel together: its rows in
    every layer that makes it, its scale in every norm, and their biases. (Before a norm that is
    in training mode the rows alone add up to 0, since the norm undoes their scale.) The gradients
    are those of the model that `attach` is given, of several batches their sum; a weight without
    one counts as 0.

    Args:
        group: The weights and their gradients.

    Returns:
        The scores, shape (C,).

    Raises:
        PruneError: There are no gradients.
    """
    weights = [*group.producers, *(scale[:, None] for scale in group.norms), *group.biases]
    gradients = [*group.producer_gradients]
    gradients += [None if g is None else g[:, None] for g in group.norm_gradients]
    gradients += group.bias_gradients
    changes = [
        (weight.double() * gradient).sum(1)
        for weight, gradient in zip(weights, gradients, strict=False)
        if gradient is not None
    ]
    if not changes:
        raise PruneError(
            f"init 'taylor' needs gradients of {group.name}: call backward on the loss of some "
            "batches before attach"
        )
    return torch.stack(changes).sum(0).square()


def random_choice(group: GroupWeights) -> Tensor:
    """Return random scores, shape (C,): the control of every other criterion."""
    return torch.rand(group.width)


def select(scores: Tensor, kept: int, blocks: int, strata: int = 1) -> Tensor:
    """Return the indices of the best channels, in order, equally many from each block.

    Args:
        scores: One score a channel, shape (C,).
        kept: Number of channels to keep; divisible by `blocks`.
        blocks: Number of blocks that C falls into.
        strata: Number of parts that a block falls into, from which as equally many are taken as
            the numbers allow.
    """
    chosen = []
    for block, values in enumerate(scores.chunk(blocks)):
        share, start = kept // blocks, block * len(values)
        for i in range(strata):
            first, last = (len(values) * k // strata for k in (i, i + 1))
            quota = share * (i + 1) // strata - share * i // strata
            chosen.append(values[first:last].topk(quota).indices.sort().values + start + first)
    return torch.cat(chosen).cpu()


def rows_by_output(layer: nn.Module, weight: Tensor | None = None) -> Tensor:
    """Return a layer's weight, or its gradient, as a (C, n) matrix, a row an output channel."""
    rows = layer.weight if weight is None else weight
    assert isinstance(rows, Tensor)
    rows = rows.detach()
    if getattr(layer, "transposed", False):
        groups = int(getattr(layer, "groups", 1))
        rows = rows.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return rows.flatten(1)


def scored(criterion: Criterion, weights: GroupWeights, argument: str) -> Tensor:
    """Return the scores of the channels of a group, shape (C,).

    Args:
        criterion: The criterion.
        weights: The group.
        argument: What errors call the criterion.

    Raises:
        PruneError: What it returns are no such scores.
    """
    scores = criterion(weights)
    name, width = weights.name, weights.width
    if not isinstance(scores, Tensor) or scores.shape != (width,):
        shape = tuple(getattr(scores, "shape", ()))
        raise PruneError(f"{argument} returned scores of shape {shape} for {name} ({width},)")
    if scores.isnan().any():
        raise PruneError(f"{argument} returned NaN scores for {name}")
    return scores


def group_weights(
    model: nn.Module,
    structure: Structure,
    index: int,
    graded: nn.Module,
    readings: Sequence[Reading] = (),
    kept: int = 0,
) -> GroupWeights:
    """Collect the weights that make the channels of a group.

    Args:
        model: The model.
        structure: Its structure.
        index: The group.
        graded: The same model with the gradients, which copies lack.
        readings: What layers read of the group.
        kept: How many of its channels will be kept.
    """
    producers, norms, biases = [], [], []
    producer_gradients, norm_gradients, bias_gradients = [], [], []

    def add_bias(name: str, start: int, piece: Piece) -> None:
        bias = getattr(model.get_submodule(name), "bias", None)
        if isinstance(bias, Tensor):
            gradient = _gradient(graded, name, "bias")
            biases.append(_entries(bias.detach(), start, piece))
            found = None if gradient is None else _entries(gradient, start, piece)
            bias_gradients.append(found)

    for layer in structure.linears.values():
        for start, piece in _runs(layer.outputs, index):
            module, gradient = model.get_submodule(layer.name), _gradient(graded, layer.name)
            producers.append(_rows(module, None, start, piece))
            rows = None if gradient is None else _rows(module, gradient, start, piece)
            producer_gradients.append(rows)
            add_bias(layer.name, start, piece)
    for other in structure.channelwise.values():
        module, gradient = model.get_submodule(other.name), _gradient(graded, other.name)
        weight = None if isinstance(module, nn.PReLU) else getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1 and other.axis == 0:
            for start, piece in _runs(other.pieces, index):
                if piece.repeat == 1:
                    norms.append(weight.detach().narrow(0, start, piece.width))
                    scale = None if gradient is None else gradient.narrow(0, start, piece.width)
                    norm_gradients.append(scale)
                    add_bias(other.name, start, piece)
    for rows, gradient in rows_of_twins(model, structure, index, graded):
        producers.append(rows)
        producer_gradients.append(gradient)
    group = structure.groups[index]
    return GroupWeights(
        group.name,
        group.width,
        *(tuple(producers), tuple(norms), tuple(biases)),
        *(tuple(producer_gradients), tuple(norm_gradients), tuple(bias_gradients)),
        tuple(readings),
        kept,
        not any(p.group == index for each in structure.linears.values() for p in each.inputs or ()),
    )


def _gradient(graded: nn.Module, name: str, which: str = "weight") -> Tensor | None:
    # A weight that is computed, as by spectral_norm, changes the model where it is read.
    weight = graded.get_submodule(name)._parameters.get(which)
    return None if weight is None or weight.grad is None else weight.grad.detach()


def _rows(module: nn.Module, gradient: Tensor | None, start: int, piece: Piece) -> Tensor:
    rows = rows_by_output(module, gradient).narrow(0, start, piece.size)
    return rows.reshape(piece.width, -1)


def _entries(vector: Tensor, start: int, piece: Piece) -> Tensor:
    return vector.narrow(0, start, piece.size).reshape(piece.width, -1)


def _runs(pieces: Pieces, group: int) -> Iterator[tuple[int, Piece]]:
    """Yield where the runs of a group's channels begin in a dimension."""
    start = 0
    for piece in pieces:
        if piece.group == group:
            yield start, piece
        start += piece.size
