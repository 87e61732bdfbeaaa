"""The forward code of a blended model, generated for the current state of every α.

A program computes what is needed and nothing else: at α = 1 no branch, at α = 0 no wide path.
Each tensor of the original graph may exist in its wide form, its narrow form, or both.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import islice

from torch import fx

from branchprune.blending.feature_matching import mismatch, pulled, record
from branchprune.blending.forms import NARROW, WIDE, Forms
from branchprune.blending.path_norms import normalized_apart, with_own_statistics
from branchprune.blending.path_sampling import (
    PathMixing,
    along_examples,
    drawn,
    drawn_for_each_example,
    met,
)
from branchprune.blending.projections import apply_folded
from branchprune.graph.autocast import regions_of, set_regions
from branchprune.graph.module_numbers import Values, replace_numbers
from branchprune.graph.structure import LinearLayer, Pieces, Structure


class ProgramWriter:
    """Writes the graph of a blended model, each node in the forms that are needed.

    Args:
        structure: See `branchprune.blending.programs.compile_program`, as all others.

    Attributes:
        forms: The forms in which each node is needed.
        written: The new node for each node and form.
        mixed_by: The new node of α of every group, or of what was drawn in its place.
        pulled: The new node of each tensor that feature matching pulls towards the wide one, by
            the linear end behind it and the tensor.
        terms: The new nodes of the losses of feature matching, one a linear end.
        matched: The linear ends at which there is such a loss.
        features: The new node of what each linear end reads, where these are returned, too.
        read_apart: The forms that the linear layers read, by node, which compute each path apart:
            of both, their output holds one behind the other.
    """

    def __init__(
        self,
        structure: Structure,
        training: bool,
        alphas: Mapping[int, float],
        fold: bool,
        numbers: Values,
        mixing: PathMixing,
        features: bool,
    ) -> None:
        self.structure, self.alphas, self.fold = structure, alphas, fold
        self.numbers = numbers
        self.features: dict[str, fx.Node] | None = {} if features else None
        between = any(0 < alpha < 1 for alpha in alphas.values())
        self.mixing, self.matching = mixing.mixing if between else "sum", mixing.matching
        self.computed_apart = mixing.apart
        self.kept = mixing.kept if training and between else frozenset[str]()
        self.read_apart: dict[fx.Node, set[str]] = {}
        self.source = structure.graphs[training]
        self.forms = Forms(structure, training, alphas, numbers)
        self.graph = fx.Graph()
        self.written: dict[tuple[fx.Node, str], fx.Node] = {}
        self.mixed_by: fx.Node | None = None
        self.pulled: dict[tuple[str, fx.Node], fx.Node] = {}
        self.terms: list[fx.Node] = []

    def write(self) -> fx.Graph:
        """Return the graph."""
        self.matched = self._matched_ends() if self.matching else set()
        for node in self.source.nodes:
            before = len(self.graph.nodes)
            self._write_node(node)
            for new in islice(reversed(self.graph.nodes), len(self.graph.nodes) - before):
                set_regions(new, regions_of(node))
        return self.graph

    def _write_node(self, node: fx.Node) -> None:
        if node.op == "output" and self.terms:
            value = self.graph.get_attr("matching_loss")
            self.graph.call_function(record, (value, self.terms, self._weight))
        if self.forms.is_linear(node):
            self._write_linear(node)
        elif self.forms.is_meeting(node):
            self._write_meeting(node)
        else:
            self._write_other(node)

    def _matched_ends(self) -> set[str]:
        """Return the linear ends at which both paths meet."""
        layers = [
            self.structure.linears[str(node.target)]
            for node in self.source.nodes
            if self.forms.is_linear(node) and self.forms.needed[node]
        ]
        return {layer.expand for layer in layers if any(self._between(layer.inputs))}

    def _between(self, pieces: Pieces | None) -> list[bool]:
        """Return, for each piece, whether 0 < α < 1, so that both paths are computed."""
        return [0 < self.alphas.get(piece.group, 0) < 1 for piece in pieces or ()]

    @property
    def _weight(self) -> float:
        """The weight of feature matching at each end."""
        return self.matching / len(self.matched)

    def _value(self, user: fx.Node, node: fx.Node, form: str) -> fx.Node:
        return self.written[node, self.forms.form_read(user, node, form)]

    def _write_other(self, node: fx.Node) -> None:
        needed = set(self.forms.needed[node]) | ({WIDE} if node.op == "placeholder" else set())
        for form in sorted(needed):
            copy = self._copy(node, form)
            if node.op == "output" and self.features is not None:
                copy.args = ((copy.args[0], self.features),)
            self.written[node, form] = copy

    def _copy(self, node: fx.Node, form: str) -> fx.Node:
        """Write a node that reads one form of everything."""
        target = node.target
        if node.op == "call_module":
            target = self._module(str(target), form)
            paths = next(filter(None, map(self.read_apart.get, node.all_input_nodes)), {form})
            if len(paths) > 1:
                return self._write_norms(node, target, form)
            if form not in paths:
                target = f"private.{target}"
            if node.target in self.kept and not target.startswith("twin."):
                read = partial(self._value, node, form=form)
                args = self._attribute(target), *fx.map_arg(node.args, read)
                return self.graph.call_function(
                    with_own_statistics, args, fx.map_arg(node.kwargs, read)
                )
        elif node.op == "get_attr":
            target = self._tensor(node, form)
        copy = self.graph.node_copy(node, partial(self._value, node, form=form))
        copy.target = target
        if form == NARROW:
            replace_numbers(copy, self.numbers)
        return copy

    def _write_norms(self, node: fx.Node, own: str, form: str) -> fx.Node:
        """Write the norms of each path behind a layer that computes them apart, and the mixture."""
        [operand] = node.all_input_nodes
        norms = self._attribute(own), self._attribute(f"private.{own}")
        of_wide, of_branch = norms if form == WIDE else reversed(norms)
        [group] = self.forms.branches(self.structure.linears[str(operand.target)].inputs)
        branch = [*self.alphas].index(group)
        both = self._value(node, operand, form)
        operands = (of_wide, of_branch, both, self._mixed_by(), branch)
        return self.graph.call_function(normalized_apart, operands)

    def _write_meeting(self, node: fx.Node) -> None:
        """Write a node in whose output both paths meet."""
        if not self.forms.needed[node]:
            return
        copies = {form: self._copy(node, form) for form in sorted(self.forms.met(node))}
        output = next(iter(copies.values()))
        if len(copies) > 1:
            groups = [*self.alphas]
            branches = sorted(groups.index(group) for group in self.forms.ending[node])
            operands = (copies[NARROW], copies[WIDE], self._mixed_by(), branches)
            output = self.graph.call_function(met, operands)
        self.written[node, WIDE] = output

    def _tensor(self, node: fx.Node, form: str) -> str:
        name = str(node.target)
        if name in self.structure.constants:
            return f"constants.{name.rpartition('.')[2]}"
        return f"twin.{name}" if form == NARROW and node in self.forms.twins else f"model.{name}"

    def _module(self, name: str, form: str) -> str:
        found = self.structure.channelwise.get(name) or self.structure.twins.get(name)
        if form == NARROW and found is not None and self.forms.live(found.pieces):
            return f"twin.{name}"
        return f"plain.{name}" if name in self.structure.inplace else f"model.{name}"

    def _write_linear(self, node: fx.Node) -> None:
        needed = self.forms.needed[node]
        if not needed:
            return
        name, layer = str(node.target), self.structure.linears[str(node.target)]
        operand, rest = node.all_input_nodes[0], node.args[1:]
        forms = self.forms.read(layer.inputs)
        expand = f"expand.{layer.expand}"
        further = bool(rest or len(node.kwargs) > (not node.args))  # arguments beside its input
        folds_in = self.fold and not further and forms == {NARROW}
        folds_out = self.fold and not further and needed == {NARROW}
        x = self._value(node, operand, NARROW if NARROW in forms else WIDE)
        if self.features is not None and NARROW in forms:
            self.features.setdefault(layer.expand, x)
        if layer.name in self.computed_apart:
            self.read_apart[node] = forms
        if forms == {WIDE, NARROW}:
            apart = node in self.read_apart
            x = self._write_mixed(layer, x, self._value(node, operand, WIDE), apart)
        elif forms == {NARROW} and not folds_in:
            x = self.graph.call_module(expand, (x,))
        if folds_in or folds_out:
            self._write_folded(node, x, expand if folds_in else None, folds_out)
            return
        z = self.graph.node_copy(node, lambda n: x if n is operand else self._value(node, n, WIDE))
        z.target = f"model.{name}"
        if WIDE in needed:
            self.written[node, WIDE] = z
        if NARROW in needed:
            self.written[node, NARROW] = self.graph.call_module(f"reduce.{name}", (z,))

    def _write_mixed(
        self, layer: LinearLayer, narrow: fx.Node, wide: fx.Node, apart: bool
    ) -> fx.Node:
        """Write what a layer reads of both paths."""
        path, alphas = f"expand.{layer.expand}", self._mixed_by()
        if self.mixing == "sample":
            operands = (alphas, wide, layer.dim, layer.name)
            alphas = self.graph.call_function(along_examples, operands)
        if layer.expand in self.matched:
            narrow = self._write_pulled(layer, narrow, wide)
        return self.graph.call_module(path, (narrow, wide, alphas, *[True] * apart))

    def _write_pulled(self, layer: LinearLayer, narrow: fx.Node, wide: fx.Node) -> fx.Node:
        """Write feature matching, once for all layers that read the same tensor."""
        key = (layer.expand, narrow)
        if key not in self.pulled:
            end, live = self._attribute(f"expand.{layer.expand}"), self._between(layer.inputs)
            term = self.graph.call_function(mismatch, (end, narrow, wide, live))
            self.terms.append(term)
            self.pulled[key] = self.graph.call_function(pulled, (narrow, term, self._weight))
        return self.pulled[key]

    def _mixed_by(self) -> fx.Node:
        """Return α of every group, or what was drawn in its place."""
        if self.mixed_by is None:
            self.mixed_by = self.graph.get_attr("alphas")
            if self.mixing == "group":
                self.mixed_by = self.graph.call_function(drawn, (self.mixed_by,))
            if self.mixing == "sample":
                inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
                operands = (self.mixed_by, inputs)
                self.mixed_by = self.graph.call_function(drawn_for_each_example, operands)
        return self.mixed_by

    def _write_folded(self, node: fx.Node, x: fx.Node, expand: str | None, reduce: bool) -> None:
        name = node.target
        modules = (f"model.{name}", f"reduce.{name}" if reduce else None, expand)
        ends = [None if path is None else self._attribute(path) for path in modules]
        folded = self.graph.call_function(apply_folded, (*ends, x))
        self.written[node, NARROW if reduce else WIDE] = folded
        if not reduce and NARROW in self.forms.needed[node]:
            narrow = self.graph.call_module(f"reduce.{name}", (folded,))
            self.written[node, NARROW] = narrow

    def _attribute(self, path: str) -> fx.Node:
        return self.graph.create_node("get_attr", path)
