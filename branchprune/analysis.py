"""The walk over the traced graphs that finds what every tensor's channels are made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod

import torch
from torch import fx, nn

from branchprune.calls import Example, tensors
from branchprune.channels import Channels, Layout, Segment, resolve, unify
from branchprune.obstacles import find_obstacles
from branchprune.rulebook import FUNCTION_RULES, METHOD_RULES, MODULE_RULES
from branchprune.rules import TRANSPOSED, Rule
from branchprune.shape_rules import size_of
from branchprune.structure import (
    ChannelGroup,
    ChannelTensor,
    ChannelwiseLayer,
    LinearLayer,
    Piece,
    Pieces,
    Structure,
)
from branchprune.trace import record_shapes, trace
from branchprune.widths import describe


def analyse(model: nn.Module, example: Example) -> Structure:
    """Trace a model and find its channel groups.

    Args:
        model: The network. It is run once on the example, in evaluation mode.
        example: A tensor, a tuple of arguments or a dictionary of keyword arguments.

    Raises:
        PruneError: The model cannot be traced, or does not accept the example.
    """
    graphs = trace(model, example)
    analysis = Analysis(model, find_obstacles(model, graphs.values()), _batch(example))
    for graph in dict.fromkeys(graphs.values()):
        analysis.shapes |= record_shapes(model, graph, example)
        analysis.counting = graph is graphs[False]
        analysis.walk(graph)
    analysis.freeze_unread()
    return _structure(analysis, graphs)


def _batch(example: Example) -> int:
    """Return how many examples an example holds: the first dimension of its first tensor."""
    first = next((tensor for tensor in tensors(example) if tensor.dim() > 1), None)
    return 1 if first is None else len(first)


@dataclass(eq=False)
class Linear:
    """A linear layer while the walk goes on."""

    dim: int
    outputs: Layout
    groups: int
    macs: int = 0
    inputs: Layout | None = None
    operands: set[fx.Node] = field(default_factory=set)


@dataclass(eq=False)
class Analysis:
    """The state of the walk, with what rules may ask of it and tell it."""

    model: nn.Module
    obstacles: dict[str, str]
    batch: int
    counting: bool = True
    shapes: dict[fx.Node, tuple[int, ...] | None] = field(default_factory=dict)
    values: dict[fx.Node, Layout | None] = field(default_factory=dict)
    linears: dict[str, Linear] = field(default_factory=dict)
    channelwise: dict[str, tuple[Layout, int | None, int, int]] = field(default_factory=dict)
    channels: list[tuple[str, Channels]] = field(default_factory=list)

    def module(self, node: fx.Node) -> nn.Module:
        """Return the module that a node calls."""
        return self.model.get_submodule(str(node.target))

    def is_tensor(self, node: fx.Node) -> bool:
        """Return whether the node's value is a tensor."""
        return self.shapes[node] is not None

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of the node's output for the example."""
        shape = self.shapes[node]
        assert shape is not None, f"{node} is not a tensor"
        return shape

    def operand(self, node: fx.Node) -> fx.Node:
        """Return the tensor that the node works on."""
        first = node.args[0] if node.args else next(iter(node.kwargs.values()))
        assert isinstance(first, fx.Node), f"{node} has no tensor as its first argument"
        return first

    def layout(self, node: fx.Node) -> Layout | None:
        """Return where the channels of the node's output are, if known."""
        return self.values.get(node)

    def layouts(self, nodes: Iterable[fx.Node]) -> Iterator[tuple[fx.Node, Layout]]:
        """Yield the nodes whose channels are known."""
        for node in nodes:
            layout = self.layout(node)
            if layout is not None:
                yield node, layout

    def describe(self, node: fx.Node) -> str:
        """Return how to name a node to a person."""
        if node.op == "call_module":
            return f"{node.target} ({type(self.module(node)).__name__})"
        return f"`{getattr(node.target, '__name__', node.target)}` (node {node.name})"

    def freeze_inputs(self, node: fx.Node, reason: str) -> None:
        """Freeze the groups of everything the node reads."""
        for _, layout in self.layouts(node.all_input_nodes):
            layout.freeze(reason)

    def unknown(
        self, node: fx.Node, why: str = "its effect on channels is not known"
    ) -> Layout | None:
        """Freeze what a node reads that the rules do not understand; its output is unknown too."""
        self.freeze_inputs(node, f"read by {self.describe(node)}: {why}")
        return None

    def linear(self, node: fx.Node, dim: int, source: Layout | None) -> Layout:
        """Note a linear layer; its outputs are new channels the first time it is met."""
        name, module = str(node.target), self.module(node)
        if name not in self.linears:
            groups = int(getattr(module, "groups", 1))
            channels = Channels(self.shape(node)[dim], blocks=groups)
            self.channels.append((name, channels))
            outputs = Layout(dim, (Segment(channels),))
            self.linears[name] = Linear(dim, outputs, groups)
        layer = self.linears[name]
        layer.macs += self._macs(node, dim)
        layer.operands.add(self.operand(node))
        if source is not None:
            if layer.inputs is not None:
                unify(layer.inputs.segments, source.segments, name)
            layer.inputs = source
        return layer.outputs

    def resized(self, node: fx.Node, axis: int | None, times: int = 1) -> Layout | None:
        """Note a module whose tensors have one entry a channel along `axis`; return its output."""
        name, layout = str(node.target), self.layout(self.operand(node))
        if layout is None:
            return None
        macs = self._macs(node, 1) if times > 1 or hasattr(self.module(node), "in_channels") else 0
        if name in self.channelwise:
            unify(self.channelwise[name][0].segments, layout.segments, name)
            macs += self.channelwise[name][3]
        self.channelwise[name] = (layout, axis, times, macs)
        return layout.repeated(times)

    def _macs(self, node: fx.Node, dim: int) -> int:
        """Return the multiply-adds of a call in evaluation mode, for one example."""
        if not self.counting:
            return 0
        module, shape = self.module(node), self.shape(node)
        source = self.shape(self.operand(node)) if isinstance(module, TRANSPOSED) else shape
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        return prod(source) // source[dim] * weight.numel() // self.batch

    def walk(self, graph: fx.Graph) -> None:
        """Apply the rules to a graph."""
        for node in graph.nodes:
            if node.op == "output":
                self.freeze_inputs(node, "it is an output of the model")
                continue
            layout = self._apply(node)
            self.values[node] = layout
            if layout is None and self.is_tensor(node):
                self.freeze_inputs(node, f"read by {self.describe(node)}")

    def _apply(self, node: fx.Node) -> Layout | None:
        rule, known = self._rule(node), list(self.layouts(node.all_input_nodes))
        if rule is None or (known and not self.is_tensor(node) and rule is not size_of):
            return self.unknown(node) if known else None
        layout = rule(self, node)
        if layout is not None and not layout.fits(self.shape(node)):
            return self.unknown(node, "it changes the number of channels")
        obstacle = self.obstacles.get(str(node.target)) if node.op == "call_module" else None
        if obstacle is not None:
            self.freeze_inputs(node, obstacle)
            if layout is not None:
                layout.freeze(obstacle)
        return layout

    def _rule(self, node: fx.Node) -> Rule | None:
        if node.op == "call_module":
            module = self.module(node)
            return next((MODULE_RULES[t] for t in type(module).__mro__ if t in MODULE_RULES), None)
        if node.op == "call_function" and callable(node.target):
            return FUNCTION_RULES.get(node.target)
        return METHOD_RULES.get(str(node.target)) if node.op == "call_method" else None

    def freeze_unread(self) -> None:
        """Freeze the groups that no linear layer reads: there is nothing to fold `expand` into."""
        read = {
            segment.channels
            for layer in self.linears.values()
            for segment in resolve(layer.inputs.segments if layer.inputs else ())
        }
        for _, channels in self.channels:
            for segment in resolve([Segment(channels)]):
                if segment.channels not in read:
                    segment.channels.freeze("no layer reads it")


