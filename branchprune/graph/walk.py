"""The walk over the traced graphs that finds what every tensor's channels are made of."""

from __future__ import annotations

import operator
from collections.abc import Iterator

from torch import fx, nn

from branchprune.graph.blocks import even_out
from branchprune.graph.channels import Known, Layout, Segment, layouts_in, resolve
from branchprune.graph.counted_sizes import counted, counted_by
from branchprune.graph.measured import is_measured
from branchprune.graph.module_numbers import ModuleNumber, numbers_in
from branchprune.graph.nodes import measured
from branchprune.graph.reasons import OUTPUT, Reason, place_of
from branchprune.graph.rules.elementwise import same
from branchprune.graph.rules.multihead import multihead
from branchprune.graph.rules.own_forward import find_fault, make_twin
from branchprune.graph.rules.recurrent import recurrent
from branchprune.graph.rules.registry import rule_of, to_be_checked
from branchprune.graph.rules.shape import getitem, size_of
from branchprune.graph.rules.split import divide, unbind
from branchprune.graph.rules.unlisted import unlisted
from branchprune.graph.state import Analysis, Rule
from branchprune.graph.tracing.guards import GUARDS, same_branch, same_length, same_number

WITHOUT_TENSOR = (size_of, divide, unbind, getitem, recurrent, multihead)
"""Rules of operations whose result may be something else than a tensor."""


def walk(analysis: Analysis, graph: fx.Graph) -> None:
    """Apply the rules to a graph."""
    for node in graph.nodes:
        if node.op == "output" or _makes_output(node):
            analysis.freeze_inputs(node, OUTPUT)
            continue
        _note_batch(analysis, node)
        value = _apply(analysis, node)
        analysis.values[node] = value
        if node.target in (same_branch, same_number) and not _is_settled(analysis, node):
            reason = f"forward asks for its width at {node.args[2]}"
            remedy = "ask for an attribute of its module instead, such as self.scale"
            _freeze_measured(analysis, node, Reason(reason, place_of(node), remedy))
        _pin(analysis, node)
        if value is None and analysis.is_tensor(node) and node not in analysis.contractions:
            analysis.freeze_inputs(node, f"read by {analysis.describe(node)}")
            reason = f"its width is a size in {analysis.describe(node)}"
            _freeze_measured(analysis, node, Reason(reason, place_of(node)))


def _pin(analysis: Analysis, node: fx.Node) -> None:
    """Note the attributes that an operation reads as something else than a width."""
    if node not in analysis.settled and not _is_number(analysis, node):
        numbers = _numbers_read(analysis, node, node)
        analysis.constraints.pin(numbers, analysis.describe(node))


def _numbers_read(analysis: Analysis, reader: fx.Node, node: fx.Node) -> Iterator[ModuleNumber]:
    """Yield the numbers of modules that an operation reads, but for those that are widths."""
    widths = analysis.constraints.read
    for number in numbers_in((node.args, node.kwargs)):
        if (reader, id(number)) not in widths:
            yield number
    for each in node.all_input_nodes:
        if (reader, id(each)) not in widths and _is_number(analysis, each):
            yield from _numbers_read(analysis, reader, each)


def _is_number(analysis: Analysis, node: fx.Node) -> bool:
    """Return whether a node computes a number from sizes."""
    is_value = analysis.is_tensor(node) or node in analysis.recorded.lengths
    return node.op.startswith("call_") and node.target not in GUARDS and not is_value


def _is_settled(analysis: Analysis, guard: fx.Node) -> bool:
    """Return whether a guard says that a tensor has the width that a module keeps of it."""
    condition, outcome = guard.args[:2]
    equals = (operator.eq, True), (operator.ne, False)
    if not isinstance(condition, fx.Node) or (condition.target, outcome) not in equals:
        return False
    sizes = [measured(size) for size in condition.args]
    numbers = [*numbers_in(condition.args)]
    for tensor, dim in filter(None, sizes):
        layout = counted(analysis, tensor, dim)
        if layout is not None and numbers:
            analysis.follows(condition, numbers[0], layout.segments)
            analysis.settled.add(guard)
            return True
    return False


def _note_batch(analysis: Analysis, node: fx.Node) -> None:
    """Note of how many examples the node's output is made: the batch of the inputs it reads.

    Where inputs differ, as a mask without a batch, that one counts which the output still has.
    """
    shape = analysis.shape(node) if analysis.is_tensor(node) else ()
    size = shape[0] if len(shape) > 1 else None
    read = [analysis.batches[n] for n in node.all_input_nodes if n in analysis.batches]
    if read:
        analysis.batches[node] = size if size in read and size is not None else read[0]
    elif size and (node.op == "placeholder" or _is_item_of_input(node)):
        analysis.batches[node] = size


