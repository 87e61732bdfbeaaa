"""The structure of a model in names and numbers: layers, channel groups and the traced graphs.

A `Structure` holds no weights and is never changed, so a plan, a blended model and all their
copies share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from branchprune.graph.module_numbers import ModuleNumber
from branchprune.graph.nodes import Storage
from branchprune.graph.provenance import Origin
from branchprune.graph.reasons import Reason


@dataclass(frozen=True)
class Piece:
    """Part of a channel dimension: `width` channels of group `group`, `repeat` entries each."""

    group: int
    width: int
    repeat: int = 1

    @property
    def size(self) -> int:
        """Number of entries of the dimension that it covers."""
        return self.width * self.repeat


Pieces = tuple[Piece, ...]


def size_of(pieces: Pieces, kept: Sequence[int] | None = None) -> int:
    """Return the number of entries of a channel dimension.

    Args:
        pieces: What it is made of.
        kept: The width of each group; None: those before.
    """
    return sum((p.width if kept is None else kept[p.group]) * p.repeat for p in pieces)


@dataclass(frozen=True)
class ChannelTensor:
    """A tensor of the graph with channels along dimension `dim`."""

    dim: int
    pieces: Pieces


@dataclass(frozen=True)
class LinearLayer:
    """A convolution or fully connected layer: producer of its outputs, consumer of its inputs.

    Attributes:
        name: Path of the module.
        dim: Channel dimension of its input and output (-1: the last).
        inputs: What its input channels are made of; None if nothing is known of them.
        outputs: What its output channels are made of.
        groups: Number of blocks of its weight (grouped convolution), else 1.
        macs: Multiply-adds for one example.
        expand: Path of the layer whose `expand` it uses: the first that reads the same tensor.
        origin: Where the narrow input channels come from, if a shuffle has moved them.
    """

    name: str
    dim: int
    inputs: Pieces | None
    outputs: Pieces
    groups: int
    macs: int
    expand: str
    origin: Origin | None


@dataclass(frozen=True)
class ChannelwiseLayer:
    """A module whose tensors have one entry a channel along `axis` (None: no such axis).

    `times` outputs belong to each input channel: the multiplier of a depthwise convolution.
    `origin` says where the narrow channels come from, if a shuffle has moved them.
    """

    name: str
    pieces: Pieces
    axis: int | None
    times: int
    macs: int
    origin: Origin | None


@dataclass(frozen=True)
class ChannelParameter:
    """A parameter or buffer that forward itself reads, with one entry a channel along some axes.

    Attributes:
        name: Its path.
        axes: What each of these axes is made of, by axis: one of a bias, two of the weight that
            forward hands to `F.conv2d` or `F.linear`.
    """

    name: str
    axes: dict[int, Pieces]

    @property
    def outputs(self) -> Pieces:
        """The channels that it makes as the weight of a convolution; others make none."""
        return next(iter(self.axes.values())) if len(self.axes) > 1 else ()

    @property
    def pieces(self) -> Pieces:
        """What all of these axes are made of."""
        return tuple(piece for pieces in self.axes.values() for piece in pieces)


@dataclass(frozen=True)
class TwinLayer:
    """A layer whose twin is a whole layer of its class at the other widths, without linear ends.

    That is a layer between whose inputs and outputs no linear end can be folded: a recurrent one,
    attention, or a convolution that standardises its weight.

    Attributes:
        name: Path of the module.
        inputs: What its input channels are made of; None if nothing is known of them.
        outputs: What its output channels are made of.
        macs: Multiply-adds for one example.
        products: Those of them whose number follows its outputs alone, as of query and key.
        origin: Where the narrow input channels come from, if a shuffle has moved them.
    """

    name: str
    inputs: Pieces | None
    outputs: Pieces
    macs: int
    products: int
    origin: Origin | None

    @property
    def pieces(self) -> Pieces:
        """What its inputs and outputs are made of."""
        return (self.inputs or ()) + self.outputs


@dataclass(frozen=True)
class Contraction:
    """A node that reads channels which its output does not have, as the product of query and key.

    Where its output has a branch, the branch computes it from what is narrow. Where it has none,
    both paths meet in its output: it is `α · wide + (1 − α) · narrow`.

    Attributes:
        pieces: The channels that it reads and does not hand on.
        outputs: The channels of its output, if any.
    """

    pieces: Pieces
    outputs: Pieces


@dataclass(frozen=True)
class Work:
    """Multiply-adds, for one example, that are no layer's.

    Attributes:
        module: Path of the module, or of the one whose forward calls the function.
        macs: How many; of a part of a function they need not be whole.
        summed: The channels, along each axis, that it sums over.
        made: Those of its outputs.
        is_known: Whether it is known how it grows with the channels that it reads.
    """

    module: str
    macs: float
    summed: tuple[Pieces, ...] = ()
    made: Pieces = ()
    is_known: bool = True


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must keep the same width.

    Attributes:
        name: Path of the first layer that makes them.
        width: Number of channels.
        blocks: Divisor of the width that is kept (grouped convolutions, GroupNorm).
        strata: Number of equal parts of which each gives the branch as many channels to start
            from; see `Channels`.
        reason: Why the width stays, or None if it may shrink.
    """

    name: str
    width: int
    blocks: int
    strata: int
    reason: Reason | None


