"""From layouts, which refer to the union-find, to pieces, which refer to groups by number."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from torch import fx, nn

from branchprune.graph.channels import Channels, Layout, Segment, layouts_in, resolve
from branchprune.graph.layer_records import Linear
from branchprune.graph.module_numbers import ModuleNumber
from branchprune.graph.provenance import Origin, converted
from branchprune.graph.reasons import Reason
from branchprune.graph.state import Analysis
from branchprune.graph.structure import (
    ChannelGroup,
    ChannelParameter,
    ChannelTensor,
    ChannelwiseLayer,
    Contraction,
    LinearLayer,
    Piece,
    Pieces,
    TwinLayer,
    WidthNumber,
)


class Numbering:
    """Turns layouts, which refer to the union-find, into pieces, which are plain numbers.

    Args:
        made: Channels with the paths of the layers that make them.

    Attributes:
        groups: The groups that have a number, in order.
    """

    def __init__(self, made: Iterable[tuple[str, Channels]]) -> None:
        self.groups: list[ChannelGroup] = []
        self._index: dict[Channels, int] = {}
        self._names: dict[Channels, str] = {}
        for name, channels in made:
            for segment in resolve([Segment(channels)]):
                self._names.setdefault(segment.channels, name)

    def pieces(self, segments: Sequence[Segment]) -> Pieces:
        """Return the pieces of segments; a group gets a number where it is first among them."""
        result = []
        for segment in resolve(segments):
            root = segment.channels
            if root not in self._index:
                self._index[root] = len(self.groups)
                taken = [group.name for group in self.groups]
                name = _unique(self._names.get(root, "(constant)"), taken)
                reason = Reason(root.reason) if root.reason else None
                self.groups.append(ChannelGroup(name, root.width, root.blocks, root.strata, reason))
            result.append(Piece(self._index[root], root.width, segment.repeat))
        return tuple(result)

    def origin(self, layout: Layout) -> Origin | None:
        """Return where narrow channels come from, if a shuffle has moved them."""
        return layout.moved and converted(layout.moved, self.pieces)


def linear_layers(analysis: Analysis, numbering: Numbering) -> dict[str, LinearLayer]:
    """Return the linear layers by path."""
    return {
        name: LinearLayer(
            name,
            # A fully connected layer acts on the last dimension of any tensor.
            -1 if isinstance(analysis.model.get_submodule(name), nn.Linear) else layer.dim,
            numbering.pieces(layer.inputs.segments) if layer.inputs else None,
            numbering.pieces(layer.outputs.segments),
            layer.groups,
            layer.macs,
            _first_reader(analysis, layer),
            numbering.origin(layer.inputs) if layer.inputs else None,
        )
        for name, layer in analysis.linears.items()
    }


def channelwise_layers(analysis: Analysis, numbering: Numbering) -> dict[str, ChannelwiseLayer]:
    """Return the channelwise layers by path."""
    return {
        name: ChannelwiseLayer(
            name, numbering.pieces(layout.segments), axis, times, macs, numbering.origin(layout)
        )
        for name, (layout, axis, times, macs) in analysis.channelwise.items()
    }


def channel_parameters(analysis: Analysis, numbering: Numbering) -> dict[str, ChannelParameter]:
    """Return the parameters and buffers that forward itself reads, by path."""
    return {
        name: ChannelParameter(
            name, {axis: numbering.pieces(layout.segments) for axis, layout in axes.items()}
        )
        for name, axes in analysis.parameters.items()
    }


def channel_tensors(
    analysis: Analysis, graphs: dict[bool, fx.Graph], numbering: Numbering
) -> dict[bool, dict[str, ChannelTensor]]:
    """Return the tensors of each graph whose channels are known, by node name."""
    return {
        training: {
            node.name: ChannelTensor(layout.dim, numbering.pieces(layout.segments))
            for node in graph.nodes
            if (layout := analysis.layout(node)) is not None
        }
        for training, graph in graphs.items()
    }


def twin_layers(analysis: Analysis, graph: fx.Graph, numbering: Numbering) -> dict[str, TwinLayer]:
    """Return the layers whose twin is a layer of its own, by path.

    Args:
        analysis: The walk.
        graph: The graph of evaluation, whose multiply-adds count.
        numbering: Gives groups their numbers.
    """
    macs: dict[str, int] = {}
    for node in graph.nodes:
        if str(node.target) in analysis.twins and node in analysis.recorded.macs:
            work = analysis.recorded.macs[node] // analysis.batches.get(node, 1)
            macs[str(node.target)] = macs.get(str(node.target), 0) + work
    return {
        name: TwinLayer(
            name,
            numbering.pieces(layer.inputs.segments) if layer.inputs else None,
            numbering.pieces(layer.made.segments),
            macs.get(name, 0),
            layer.products,
            numbering.origin(layer.inputs) if layer.inputs else None,
        )
        for name, layer in analysis.twins.items()
    }


def contractions(
    analysis: Analysis, graphs: dict[bool, fx.Graph], numbering: Numbering
) -> dict[bool, dict[str, Contraction]]:
    """Return the nodes of each graph at which channels end, by name."""

    def pieces(layouts: Iterable[Layout]) -> Pieces:
        return tuple(p for layout in layouts for p in numbering.pieces(layout.segments))

    return {
        training: {
            node.name: Contraction(
                pieces(analysis.contractions[node]), pieces(layouts_in(analysis.values.get(node)))
            )
            for node in graph.nodes
            if node in analysis.contractions
        }
        for training, graph in graphs.items()
    }


def width_numbers(analysis: Analysis, numbering: Numbering) -> tuple[WidthNumber, ...]:
    """Return the numbers of the user's modules that are widths in forward."""
    return tuple(
        WidthNumber(each.number, numbering.pieces(each.segments), each.sign)
        for each in analysis.constraints.follows
        if isinstance(each.number, ModuleNumber)
    )


def _first_reader(analysis: Analysis, layer: Linear) -> str:
    """Return the first layer that reads a tensor that this one reads: both share one `expand`."""
    return next(
        name
        for name, other in analysis.linears.items()
        if other.operands & layer.operands and other.groups == layer.groups
    )


def _unique(name: str, taken: Iterable[str]) -> str:
    names = set(taken)
    candidates = itertools.chain([name], (f"{name}#{i}" for i in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in names)