def _apply(analysis: Analysis, node: fx.Node) -> Known:
    if node.op == "get_attr":
        return analysis.parameter(node)
    module = analysis.module(node) if node.op == "call_module" else None
    if module in analysis.opaque:
        return analysis.unknown(node, "it is opaque")
    if node.target is same_length:
        return None
    rule, known = rule_of(node, module), list(analysis.layouts(node.all_input_nodes))
    returns_tensor = analysis.is_tensor(node)
    if rule is None or (rule is size_of and returns_tensor) or _is_unlike(analysis, node, rule):
        return unlisted(analysis, node)
    if known and not returns_tensor and rule not in WITHOUT_TENSOR:
        return analysis.unknown(node)
    value = rule(analysis, node)
    if isinstance(value, Layout) and not value.fits(analysis.shape(node)):
        return analysis.unknown(node, "it changes the number of channels")
    if module is not None:
        _freeze_obstacle(analysis, node, module, value)
    return value


def _is_unlike(analysis: Analysis, node: fx.Node, rule: Rule) -> bool:
    """Return whether a node that is listed as `same` reads or returns more than one tensor."""
    several = sum(analysis.is_tensor(n) for n in node.all_input_nodes) > 1
    return rule is same and (several or not analysis.is_tensor(node))


def _freeze_obstacle(analysis: Analysis, node: fx.Node, module: nn.Module, value: Known) -> None:
    """Freeze what a module reads and makes whose weights cannot be replaced one for one."""
    name = str(node.target)
    if to_be_checked(module) and name not in analysis.obstacles and name not in analysis.twins:
        fault = find_fault(module, analysis, node)
        if fault is not None and not make_twin(analysis, node):
            analysis.obstacles[name] = f"{analysis.describe(node)} {fault}"
    obstacle = analysis.obstacles.get(name)
    if obstacle is not None:
        analysis.freeze_inputs(node, obstacle)
        for layout in layouts_in(value):
            layout.freeze(obstacle)


def _freeze_measured(analysis: Analysis, node: fx.Node, reason: str) -> None:
    """Freeze groups whose width a node asks for that does not follow it."""
    for number in node.all_input_nodes:
        for layout in () if analysis.is_tensor(number) else counted_by(analysis, number):
            layout.freeze(reason)


def has_effect(analysis: Analysis, node: fx.Node) -> bool:
    """Return whether a node that nothing reads may change what it reads."""
    if node.users or not node.op.startswith("call_"):
        return False
    if node.target in GUARDS:
        return node not in analysis.settled
    module = analysis.module(node) if node.op == "call_module" else None
    return rule_of(node, module) is None and any(map(analysis.is_tensor, node.all_input_nodes))


def finish(analysis: Analysis) -> None:
    """Freeze what no linear layer makes or reads; forget parameters that have no channels.

    Groups are frozen, too, for whose widths the numbers in forward do not follow.
    """

    def size(tensor: fx.Node, dim: int) -> tuple[Segment, ...] | int:
        layout = counted(analysis, tensor, dim)
        return analysis.shape(tensor)[dim] if layout is None else layout.segments

    analysis.constraints.tie()
    even_out(analysis)
    analysis.constraints.freeze_unsolvable([c for _, c in analysis.channels], size)
    _freeze_parameters(analysis)
    read = {
        segment.channels
        for layer in analysis.linears.values()
        for segment in resolve(layer.inputs.segments if layer.inputs else ())
    }
    ending = [layout for found in analysis.contractions.values() for layout in found]
    read |= {segment.channels for layout in ending for segment in resolve(layout.segments)}
    for _, channels in analysis.channels:
        for segment in resolve([Segment(channels)]):
            if segment.channels not in read:
                segment.channels.freeze("no layer reads it")
    for name, axes in [*analysis.parameters.items()]:
        if all(layout.free for layout in axes.values()):
            del analysis.parameters[name]
    for node, value in analysis.values.items():
        if isinstance(value, Layout) and value.free:
            analysis.values[node] = None
        elif isinstance(value, Layout):
            _freeze_free(value)


def _freeze_parameters(analysis: Analysis) -> None:
    """Freeze the channels of parameters that something reads which does not know of them."""
    for node, value in analysis.values.items():
        axes = analysis.parameters.get(str(node.target), {}) if node.op == "get_attr" else {}
        for user in node.users if value is None else ():
            if not is_measured(user, node) and (node, user) not in analysis.readers:
                for layout in axes.values():
                    layout.freeze(f"{node.target} is read by {analysis.describe(user)}")


def _freeze_free(layout: Layout) -> None:
    """Freeze the channels of parameters that stand beside those of layers, tied to none."""
    for segment in resolve(layout.segments):
        if segment.channels.free:
            segment.channels.freeze("no layer makes these entries of a parameter or buffer")


def _is_item_of_input(node: fx.Node) -> bool:
    """Return whether a node takes a tensor out of an input that is a list or dictionary."""
    while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.op == "placeholder"


def _makes_output(node: fx.Node) -> bool:
    """Return whether a node builds a named tuple, which models return."""
    return isinstance(node.target, type) and issubclass(node.target, tuple)
