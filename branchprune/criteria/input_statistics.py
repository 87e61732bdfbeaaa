"""Statistics of what layers read: the covariance of its channels, and the weights on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError
from branchprune.graph.inputs import Example, call, tensors, training_mode
from branchprune.graph.provenance import Own, labels_of
from branchprune.graph.structure import LinearLayer, Pieces, Structure

Statistic = Callable[[Tensor], Tensor]
"""What a criterion asks of each example: of maps, shape (N, C, T, …), with T entries a channel at
each position, a number a map, shape (N, C)."""


@dataclass(frozen=True)
class Reading:
    """What one layer reads of a group, on the average of some examples and all positions.

    Attributes:
        covariance: That of its channels, shape (C, C), float64.
        weights: `Σ w wᵀ` over all that the layer makes of them, w of shape (C,): where the channels
            change by d, its outputs change by `dᵀ weights d`, squared and added up. Shape (C, C).
        examples: The `Statistic` that a criterion has asked of each example, shape (N, C), NaN for
            channels that the layer does not read; None: none has.
    """

    covariance: Tensor
    weights: Tensor
    examples: Tensor | None = None


def not_read(criterion: str, group: str) -> PruneError:
    """Return the error of a criterion that was given no batches that reach a group's readers."""
    return PruneError(
        f"init {criterion!r} needs batches that reach what reads {group} in evaluation: give "
        "attach batches of training inputs, or leave it out with `exclude`"
    )


def read(
    model: nn.Module,
    structure: Structure,
    groups: Sequence[int],
    run: nn.Module,
    batches: Iterable[Example],
    statistic: Statistic | None = None,
) -> dict[int, list[Reading]]:
    """Return what layers read of some channel groups, by the group's index.

    Args:
        model: The wide layers; they are left as they are.
        structure: The model's.
        groups: Indices of the groups.
        run: What calls those layers, in evaluation mode: the model, or a module around it.
        batches: Inputs of `run`, each a tensor, or a tuple or dictionary of arguments.
        statistic: What to note of each example; None: nothing.

    Raises:
        PruneError: `batches` is a single tensor.
    """
    if isinstance(batches, Tensor):
        raise PruneError("batches must be several inputs of forward, such as [batch]")
    listeners = readers(structure, groups, statistic)
    with training_mode(run, False), torch.no_grad(), listening(model, listeners):
        for batch in batches:
            call(run, batch)
    found: dict[int, list[Reading]] = {group: [] for group in groups}
    for reader in listeners:
        if reader.count:
            layer = model.get_submodule(reader.layer.name)
            found[reader.group].append(reader.reading(layer))
    return found


def readers(
    structure: Structure, groups: Iterable[int], statistic: Statistic | None = None
) -> list[Reader]:
    """Return a reader for every layer and each of some groups that it reads.

    Channels are numbered through all groups; a layer's labels say which one is at each entry of
    its input.

    Args:
        structure: The model's.
        groups: Indices of the groups.
        statistic: What to note of each example; None: nothing.
    """
    starts = [0, *accumulate(group.width for group in structure.groups)]

    def own(pieces: Pieces) -> Tensor:
        runs = [torch.arange(p.width).repeat_interleave(p.repeat) + starts[p.group] for p in pieces]
        return torch.cat(runs)

    found = []
    for layer in structure.linears.values():
        read_here = {piece.group for piece in layer.inputs or ()}
        labels = labels_of(layer.origin or Own(layer.inputs), own) if read_here else None
        for group in read_here.intersection(groups):
            assert labels is not None
            width = structure.groups[group].width
            found.append(Reader(layer, group, labels - starts[group], width, statistic))
    return found


@contextmanager
def listening(model: nn.Module, listeners: Iterable[Reader]) -> Iterator[None]:
    """Let readers see what their layers of a model read, as long as the block runs."""
    with ExitStack() as hooks:
        for reader in listeners:
            layer = model.get_submodule(reader.layer.name)
            hook = layer.register_forward_pre_hook(reader.add, with_kwargs=True)
            hooks.callback(hook.remove)
        yield


