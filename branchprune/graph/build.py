"""From a model to its structure: trace, walk, and turn what was found into plain numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from operator import attrgetter

from torch import fx, nn

from branchprune.graph.channels import Channels, Layout, Segment, resolve
from branchprune.graph.fixed_layers import find_obstacles, find_readable
from branchprune.graph.inputs import Example
from branchprune.graph.layers import describe
from branchprune.graph.nodes import CONSTANT
from branchprune.graph.provenance import Origin, converted
from branchprune.graph.state import Analysis, Linear
from branchprune.graph.structure import (
    ChannelGroup,
    ChannelParameter,
    ChannelTensor,
    ChannelwiseLayer,
    LinearLayer,
    Piece,
    Pieces,
    Structure,
)
from branchprune.graph.tracing.shape_propagation import record
from branchprune.graph.tracing.trace import trace
from branchprune.graph.walk import finish, has_effect, walk


def analyse(
    model: nn.Module, example: Example, inside: str = "", opaque: Sequence[str] = ()
) -> Structure:
    """Trace a model, or a module inside it, and find its channel groups.

    Args:
        model: The network. The part that is traced is run once on the example, in evaluation mode.
        example: A tensor, a tuple of arguments or a dictionary of keyword arguments of that part.
        inside: Path of the part that is traced; "" for all of the model.
        opaque: Paths of modules that are not looked into.

    Raises:
        PruneError: The model cannot be traced, or does not accept the example.
    """
    graphs = trace(model, example, inside, opaque)
    obstacles = find_obstacles(model, graphs.values())
    readable = frozenset(find_readable(model, graphs.values()))
    analysis = Analysis(model, obstacles, readable)
    for graph in dict.fromkeys(graphs.values()):
        record(model, graph, example, analysis.recorded)
        analysis.counting = graph is graphs[False]
        walk(analysis, graph)
    finish(analysis)
    return _structure(analysis, graphs, inside)


def _structure(analysis: Analysis, graphs: dict[bool, fx.Graph], inside: str) -> Structure:
    """Turn layouts, which refer to the union-find, into pieces, which are plain numbers."""
    names: dict[Channels, str] = {}
    for name, channels in analysis.channels:
        for segment in resolve([Segment(channels)]):
            names.setdefault(segment.channels, name)
    index: dict[Channels, int] = {}
    groups: list[ChannelGroup] = []

    def origin(layout: Layout) -> Origin | None:
        return layout.moved and converted(layout.moved, pieces)

    def pieces(segments: Sequence[Segment]) -> Pieces:
        result = []
        for segment in resolve(segments):
            root = segment.channels
            if root not in index:
                index[root] = len(index)
                name = _unique(names.get(root, "(constant)"), [group.name for group in groups])
                groups.append(ChannelGroup(name, root.width, root.blocks, root.strata, root.reason))
            result.append(Piece(index[root], root.width, segment.repeat))
        return tuple(result)

    linears = {
        name: LinearLayer(
            name,
            # A fully connected layer acts on the last dimension of any tensor.
            -1 if isinstance(analysis.model.get_submodule(name), nn.Linear) else layer.dim,
            pieces(layer.inputs.segments) if layer.inputs else None,
            pieces(layer.outputs.segments),
            layer.groups,
            layer.macs,
            _first_reader(analysis, layer),
            origin(layer.inputs) if layer.inputs else None,
        )
        for name, layer in analysis.linears.items()
    }
    channelwise = {
        name: ChannelwiseLayer(name, pieces(layout.segments), axis, times, macs, origin(layout))
        for name, (layout, axis, times, macs) in analysis.channelwise.items()
    }
    parameters = {
        name: ChannelParameter(name, pieces(layout.segments), layout.dim)
        for name, layout in analysis.parameters.items()
    }
    tensors = {
        training: {
            node.name: ChannelTensor(layout.dim, pieces(layout.segments))
            for node in graph.nodes
            if (layout := analysis.layout(node)) is not None
        }
        for training, graph in graphs.items()
    }
    effects = {
        training: frozenset(node.name for node in graph.nodes if has_effect(analysis, node))
        for training, graph in graphs.items()
    }
    called = {
        str(node.target): analysis.module(node)
        for graph in graphs.values()
        for node in graph.find_nodes(op="call_module")
    }
    inplace = frozenset(name for name, m in called.items() if getattr(m, "inplace", False))
    part = analysis.model.get_submodule(inside).named_modules(prefix=inside)
    owners = {name: module for name, module in part if module._parameters}
    modules = {name: describe(module) for name, module in (called | owners).items()}
    constants = {
        str(node.target): attrgetter(str(node.target))(analysis.model)
        for graph in graphs.values()
        for node in graph.find_nodes(op="get_attr")
        if str(node.target).rpartition(".")[2].startswith(CONSTANT)
    }
    return Structure(
        inside,
        len(graphs[False].find_nodes(op="placeholder")),
        graphs,
        tensors,
        effects,
        tuple(groups),
        linears,
        channelwise,
        parameters,
        inplace,
        modules,
        constants,
    )


def _first_reader(analysis: Analysis, layer: Linear) -> str:
    return next(
        name
        for name, other in analysis.linears.items()
        if other.operands & layer.operands and other.groups == layer.groups
    )


def _unique(name: str, taken: Iterable[str]) -> str:
    names = set(taken)
    candidates = itertools.chain([name], (f"{name}#{i}" for i in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in names)
