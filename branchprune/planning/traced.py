"""A model with what is known of it, as plans for a target measure it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from branchprune.graph.inputs import Example
from branchprune.graph.structure import Structure
from branchprune.graph.width_attributes import followed_attributes, set_attributes
from branchprune.planning.narrowed import narrowed


@dataclass(frozen=True, eq=False)
class Traced:
    """A model that was traced.

    Attributes:
        model: The model.
        structure: Its structure.
        example: An example input of the part that was traced.
    """

    model: nn.Module
    structure: Structure
    example: Example

    def narrowed(self, kept: Sequence[int]) -> nn.Module:
        """Return the traced part at other widths; of its weights some are left, and not fitted.

        Numbers of modules that forward reads as widths follow.

        Args:
            kept: The width of each group.
        """
        small = narrowed(self.model, self.structure, kept)
        set_attributes(small, followed_attributes(self.model, self.structure, kept), after=True)
        return small.get_submodule(self.structure.inside)