def _structure(analysis: Analysis, graphs: dict[bool, fx.Graph]) -> Structure:
    """Turn layouts, which refer to the union-find, into pieces, which are plain numbers."""
    names: dict[Channels, str] = {}
    for name, channels in analysis.channels:
        for segment in resolve([Segment(channels)]):
            names.setdefault(segment.channels, name)
    index: dict[Channels, int] = {}
    groups: list[ChannelGroup] = []

    def pieces(layout: Layout) -> Pieces:
        result = []
        for segment in resolve(layout.segments):
            root = segment.channels
            if root not in index:
                index[root] = len(index)
                name = _unique(names.get(root, "(constant)"), [group.name for group in groups])
                groups.append(ChannelGroup(name, root.width, root.blocks, root.reason))
            result.append(Piece(index[root], root.width, segment.repeat))
        return tuple(result)

    linears = {
        name: LinearLayer(
            name,
            # A fully connected layer acts on the last dimension of any tensor.
            -1 if isinstance(analysis.model.get_submodule(name), nn.Linear) else layer.dim,
            pieces(layer.inputs) if layer.inputs else None,
            pieces(layer.outputs),
            layer.groups,
            layer.macs,
            _first_reader(analysis, layer),
        )
        for name, layer in analysis.linears.items()
    }
    channelwise = {
        name: ChannelwiseLayer(name, pieces(layout), axis, times, macs)
        for name, (layout, axis, times, macs) in analysis.channelwise.items()
    }
    tensors = {
        training: {
            node.name: ChannelTensor(layout.dim, pieces(layout))
            for node, layout in analysis.layouts(graph.nodes)
        }
        for training, graph in graphs.items()
    }
    called = {
        str(node.target): analysis.module(node)
        for graph in graphs.values()
        for node in graph.find_nodes(op="call_module")
    }
    inplace = frozenset(name for name, m in called.items() if getattr(m, "inplace", False))
    modules = {name: describe(module) for name, module in called.items()}
    constants = {
        str(node.target): getattr(analysis.model, str(node.target))
        for graph in graphs.values()
        for node in graph.find_nodes(op="get_attr")
        if str(node.target).startswith("_tensor_constant")
    }
    return Structure(
        graphs, tensors, tuple(groups), linears, channelwise, inplace, modules, constants
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
