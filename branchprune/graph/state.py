"""What the walk over the traced graphs knows so far, and what rules may ask of it and tell it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from branchprune.errors import PruneError
from branchprune.graph.channels import Channels, Known, Layout, Segment, layouts_in, unify
from branchprune.graph.layer_records import Linear, Product, Twin
from branchprune.graph.layers import multiply_adds
from branchprune.graph.module_numbers import ModuleNumber
from branchprune.graph.nodes import WHERE, Recorded, asked_for_its_type
from branchprune.graph.reasons import (
    NOT_KNOWN,
    Reason,
    first_lost,
    how_to_teach,
    name_of_output,
    place_of,
)
from branchprune.graph.width_constraints import Constraints, Follows

WAY_OUT = "write an attribute of its module in its place, such as self.size"
"""What to write instead of a plain number."""


@dataclass(eq=False)
class Analysis:
    """The state of the walk, with what rules may ask of it and tell it.

    Rules use its methods; what the fields hold follows from them.

    Attributes:
        model: The network.
        obstacles: Why the weights of a module cannot be replaced, by its path: its channels stay.
        readable: Names of the parameters and buffers that forward reads itself and that may
            become narrower.
        opaque: Modules that are not looked into.
        counting: Whether multiply-adds are counted: in the graph of evaluation, not of training.
        batches: The batch size behind each tensor: of how many examples it is made.
        modules: The modules by path, filled at the first question.
        recorded: Shapes and lengths of the nodes' values for the example.
        values: What each node's rule has found: where the channels of its output are.
        lost: For nodes whose output channels are not known, the reason.
        linears: Convolutions and fully connected layers by path.
        channelwise: Modules with one entry a channel in their tensors (norms, depthwise
            convolutions) by path: the channels they read, the axis of these entries (None: no
            such axis), outputs for each input channel, multiply-adds.
        twins: Layers whose twin is a layer of its own, by path.
        contractions: For the nodes at which channels end, those channels.
        products: For functions that multiply, with which channels their work grows.
        blocks: Channels of several layers that fall into equally wide blocks, as the groups of a
            norm: how many blocks, and of what.
        readers: Parameters and what reads them by a rule that knows of their channels.
        parameters: For each parameter or buffer that forward reads itself, where its channels
            are, by the axis that counts them.
        constants: Tensors that forward makes from plain numbers, by their names in the graphs.
        channels: All output channels that have been met, with the path of the layer that makes
            them, in order of their first call.
        constraints: The numbers in forward that are widths.
        settled: Guards that hold whatever the widths.
    """

    model: nn.Module
    obstacles: dict[str, str]
    readable: frozenset[str]
    opaque: frozenset[nn.Module] = frozenset()
    counting: bool = True
    batches: dict[fx.Node, int] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    recorded: Recorded = field(default_factory=Recorded)
    values: dict[fx.Node, Known] = field(default_factory=dict)
    lost: dict[fx.Node, Reason] = field(default_factory=dict)
    linears: dict[str, Linear] = field(default_factory=dict)
    channelwise: dict[str, tuple[Layout, int | None, int, int]] = field(default_factory=dict)
    twins: dict[str, Twin] = field(default_factory=dict)
    contractions: dict[fx.Node, list[Layout]] = field(default_factory=dict)
    products: dict[fx.Node, tuple[Product, ...]] = field(default_factory=dict)
    blocks: list[tuple[Layout, int, str]] = field(default_factory=list)
    readers: set[tuple[fx.Node, fx.Node]] = field(default_factory=set)
    parameters: dict[str, dict[int, Layout]] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    channels: list[tuple[str, Channels]] = field(default_factory=list)
    constraints: Constraints = field(default_factory=Constraints)
    settled: set[fx.Node] = field(default_factory=set)

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
            for layout in layouts_in(self.values.get(node)):
                yield node, layout

    def parameter(
        self, node: fx.Node, dim: int | None = None, reader: fx.Node | None = None
    ) -> Layout | None:
        """Return the layout of a parameter or buffer that forward itself reads.

        Args:
            node: The node that reads it.
            dim: The dimension that counts channels; None: the only one that is longer than 1.
            reader: The node whose rule asks, which has to check the dimension.
        """
        name = str(node.target)
        if node.op != "get_attr" or name not in self.readable or not self.is_tensor(node):
            return None
        if len(self.parameters.get(name, ())) > 1:
            return None  # the weight of a convolution
        if name not in self.parameters:
            long = [i for i, size in enumerate(self.shape(node)) if size > 1]
            if dim is None and len(long) != 1:
                return None
            at = long[0] if dim is None else dim
            channels = Channels(self.shape(node)[at], free=True)
            self.parameters[name] = {at: Layout(at, (Segment(channels),))}
        layout = next(iter(self.parameters[name].values()))
        if reader is not None and layout.dim == dim:
            self.readers.add((node, reader))
        return layout

    def describe(self, node: fx.Node) -> str:
        """Return how to name a node to a person: what it calls, and where in the model."""
        if node.op == "call_module":
            return f"{node.target} ({type(self.module(node)).__name__})"
        where = f"in {node.meta.get(WHERE, 'the model')}"
        return f"`{getattr(node.target, '__name__', node.target)}` ({where})"

    def freeze_inputs(self, node: fx.Node, reason: str) -> None:
        """Freeze the groups of everything the node reads, for a reason that its line goes with."""
        read = [n for n in node.all_input_nodes if n is not asked_for_its_type(node)]
        place = "" if node.op == "output" else place_of(node)
        for _, layout in self.layouts(read):
            layout.freeze(Reason(reason, place))

    def unknown(self, node: fx.Node, why: str = NOT_KNOWN, remedy: str = "") -> Layout | None:
        """Freeze what a node reads that the rules do not understand; its output is unknown too.

        Args:
            node: The node.
            why: What is not understood.
            remedy: What to write or do so that the widths may shrink.
        """
        if why == NOT_KNOWN:
            remedy = how_to_teach(node, self.module(node) if node.op == "call_module" else None)
        lost = Reason(f"{self.describe(node)}: {why}", place_of(node), remedy)
        self.lost[node] = lost
        self.freeze_inputs(node, lost.put(f"read by {lost}"))
        return None

    def follows(
        self,
        node: fx.Node,
        number: Any,
        segments: Iterable[Segment],
        sign: int = 1,
        remedy: str = WAY_OUT,
    ) -> None:
        """Note that a number in forward is the width of some channels; one that is named stays.

        Args:
            node: What reads the number.
            number: The number: of a module, a node that computes it from sizes, or a plain one.
            segments: The channels.
            sign: -1 for a number that counts from the end.
            remedy: What to write in place of a plain number.
        """
        where, place, parts = self.describe(node), place_of(node), tuple(segments)
        if isinstance(number, ModuleNumber | fx.Node):
            self.constraints.follows.append(Follows(number, parts, sign, where, place))
            self.constraints.read.add((node, id(number)))
            return
        reason = Reason(f"{where} names the size {number}", place, remedy)
        for segment in parts:
            segment.channels.freeze(reason)

    def why_unknown(self, node: fx.Node) -> Reason | None:
        """Return where the channels of a tensor were lost sight of; None: the input has none."""
        return first_lost(node, self.lost, lambda n: self.is_tensor(n) and not self.values.get(n))

    def contract(self, node: fx.Node, layout: Layout) -> None:
        """Note that channels which a node reads end there: its output does not have them."""
        self.contractions.setdefault(node, []).append(layout)

    def why_it_stays(self, node: fx.Node) -> Reason:
        """Name a tensor whose width stays, and say where its channels were lost sight of."""
        why = self.why_unknown(node) or Reason("")
        because = f" ({why})" if why else ""
        return why.put(f"{name_of_output(node, self.describe)}, whose width stays{because}")

    def linear(self, node: fx.Node, dim: int, source: Layout | None) -> Layout:
        """Note a convolution or fully connected layer, and return where its output channels are.

        Its outputs are new channels the first time it is met. What it reads is tied to what it
        has read before.

        Args:
            node: The call.
            dim: The channel dimension of its output.
            source: The channels that it reads; None: not known.
        """
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
            layer.read(source, name)
        return layer.outputs

    def twin(self, node: fx.Node, layer: Twin, source: Layout | None) -> Twin:
        """Note a call of a layer whose twin is its own; `layer` is what a first call finds."""
        name = str(node.target)
        if name not in self.twins:
            self.twins[name] = layer
            self.channels += [(name, segment.channels) for segment in layer.made.segments[:1]]
        layer = self.twins[name]
        if source is not None:
            layer.read(source, name)
            self.contract(node, source)
        layer.stays = layer.stays or source is None
        if layer.stays and layer.inputs is not None:
            layer.inputs.freeze(f"{name} reads what stays, too")
        return layer

    def resized(self, node: fx.Node, axis: int | None, times: int = 1) -> Layout | None:
        """Note a module whose tensors have one entry a channel, and return where its outputs are.

        Args:
            node: The call.
            axis: The dimension of these entries in its parameters; None: it has no such tensors.
            times: Outputs for each input channel, as of a depthwise convolution.
        """
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
        operand = self.operand(node)
        macs = multiply_adds(self.module(node), self.shape(operand), self.shape(node), dim)
        return macs // self.batches.get(operand, 1)


Rule = Callable[[Analysis, fx.Node], Known]
"""What an operation does to channels: the layout of a node's output, None where none are known."""