@dataclass(frozen=True)
class WidthNumber:
    """A number of the user's modules that forward reads as the width of some channels.

    `sign` is -1 where it counts from the end, as in `x[:, -self.a:]`.
    """

    number: ModuleNumber
    pieces: Pieces
    sign: int


@dataclass(frozen=True, eq=False)
class Structure:
    """What planning, attaching and collapsing need to know of a model.

    Attributes:
        inside: Path of the part of the model that was traced; "" for all of it.
        arguments: Number of arguments of forward in the example.
        graphs: The traced graph by `training` flag.
        tensors: For each graph, the tensors whose channels are known, by node name.
        effects: For each graph, the nodes that are there for what they do to their arguments.
        groups: The channel groups; pieces refer to them by index.
        linears: The linear layers by path.
        channelwise: The channelwise layers with a width of their own, by path.
        parameters: The parameters and buffers with channels that forward itself reads, by path.
        twins: The layers whose twin is a layer of its own, by path.
        contractions: For each graph, the nodes at which channels end, by node name.
        unseen: Modules that the user leaves out, by path: their multiply-adds for one example.
        other_work: Multiply-adds of modules without a rule, and of functions, such as matmul.
        inplace: Paths of modules that work in place.
        modules: Kind and widths of every module that is called or has parameters, by path.
        constants: Tensors that forward makes from plain numbers, by their names in the graphs.
        numbers: Numbers of the user's modules that are widths in forward.
        used: Paths of modules that forward calls, or whose parameters or buffers it reads.
        unknown: Why nothing is known of the channels that a module reads or makes, by its path;
            one that reads the model's input is not named.
        storages: Where the tensors of evaluation lie on the example, as forward itself computes
            them, by node name.
    """

    inside: str
    arguments: int
    graphs: dict[bool, fx.Graph]
    tensors: dict[bool, dict[str, ChannelTensor]]
    effects: dict[bool, frozenset[str]]
    groups: tuple[ChannelGroup, ...]
    linears: dict[str, LinearLayer]
    channelwise: dict[str, ChannelwiseLayer]
    parameters: dict[str, ChannelParameter]
    twins: dict[str, TwinLayer]
    contractions: dict[bool, dict[str, Contraction]]
    unseen: dict[str, int]
    other_work: tuple[Work, ...]
    inplace: frozenset[str]
    modules: dict[str, str]
    constants: dict[str, Tensor]
    numbers: tuple[WidthNumber, ...]
    used: frozenset[str]
    unknown: dict[str, Reason]
    storages: dict[str, Storage]

    def __deepcopy__(self, memo: dict[int, Any]) -> Structure:
        return self
