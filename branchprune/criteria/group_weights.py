"""What a criterion is given of a group of channels: the weights that make them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from branchprune.criteria.input_statistics import Reading
from branchprune.criteria.twin_rows import rows_of_twins
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

    @property
    def weights(self) -> list[Tensor]:
        """All that makes the channels, each (C, n): rows of layers, scales of norms, biases."""
        return [*self.producers, *(scale[:, None] for scale in self.norms), *self.biases]

    @property
    def gradients(self) -> list[Tensor | None]:
        """The gradient of each of `weights`, None where there is none."""
        norms = (None if each is None else each[:, None] for each in self.norm_gradients)
        return [
            *self._whole(self.producer_gradients, self.producers),
            *self._whole([*norms], self.norms),
            *self._whole(self.bias_gradients, self.biases),
        ]

    @staticmethod
    def _whole(
        gradients: Sequence[Tensor | None], weights: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        return gradients or [None] * len(weights)


def rows_by_output(layer: nn.Module, weight: Tensor | None = None) -> Tensor:
    """Return a layer's weight, or its gradient, as a (C, n) matrix, a row an output channel."""
    rows = layer.weight if weight is None else weight
    assert isinstance(rows, Tensor)
    rows = rows.detach()
    if getattr(layer, "transposed", False):
        groups = int(getattr(layer, "groups", 1))
        rows = rows.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return rows.flatten(1)


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
