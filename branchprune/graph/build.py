"""From a model to its structure: trace, walk, and turn what was found into plain numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from torch import fx, nn

from branchprune.graph.channels import Channels, Layout, Segment, layouts_in, resolve
from branchprune.graph.fixed_layers import find_obstacles, find_opaque, find_readable
from branchprune.graph.inputs import Example
from branchprune.graph.layer_records import Linear
from branchprune.graph.layers import describe
from branchprune.graph.module_numbers import ModuleNumber
from branchprune.graph.nodes import WHERE
from branchprune.graph.provenance import Origin, converted
from branchprune.graph.reasons import Reason
from branchprune.graph.rules.elementwise import opaque as not_looked_into
from branchprune.graph.rules.registry import module_rule
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
    Structure,
    TwinLayer,
    WidthNumber,
)
from branchprune.graph.tracing.trace import Traced, trace
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
    left_out = find_opaque(model, opaque)
    traced = trace(model, example, inside, left_out, _is_counted)
    graphs = traced.graphs
    obstacles = find_obstacles(model, graphs.values())
    readable = frozenset(find_readable(model, graphs.values()))
    analysis = Analysis(
        model,
        obstacles,
        readable,
        left_out,
        recorded=traced.recorded,
        constants=traced.constants,
    )
    lost = dict.fromkeys(traced.lost, "forward, for another purpose")
    analysis.constraints.pinned.update(lost)
    for graph in dict.fromkeys(graphs.values()):
        analysis.counting = graph is graphs[False]
        walk(analysis, graph)
    finish(analysis)
    return _structure(analysis, traced, inside)


def _is_counted(module: nn.Module) -> bool:
    """Return whether the multiply-adds of a called module are not known from its widths."""
    return any(True for _ in module.parameters())


def _unseen_macs(analysis: Analysis, graph: fx.Graph) -> tuple[dict[str, int], dict[str, int]]:
    """Return the multiply-adds, for one example, of what is no layer whose widths are known.

    Returns:
        Those of the modules that the user leaves out, by path, and those of all others, by the path
        of the module or, of functions, of the one whose forward calls them.
    """
    macs: dict[str, int] = {}
    others: dict[str, int] = {}
    for node, work in analysis.recorded.macs.items():
        read = [analysis.batches[n] for n in node.all_input_nodes if n in analysis.batches]
        counts = work // (read[0] if read else 1) if node.graph is graph else 0
        module = analysis.module(node) if node.op == "call_module" else None
        name = str(node.target)
        if module is not None and _is_left_out(analysis, module):
            macs[name] = macs.get(name, 0) + counts
        elif not any(name in k for k in (analysis.linears, analysis.channelwise, analysis.twins)):
            owner = name if module is not None else str(node.meta.get(WHERE, ""))
            others[owner] = others.get(owner, 0) + counts
    return macs, others


def _is_left_out(analysis: Analysis, module: nn.Module) -> bool:
    left_out = module in analysis.opaque or module_rule(module) is not_looked_into
    return left_out and _is_counted(module)


class _Numbering:
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


def _structure(analysis: Analysis, traced: Traced, inside: str) -> Structure:
    """Return what the walk has found, with groups by number in place of the union-find."""
    graphs = traced.graphs
    numbering = _Numbering(analysis.channels)
    linears = _linear_layers(analysis, numbering)
    channelwise = {
        name: ChannelwiseLayer(
            name, numbering.pieces(layout.segments), axis, times, macs, numbering.origin(layout)
        )
        for name, (layout, axis, times, macs) in analysis.channelwise.items()
    }
    parameters = {
        name: ChannelParameter(
            name, {axis: numbering.pieces(layout.segments) for axis, layout in axes.items()}
        )
        for name, axes in analysis.parameters.items()
    }
    tensors = {
        training: {
            node.name: ChannelTensor(layout.dim, numbering.pieces(layout.segments))
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
    return Structure(
        inside,
        len(graphs[False].find_nodes(op="placeholder")),
        graphs,
        tensors,
        effects,
        tuple(numbering.groups),
        linears,
        channelwise,
        parameters,
        _twin_layers(analysis, graphs[False], numbering),
        _contractions(analysis, graphs, numbering),
        *_unseen_macs(analysis, graphs[False]),
        inplace,
        {name: describe(module) for name, module in (called | owners).items()},
        traced.constants,
        tuple(
            WidthNumber(each.number, numbering.pieces(each.segments), each.sign)
            for each in analysis.constraints.follows
            if isinstance(each.number, ModuleNumber)
        ),
        _used(graphs.values()),
        _unknown(analysis, graphs.values()),
    )


def _used(graphs: Iterable[fx.Graph]) -> frozenset[str]:
    """Return the paths of the modules that are called or whose tensors are read."""
    nodes = [node for graph in graphs for node in graph.nodes]
    called = {str(node.target) for node in nodes if node.op == "call_module"}
    owners = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}
    return frozenset(called | owners)


def _unknown(analysis: Analysis, graphs: Iterable[fx.Graph]) -> dict[str, Reason]:
    """Return why no channels are known of modules, or of tensors that they hold, by their paths."""
    found: dict[str, Reason] = {}
    for node in (node for graph in graphs for node in graph.find_nodes(op="call_module")):
        name = str(node.target)
        linear = analysis.linears.get(name)
        if name not in analysis.channelwise and (linear is None or linear.inputs is None):
            why = analysis.why_unknown(node)
            if why is not None:
                found.setdefault(name, why)
    for node in (node for graph in graphs for node in graph.find_nodes(op="get_attr")):
        owner = str(node.target).rpartition(".")[0]
        for reader in (user for user in node.users if user in analysis.lost):
            found.setdefault(owner, analysis.lost[reader])
    return found


def _linear_layers(analysis: Analysis, numbering: _Numbering) -> dict[str, LinearLayer]:
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


def _twin_layers(
    analysis: Analysis, graph: fx.Graph, numbering: _Numbering
) -> dict[str, TwinLayer]:
    macs: dict[str, int] = {}
    for node in graph.nodes:
        if str(node.target) in analysis.twins and node in analysis.recorded.macs:
            work = analysis.recorded.macs[node] // analysis.batches.get(analysis.operand(node), 1)
            macs[str(node.target)] = macs.get(str(node.target), 0) + work
    return {
        name: TwinLayer(
            name,
            numbering.pieces(layer.inputs.segments) if layer.inputs else None,
            numbering.pieces(layer.made.segments),
            macs.get(name, 0),
            numbering.origin(layer.inputs) if layer.inputs else None,
        )
        for name, layer in analysis.twins.items()
    }


def _contractions(
    analysis: Analysis, graphs: dict[bool, fx.Graph], numbering: _Numbering
) -> dict[bool, dict[str, Contraction]]:
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
