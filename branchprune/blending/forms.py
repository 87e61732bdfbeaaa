"""In which forms the tensors of a blended model are needed: wide, narrow, or both.

That follows backwards from the outputs and from every α: at α = 1 nothing narrow is needed, at
α = 0 nothing wide but what other layers read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from branchprune.graph.measured import is_measured
from branchprune.graph.module_numbers import Values, numbers_in
from branchprune.graph.nodes import asked_for_its_type
from branchprune.graph.structure import (
    ChannelParameter,
    ChannelwiseLayer,
    Pieces,
    Structure,
    TwinLayer,
)
from branchprune.graph.tracing.guards import same_length

WIDE, NARROW = "wide", "narrow"


class Forms:
    """The forms in which something reads the output of each node of a traced graph.

    Args:
        structure: The model's structure.
        training: Which of the two traced graphs is meant.
        alphas: α of each group that has a branch, by group index.
        numbers: What attributes of the user's modules hold for the branch.

    Attributes:
        twins: Nodes that exist in a narrow form, too: they depend on a branch.
        ending: For the nodes in whose output both paths meet, the groups whose branches these are.
        needed: The forms in which something reads a node's output.
        measured: The forms in which only a size of a node's output is read.
    """

    def __init__(
        self,
        structure: Structure,
        training: bool,
        alphas: Mapping[int, float],
        numbers: Values,
    ) -> None:
        self.structure, self.alphas, self.numbers = structure, alphas, numbers
        self.source = structure.graphs[training]
        self.tensors, self.effects = structure.tensors[training], structure.effects[training]
        self.contractions = structure.contractions[training]
        self.ending: dict[fx.Node, set[int]] = {}
        self.twins = self._with_twins()
        self.needed: dict[fx.Node, set[str]] = {node: set() for node in self.source.nodes}
        self.measured: dict[fx.Node, set[str]] = {node: set() for node in self.source.nodes}
        for node in reversed(self.source.nodes):
            self._mark(node)

    def _with_twins(self) -> set[fx.Node]:
        """Return the nodes that depend on a branch other than through a linear layer."""
        twins: set[fx.Node] = set()
        beside: dict[fx.Node, set[int]] = {}
        for node in self.source.nodes:
            beside[node] = self._beside(node, beside)
            if ending := self._ending(node, twins, beside[node]):
                self.ending[node], beside[node] = ending, set()
            if self.is_linear(node):
                has = bool(self.live(self.structure.linears[str(node.target)].outputs))
            elif node.op == "get_attr":
                parameter = self.structure.parameters.get(str(node.target))
                has = bool(self.live(parameter.pieces if parameter else ()))
            elif self.is_meeting(node):
                has = False
            elif self.is_twin_layer(node):
                has = bool(self.live(self.structure.twins[str(node.target)].pieces))
            else:
                about = asked_for_its_type(node)
                has = any(n in twins for n in node.all_input_nodes if n is not about)
                has = has or self._changes(node)
            if has:
                twins.add(node)
        return twins

    def _ending(self, node: fx.Node, twins: set[fx.Node], beside: set[int]) -> set[int]:
        """Return the groups whose branches meet the wide path in a node's output."""
        found = self.contractions.get(node.name)
        if found is not None:
            return set() if self.live(found.outputs) else self.branches(found.pieces)
        tensor = self.tensors.get(node.name)
        staying = tensor is not None and not self.live(tensor.pieces) and not self.is_linear(node)
        return beside if staying and twins.intersection(node.all_input_nodes) else set()

    def _beside(self, node: fx.Node, before: Mapping[fx.Node, set[int]]) -> set[int]:
        """Return the groups with a branch that share a twin with all that a node's output holds.

        Channels that stay are then others in the branch: they have passed the twin, too.
        """
        if self.is_linear(node):
            return set()
        name = str(node.target)
        found: ChannelwiseLayer | ChannelParameter | TwinLayer | None = None
        if node.op == "call_module":
            layers = self.structure
            found = layers.channelwise.get(name) or layers.twins.get(name)
        elif node.op == "get_attr":
            found = self.structure.parameters.get(name)
        own = self.branches(found.pieces) if found is not None else set()
        return own.union(*(before[n] for n in node.all_input_nodes))

    def branches(self, pieces: Pieces | None) -> set[int]:
        """Return the groups among some pieces that have a branch."""
        return {piece.group for piece in pieces or () if piece.group in self.alphas}

    def _changes(self, node: fx.Node) -> bool:
        """Return whether a node reads a number that is another one for the branch."""
        numbers = numbers_in((node.args, node.kwargs)) if self.numbers else ()
        return any(number.at(self.numbers) != number for number in numbers)

    def is_linear(self, node: fx.Node) -> bool:
        """Return whether a node calls a linear layer."""
        return node.op == "call_module" and str(node.target) in self.structure.linears

    def is_twin_layer(self, node: fx.Node) -> bool:
        """Return whether a node calls a layer whose twin is one of its own."""
        return node.op == "call_module" and str(node.target) in self.structure.twins

    def is_meeting(self, node: fx.Node) -> bool:
        """Return whether both paths meet in a node's output.

        They do where channels with a branch end, and where those that stay part from others with
        which they have passed a norm.
        """
        return node in self.ending

    def met(self, node: fx.Node) -> set[str]:
        """Return the forms of what it reads from which such a node is computed."""
        return self._forms([self.alphas[group] for group in self.ending[node]])

    def live(self, pieces: Pieces | None) -> list[float]:
        """Return α of the pieces that have a branch."""
        return [self.alphas[piece.group] for piece in pieces or () if piece.group in self.alphas]

    def read(self, pieces: Pieces | None) -> set[str]:
        """Return the forms in which a consumer reads a tensor."""
        return self._forms(self.live(pieces))

    def _forms(self, alphas: Sequence[float]) -> set[str]:
        if all(alpha == 1 for alpha in alphas):
            return {WIDE}
        return {NARROW} if all(alpha == 0 for alpha in alphas) else {WIDE, NARROW}

    def _mark(self, node: fx.Node) -> None:
        needed = self.needed[node]
        for form in self.measured[node] - needed:
            needed.add(self._form_measured(node, form))
        if node.op == "output" or node.name in self.effects:
            needed.add(WIDE)
        if self.is_linear(node) and needed:
            read = self.read(self.structure.linears[str(node.target)].inputs)
            for i, operand in enumerate(node.all_input_nodes):
                self.needed[operand] |= {WIDE} if i else read
            return
        for form in self.met(node) if needed and self.is_meeting(node) else needed:
            for operand in node.all_input_nodes:
                if is_measured(node, operand):
                    self.measured[operand].add(form)
                else:
                    self.needed[operand].add(self.form_read(node, operand, form))

    def _form_measured(self, node: fx.Node, form: str) -> str:
        """Return the form of a tensor from which a size is read, given what else is needed of it.

        Where only the narrow form is left, as in the collapsed model, that is the one.
        """
        if node not in self.twins:
            return WIDE
        tensor, needed = self.tensors.get(node.name), self.needed[node]
        if form in needed or tensor is None:
            counted = any(user.target is same_length for user in node.users)
            return next(iter(needed)) if needed and counted and form not in needed else form
        return NARROW if self.read(tensor.pieces) == {NARROW} else form

    def form_read(self, node: fx.Node, operand: fx.Node, form: str) -> str:
        """Return the form of an operand that a node reads to make a form of its own."""
        if operand not in self.twins:
            return WIDE
        return self._form_measured(operand, form) if is_measured(node, operand) else form
