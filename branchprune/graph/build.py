"""From a model to its structure: trace, walk, and turn what was found into plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import fx, nn

from branchprune.graph.fixed_layers import find_obstacles, find_opaque, find_readable
from branchprune.graph.inputs import Example
from branchprune.graph.layers import describe
from branchprune.graph.nodes import Storage
from branchprune.graph.numbering import (
    Numbering,
    channel_parameters,
    channel_tensors,
    channelwise_layers,
    contractions,
    linear_layers,
    twin_layers,
    width_numbers,
)
from branchprune.graph.other_work import is_counted, other_work
from branchprune.graph.reasons import Reason
from branchprune.graph.state import Analysis
from branchprune.graph.structure import Structure
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
    traced = trace(model, example, inside, left_out, is_counted)
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


def _structure(analysis: Analysis, traced: Traced, inside: str) -> Structure:
    """Return what the walk has found, with groups by number in place of the union-find."""
    graphs, model = traced.graphs, analysis.model
    numbering = Numbering(analysis.channels)
    linears = linear_layers(analysis, numbering)
    channelwise = channelwise_layers(analysis, numbering)
    parameters = channel_parameters(analysis, numbering)
    tensors = channel_tensors(analysis, graphs, numbering)
    twins = twin_layers(analysis, graphs[False], numbering)
    ending = contractions(analysis, graphs, numbering)
    numbers = width_numbers(analysis, numbering)
    unseen, others = other_work(analysis, graphs[False], numbering)
    effects = {
        training: frozenset(node.name for node in graph.nodes if has_effect(analysis, node))
        for training, graph in graphs.items()
    }
    called = {
        str(node.target): analysis.module(node)
        for graph in graphs.values()
        for node in graph.find_nodes(op="call_module")
    }
    part = model.get_submodule(inside).named_modules(prefix=inside)
    owners = {name: module for name, module in part if module._parameters}
    return Structure(
        inside=inside,
        arguments=len(graphs[False].find_nodes(op="placeholder")),
        graphs=graphs,
        tensors=tensors,
        effects=effects,
        groups=tuple(numbering.groups),
        linears=linears,
        channelwise=channelwise,
        parameters=parameters,
        twins=twins,
        contractions=ending,
        unseen=unseen,
        other_work=others,
        inplace=frozenset(name for name, m in called.items() if getattr(m, "inplace", False)),
        modules={name: describe(module) for name, module in (called | owners).items()},
        constants=traced.constants,
        numbers=numbers,
        used=_used(graphs.values()),
        unknown=_unknown(analysis, graphs.values()),
        storages=_storages(traced),
    )


def _storages(traced: Traced) -> dict[str, Storage]:
    """Return where tensors of evaluation lie, by node name, numbered as they come."""
    numbers: dict[int, int] = {}
    return {
        node.name: replace(found, key=numbers.setdefault(found.key, len(numbers)))
        for node in traced.graphs[False].nodes
        if (found := traced.recorded.storages.get(node)) is not None
    }


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
