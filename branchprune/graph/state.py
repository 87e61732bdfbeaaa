"""The walk over the traced graphs that finds what every tensor's channels are made of."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod

import torch
from torch import fx, nn

from branchprune.errors import PruneError
from branchprune.graph.channels import Channels, Layout, Segment, resolve, unify
from branchprune.graph.nodes import sources
from branchprune.graph.rules.basic import TRANSPOSED, Known
from branchprune.graph.rules.registry import rule_of, to_be_checked
from branchprune.graph.rules.regroup import divide, unbind
from branchprune.graph.rules.shape import getitem, size_of
from branchprune.graph.rules.trial import find_fault
from branchprune.graph.tracing.guards import GUARDS
from branchprune.graph.tracing.shape_propagation import Recorded
from branchprune.graph.tracing.trace import WHERE

WITHOUT_TENSOR = (size_of, divide, unbind, getitem)
"""Rules of operations whose result may be something else than a tensor."""


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
    readable: frozenset[str]
    counting: bool = True
    batches: dict[fx.Node, int] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    recorded: Recorded = field(default_factory=Recorded)
    values: dict[fx.Node, Known] = field(default_factory=dict)
    lost: dict[fx.Node, str] = field(default_factory=dict)
    linears: dict[str, Linear] = field(default_factory=dict)
    channelwise: dict[str, tuple[Layout, int | None, int, int]] = field(default_factory=dict)
    parameters: dict[str, Layout] = field(default_factory=dict)
    channels: list[tuple[str, Channels]] = field(default_factory=list)

    def module(self, node: fx.Node) -> nn.Module:
        """Return the module that a node calls."""
        if not self.modules:
            self.modules.update(self.model.named_modules(remove_duplicate=False))
        return self.modules[str(node.target)]

    def is_tensor(self, node: fx.Node) -> bool:
        """Return whether the node's value is a tensor."""
        return self.recorded.shapes[node] is not None

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of the node's output for the example."""
        shape = self.recorded.shapes[node]
        assert shape is not None, f"{node} is not a tensor"
        return shape

    def length(self, node: fx.Node) -> int:
        """Return how many values the node's output, a tuple, holds."""
        return self.recorded.lengths[node]

    def operand(self, node: fx.Node) -> fx.Node:
        """Return the tensor that the node works on."""
        first = node.args[0] if node.args else node.kwargs.get("input")
        if isinstance(first, fx.Node):
            return first
        found = next((n for n in node.all_input_nodes if self.is_tensor(n)), None)
        if found is None:
            raise PruneError(f"{self.describe(node)} is given no tensor")
        return found

    def layout(self, node: fx.Node) -> Layout | None:
        """Return where the channels of the node's output are, if known."""
        value = self.values.get(node)
        return value if isinstance(value, Layout) else None

    def layouts(self, nodes: Iterable[fx.Node]) -> Iterator[tuple[fx.Node, Layout]]:
        """Yield the nodes whose channels are known; of a tuple, each of its tensors."""
        for node in nodes:
            value = self.values.get(node)
            for layout in value if isinstance(value, tuple) else (value,):
                if layout is not None:
                    yield node, layout

    def parameter(self, node: fx.Node, dim: int | None = None) -> Layout | None:
        """Return the layout of a parameter or buffer that forward itself reads.

        Args:
            node: The node that reads it.
            dim: The dimension that counts channels; None: the only one that is longer than 1.
        """
        name = str(node.target)
        if node.op != "get_attr" or name not in self.readable or not self.is_tensor(node):
            return None
        if name not in self.parameters:
            long = [i for i, size in enumerate(self.shape(node)) if size > 1]
            if dim is None and len(long) != 1:
                return None
            at = long[0] if dim is None else dim
            channels = Channels(self.shape(node)[at], free=True)
            self.parameters[name] = Layout(at, (Segment(channels),))
        return self.parameters[name]

    def describe(self, node: fx.Node) -> str:
        """Return how to name a node to a person: what it calls, and where in the model."""
        if node.op == "call_module":
            return f"{node.target} ({type(self.module(node)).__name__})"
        where = f"in {node.meta[WHERE]}" if WHERE in node.meta else f"node {node.name}"
        return f"`{getattr(node.target, '__name__', node.target)}` ({where})"

    def freeze_inputs(self, node: fx.Node, reason: str) -> None:
        """Freeze the groups of everything the node reads."""
        for _, layout in self.layouts(node.all_input_nodes):
            layout.freeze(reason)

    def unknown(
        self, node: fx.Node, why: str = "its effect on channels is not known"
    ) -> Layout | None:
        """Freeze what a node reads that the rules do not understand; its output is unknown too."""
        self.lost[node] = f"{self.describe(node)}: {why}"
        self.freeze_inputs(node, f"read by {self.lost[node]}")
        return None

    def stays(self, node: fx.Node) -> str:
        """Say that the width of a tensor stays, and where its channels were lost sight of."""
        seen, rest = {node}, [node]
        while rest:
            each = rest.pop(0)
            if each in self.lost:
                return f"{node.name}, whose width stays ({self.lost[each]})"
            new = [n for n in each.all_input_nodes if n not in seen and self.is_tensor(n)]
            seen.update(new)
            rest += [n for n in new if self.values.get(n) is None]
        return f"{node.name}, whose width stays"

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
        batch = self.batches.get(self.operand(node), 1)
        return prod(source) // source[dim] * weight.numel() // batch

    def _note_batch(self, node: fx.Node) -> None:
        """Note of how many examples the node's output is made: the batch of the inputs it reads.

        Where inputs differ, as a mask without a batch, that one counts which the output still has.
        """
        size = self.shape(node)[0] if self.is_tensor(node) and len(self.shape(node)) > 1 else None
        read = [self.batches[n] for n in node.all_input_nodes if n in self.batches]
        if read:
            self.batches[node] = size if size in read and size is not None else read[0]
        elif size and (node.op == "placeholder" or _is_item_of_input(node)):
            self.batches[node] = size

    def walk(self, graph: fx.Graph) -> None:
        """Apply the rules to a graph."""
        for node in graph.nodes:
            if node.op == "output" or _makes_output(node):
                self.freeze_inputs(node, "it is an output of the model")
                continue
            self._note_batch(node)
            value = self._apply(node)
            self.values[node] = value
            if node.target in GUARDS:
                self._freeze_measured(node, f"forward asks for its width at {node.args[2]}")
            if value is None and self.is_tensor(node):
                self.freeze_inputs(node, f"read by {self.describe(node)}")
                self._freeze_measured(node, f"its width is a size in {self.describe(node)}")

    def _freeze_measured(self, node: fx.Node, reason: str) -> None:
        """Freeze groups whose width a node asks for that does not follow it."""
        for number in node.all_input_nodes:
            for tensor, dim in () if self.is_tensor(number) else sources(number, self.is_tensor):
                layout = self.layout(tensor)
                if layout is not None and layout.dim == dim % len(self.shape(tensor)):
                    layout.freeze(reason)

    def _apply(self, node: fx.Node) -> Known:
        if node.op == "get_attr":
            return self.parameter(node)
        module = self.module(node) if node.op == "call_module" else None
        rule, known = rule_of(node, module), list(self.layouts(node.all_input_nodes))
        if rule is None or (known and not self.is_tensor(node) and rule not in WITHOUT_TENSOR):
            return self.unknown(node) if known else None
        value = rule(self, node)
        if isinstance(value, Layout) and not value.fits(self.shape(node)):
            return self.unknown(node, "it changes the number of channels")
        if module is not None:
            self._freeze_obstacle(node, module, value)
        return value

    def _freeze_obstacle(self, node: fx.Node, module: nn.Module, value: Known) -> None:
        """Freeze what a module reads and makes whose weights cannot be replaced one for one."""
        name = str(node.target)
        if to_be_checked(module) and name not in self.obstacles:
            fault = find_fault(module, self, node)
            if fault is not None:
                self.obstacles[name] = f"{self.describe(node)} {fault}"
        obstacle = self.obstacles.get(name)
        if obstacle is not None:
            self.freeze_inputs(node, obstacle)
            for layout in value if isinstance(value, tuple) else (value,):
                if layout is not None:
                    layout.freeze(obstacle)

    def has_effect(self, node: fx.Node) -> bool:
        """Return whether a node that nothing reads may change what it reads."""
        if node.users or not node.op.startswith("call_"):
            return False
        if node.target in GUARDS:
            return True
        module = self.module(node) if node.op == "call_module" else None
        return rule_of(node, module) is None and any(map(self.is_tensor, node.all_input_nodes))

    def finish(self) -> None:
        """Freeze what no linear layer makes or reads; forget parameters that have no channels."""
        read = {
            segment.channels
            for layer in self.linears.values()
            for segment in resolve(layer.inputs.segments if layer.inputs else ())
        }
        for _, channels in self.channels:
            for segment in resolve([Segment(channels)]):
                if segment.channels not in read:
                    segment.channels.freeze("no layer reads it")
        for name in [name for name, layout in self.parameters.items() if layout.free]:
            del self.parameters[name]
        for layout in self.parameters.values():
            for segment in resolve(layout.segments):
                if segment.channels.free:
                    segment.channels.freeze("not made by a layer")
        for node, value in self.values.items():
            if isinstance(value, Layout) and value.free:
                self.values[node] = None


def _is_item_of_input(node: fx.Node) -> bool:
    """Return whether a node takes a tensor out of an input that is a list or dictionary."""
    while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.op == "placeholder"


def _makes_output(node: fx.Node) -> bool:
    """Return whether a node builds a named tuple, which models return."""
    return isinstance(node.target, type) and issubclass(node.target, tuple)
