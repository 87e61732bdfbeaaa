"""The memory of a forward pass as a function of the widths: weights and live activations."""

from __future__ import annotations

from collections.abc import Iterator
from operator import getitem

import torch
from torch import Tensor, fx, nn

from branchprune.graph.measured import is_measured
from branchprune.graph.structure import ChannelTensor, Structure, size_of
from branchprune.planning.cost_model import Polynomial, polynomial
from branchprune.planning.costs import weight_bytes
from branchprune.planning.staying import short_bytes


class Memory:
    """Bytes of weights, and of the activations at whatever time these are the most.

    That is `weights(k) + maxₜ (Aₜ·k + cₜ)` over the widths k: at a time t, as an operation has just
    been computed, a tensor with channels takes bytes in proportion to these. Of the times those are
    left at which there may be most.

    Args:
        weights: Bytes of parameters and buffers.
        slopes: A, bytes a channel, float64, shape (T, G).
        constants: c, bytes of what has no channels, float64, shape (T,).
        places: What is computed at each time, as named to people.
    """

    def __init__(
        self, weights: Polynomial, slopes: Tensor, constants: Tensor, places: list[str]
    ) -> None:
        self.weights = weights
        left = _undominated(slopes, constants)
        self.slopes, self.constants = slopes[left], constants[left]
        self.places = [places[t] for t in left.tolist()]
        self._lines, self._line_of = _lines(self.slopes)

    def total(self, kept: Tensor) -> float:
        """Return the bytes at some widths; see `CostModel`."""
        return self.weights.total(kept) + float(self._live(kept).max())

    def changes(self, kept: Tensor, widths: Tensor, groups: slice) -> Tensor:
        """Return how the bytes change with the width of one group; see `CostModel`."""
        live = self._live(kept)
        lines, which = self._lines[groups], self._line_of[:, groups]
        # Of all times at which a group takes as much a channel, the one with most is enough.
        most = torch.full_like(lines.T, -torch.inf)
        most = most.scatter_reduce(0, which, live[:, None].expand(which.shape), "amax").T
        wider = widths - kept[groups, None]
        peaks = torch.full_like(wider, -torch.inf)
        for line, start in zip(lines.T, most.T, strict=True):
            peaks = torch.maximum(peaks, torch.addcmul(start[:, None], line[:, None], wider))
        return peaks - live.max() + self.weights.changes(kept, widths, groups)

    def told(self, kept: Tensor) -> str:
        """Say what the bytes at some widths are made of."""
        live = self._live(kept)
        weights, most = self.weights.total(kept), float(live.max())
        return (
            f"{short_bytes(weights)} of weights, and {short_bytes(most)} are live at "
            f"{self.places[int(live.argmax())]}"
        )

    def _live(self, kept: Tensor) -> Tensor:
        return self.slopes @ kept + self.constants


def memory_of(model: nn.Module, structure: Structure) -> Memory:
    """Return the memory of one forward pass in evaluation mode on the plan's example.

    A tensor is there from the operation that makes it to the last one that reads it, as a runtime
    that plans its memory has it; in PyTorch itself variables of a forward, such as the input of a
    Sequential, keep tensors for longer. Inputs are there throughout, since the caller holds them,
    and outputs to the end. Views, and what forward changes in place, take no memory of their own.
    What an operation takes for itself while it runs is not counted, nor results that nothing reads.

    Args:
        model: The model.
        structure: Its structure.
    """
    nodes = [*structure.graphs[False].nodes]
    growth = torch.zeros(len(nodes) + 1, len(structure.groups) + 1, dtype=torch.double)
    for owner, first, last in _lives(structure, nodes):
        size = _bytes(structure, owner)
        growth[first] += size
        growth[last + 1] -= size
    live = growth.cumsum(0)[:-1]
    constants = [(constant.nbytes, ()) for constant in structure.constants.values()]
    weights = polynomial([*weight_bytes(model, structure), *constants], len(structure.groups))
    return Memory(weights, live[:, :-1], live[:, -1], [_place(node) for node in nodes])


def _lives(structure: Structure, nodes: list[fx.Node]) -> Iterator[tuple[fx.Node, int, int]]:
    """Yield what makes each piece of memory, and the first and last time at which it is needed."""
    times = {node: time for time, node in enumerate(nodes)}
    sharing: dict[int, list[fx.Node]] = {}
    for node in nodes:
        if node.name in structure.storages:
            sharing.setdefault(structure.storages[node.name].key, []).append(node)
    for tensors in sharing.values():
        maker = _maker(structure, tensors[0])
        if any(node.op == "get_attr" for node in tensors):
            continue  # a weight, which is counted as such
        if maker.op == "placeholder":
            yield tensors[0], 0, len(nodes) - 1
            continue
        readers = [u for node in tensors for u in node.users if not is_measured(u, node)]
        yield tensors[0], times[maker], max(times[each] for each in (*tensors, *readers))


def _maker(structure: Structure, node: fx.Node) -> fx.Node:
    """Return the call that makes a tensor, perhaps as one of several."""
    while node.target is getitem:
        whole = node.args[0]
        if not isinstance(whole, fx.Node) or whole.name in structure.storages:
            break
        node = whole
    return node


def _bytes(structure: Structure, node: fx.Node) -> Tensor:
    """Return the bytes of a tensor for each channel of each group, and those beside, (G + 1,)."""
    found = torch.zeros(len(structure.groups) + 1, dtype=torch.double)
    nbytes = structure.storages[node.name].nbytes
    tensor: ChannelTensor | None = structure.tensors[False].get(node.name)
    if tensor is None:
        found[-1] = nbytes
        return found
    entry = nbytes / size_of(tensor.pieces)
    for piece in tensor.pieces:
        found[piece.group] += entry * piece.repeat
    return found


def _place(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _undominated(slopes: Tensor, constants: Tensor) -> Tensor:
    """Return the times at which there may be most, at whatever widths."""
    lines = torch.cat([slopes, constants[:, None]], 1)
    left: list[int] = []
    for time in lines.sum(1).argsort(descending=True, stable=True).tolist():
        if not (lines[left] >= lines[time]).all(1).any():
            left.append(time)
    return torch.tensor(sorted(left))


def _lines(slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different slopes of each group, and which of them each time has.

    Args:
        slopes: Float64, shape (T, G).

    Returns:
        The slopes, rising, shape (G, S), the last one repeated where a group has fewer, and their
        places, shape (T, G).
    """
    found = [column.unique(return_inverse=True) for column in slopes.T]
    most = max(len(values) for values, _ in found)
    lines = [torch.cat([v, v[-1:].expand(most - len(v))]) for v, _ in found]
    return torch.stack(lines), torch.stack([places for _, places in found], 1)
