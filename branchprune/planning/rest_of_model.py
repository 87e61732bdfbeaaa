"""Does the rest of a model read a width of the part that was planned?

Where only a part is planned, no trace sees what the model does around it. So the whole is run, in
evaluation mode: once as it is, but with the part as its graph at the planned widths, which is what
the blended model will be, and once as the collapsed one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from branchprune.errors import first_line
from branchprune.graph.inputs import (
    Example,
    call,
    tensors,
    training_mode,
    untouched,
    without_constants,
)


class RestOfModel:
    """What a model computes around a part of it.

    Args:
        model: The model at its widths before.
        inside: Path of the part.
        program: What computes the part at the planned widths.
        example: An example input of the model.
    """

    def __init__(
        self, model: nn.Module, inside: str, program: Callable[..., Any], example: Example
    ) -> None:
        self.model, self.inside, self.program = model, inside, program
        self.example = without_constants(example)

    @cached_property
    def expected(self) -> list[Tensor] | None:
        """What it computes; None if it does not run so, as in evaluation mode without a target."""
        try:
            with untouched(self.model):
                vars(self.model.get_submodule(self.inside))["forward"] = self.program
                return self._run(self.model)
        except Exception:
            return None

    def fault(self, small: nn.Module, same: Callable[[Tensor, Tensor], bool]) -> str | None:
        """Return what goes wrong around the part of the small model, or None.

        Args:
            small: The small model.
            same: Whether two outputs are the same.
        """
        if self.expected is None:
            return None
        try:
            found = self._run(small)
        except Exception as error:
            return f"does not run around {self.inside}: {first_line(error)}"
        if len(found) == len(self.expected) and all(map(same, self.expected, found)):
            return None
        return f"computes something else around {self.inside}"

    def _run(self, model: nn.Module) -> list[Tensor]:
        with untouched(model), training_mode(model, False):
            return tensors(call(model, self.example))
