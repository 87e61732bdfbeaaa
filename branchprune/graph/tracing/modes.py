"""Where the graphs of training and evaluation differ."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from branchprune.graph.nodes import WHERE


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