class Reader:
    """Sums over the channels of a group that a layer reads, in float64 on the CPU.

    Args:
        layer: The layer.
        group: The group.
        channels: The channel of the group at each entry of the layer's input; others than those
            in [0, width) belong to other groups.
        width: Number of channels of the group.
        statistic: What to note of each example; None: nothing.
    """

    def __init__(
        self,
        layer: LinearLayer,
        group: int,
        channels: Tensor,
        width: int,
        statistic: Statistic | None = None,
    ) -> None:
        self.layer, self.group, self.width, self.statistic = layer, group, width, statistic
        inside = ((channels >= 0) & (channels < width)).nonzero()[:, 0]
        inside = inside[channels[inside].argsort(stable=True)]
        self.present, counts = channels[inside].unique(return_counts=True)
        ends = counts.cumsum(0)
        times = torch.arange(int(counts.min()))  # as often as all are there
        self.entries = inside[(ends - counts)[:, None] + times]
        self.first = torch.zeros(len(self.present), dtype=torch.double)
        self.second = torch.zeros(len(self.present), len(self.present), dtype=torch.double)
        self.count = 0
        self.examples: list[Tensor] = []

    def add(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Add what the layer is about to read."""
        found, entries = tensors((args, kwargs))[0], self.entries
        if self.statistic is not None:
            maps = found[None] if found.dim() + self.layer.dim == 0 else found
            maps = maps.movedim(self.layer.dim, 1)[:, entries.to(found.device)]
            if not maps.isfinite().all():
                raise PruneError(f"batches: {self.layer.name} reads numbers that are not finite")
            self.examples.append(self.statistic(maps).double().cpu())
        x = found.movedim(self.layer.dim, -1).flatten(0, -2)
        samples = x[:, entries.to(x.device)].transpose(1, 2).flatten(0, 1).double()
        self.first += samples.sum(0).cpu()
        self.second += (samples.T @ samples).cpu()
        self.count += len(samples)

    def reading(self, layer: nn.Module) -> Reading:
        """Return what has been read, and what the layer makes of it."""
        mean = self.first / self.count
        covariance = self.second / self.count - torch.outer(mean, mean)
        rows = _rows_by_input(layer)
        block = torch.arange(len(rows)) // (len(rows) // self.layer.groups)
        weights = torch.zeros_like(covariance)
        for entries in self.entries.T:
            made = rows[entries] @ rows[entries].T
            if self.layer.groups > 1:
                made *= block[entries][:, None] == block[entries]
            weights += made
        return Reading(self._placed(covariance), self._placed(weights), self._of_examples())

    def _of_examples(self) -> Tensor | None:
        if self.statistic is None:
            return None
        found = torch.cat(self.examples)
        placed = found.new_full((len(found), self.width), torch.nan)
        placed[:, self.present] = found
        return placed

    def moment(self) -> Tensor:
        """Return the mean of `u uᵀ` over all that has been read, shape (C, C), float64."""
        return self._placed(self.second / self.count)

    def mapped(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Return what the layer reads, the channels of the group mapped.

        Args:
            x: An input of the layer.
            matrix: What maps them, shape (C, C), in the dtype and on the device of `x`.
        """
        moved = x.movedim(self.layer.dim, -1).clone()
        inner = matrix[self.present[:, None], self.present]
        used = inner.any(0).nonzero()[:, 0]
        for entries in self.entries.T:
            moved[..., entries] = moved[..., entries[used.cpu()]] @ inner[:, used].T
        return moved.movedim(-1, self.layer.dim)

    def _placed(self, matrix: Tensor) -> Tensor:
        """Return a matrix of the channels that are read, at their places among all."""
        placed = matrix.new_zeros(self.width, self.width)
        placed[self.present[:, None], self.present] = matrix
        return placed


def _rows_by_input(layer: nn.Module) -> Tensor:
    """Return a layer's weight as a (C, n) matrix, a row an input channel, float64 on the CPU."""
    weight, groups = layer.weight, int(getattr(layer, "groups", 1))
    assert isinstance(weight, Tensor)
    weight = weight.detach().double().cpu()
    if getattr(layer, "transposed", False):
        return weight.flatten(1)
    blocks: Tensor = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    return blocks.flatten(0, 1).flatten(1)
