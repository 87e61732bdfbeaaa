"""Modes of modules: where the graphs of training and evaluation differ, and what follows whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx, nn

from branchprune.graph.nodes import WHERE


def take_modes(copies: Iterable[nn.Module], model: nn.Module) -> None:
    """Put modules into the mode of those that have the same paths in a model.

    Args:
        copies: What holds the modules.
        model: The model, whose own `train` may leave a part of it in another mode.
    """
    modes = {n: m.training for n, m in model.named_modules(remove_duplicate=False)}
    for holder in copies:
        for name, module in holder.named_modules():
            module.training = modes.get(name, module.training)


def differing_modules(graphs: Mapping[bool, fx.Graph]) -> tuple[str, ...]:
    """Return the paths of the modules whose forward is traced differently in the two modes."""
    if graphs[True] is graphs[False]:
        return ()
    steps: dict[bool, dict[str, list[object]]] = {True: {}, False: {}}
    for training, graph in graphs.items():
        for node in graph.nodes:
            plain = fx.map_arg((node.args, node.kwargs), lambda _: None)
            step = (node.op, node.target, repr(plain))
            if where := node.meta.get(WHERE):
                steps[training].setdefault(where, []).append(step)
    paths = dict.fromkeys((*steps[True], *steps[False]))
    return tuple(path for path in paths if steps[True].get(path) != steps[False].get(path))
