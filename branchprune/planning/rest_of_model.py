"""Does the rest of a model read a width of the part that was planned?

Where only a part is planned, no trace sees what the model does around it. So the whole is run, in
evaluation mode: once as it is, but with the part as its graph at the planned widths, which is what
the blended model will be, and once as the collapsed one. In the second run the part hands out what
it did in the first, since what is around a detector's backbone sorts and selects: where two boxes
are as good, one rounding error gives others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from branchprune.errors import first_line
from branchprune.graph.inputs import (
    Example,
    call,
    copied,
    put,
    tensors,
    training_mode,
    untouched,
    without_constants,
)
from branchprune.planning.paths import within


class RestOfModel:
    """What a model computes around a part of it.

    Args:
        model: The model at its widths before.
        small: The model at the planned widths, whose numbers around the part count.
        inside: Path of the part.
        program: What computes the part at the planned widths.
        example: An example input of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        small: nn.Module,
        inside: str,
        program: Callable[..., Any],
        example: Example,
    ) -> None:
        self.model, self.small = copied(model, sharing=True), small
        self.inside, self.program = inside, program
        for name, module in self.model.named_modules():
            if within(name, [inside]) is None:
                put(module._parameters, small.get_submodule(name)._parameters)
                put(module._buffers, small.get_submodule(name)._buffers)
        self.example = without_constants(example)

        self.calls: list[tuple[Any, Any]] = []

    @cached_property
    def expected(self) -> list[Tensor] | None:
        """What it computes; None if it does not run so, as in evaluation mode without a target."""
        self.calls.clear()
        try:
            return self._run(self.model, self._record)
        except Exception:
            return None

    def _record(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the part, and note what it is given and what it hands out."""
        given = _copied((args, kwargs))
        output = self.program(*args, **kwargs)
        self.calls.append((given, _copied(output)))
        return output

    def fault(self, same: Callable[[Tensor, Tensor], bool]) -> str | None:
        """Return what goes wrong around the part of the small model, or None.

        Args:
            same: Whether two outputs are the same.
        """
        if self.expected is None:
            return None
        calls, given = iter(self.calls), list[Tensor]()

        def repeat(*args: Any, **kwargs: Any) -> Any:
            given.extend(tensors(_copied((args, kwargs))))
            return _copied(next(calls)[1])

        try:
            found = self._run(self.small, repeat)
        except Exception as error:
            return f"does not run around {self.inside}: {first_line(error)}"
        found, expected = found + given, self.expected + tensors([call[0] for call in self.calls])
        if len(found) == len(expected) and all(map(same, expected, found)):
            return None
        return f"computes something else around {self.inside}"

    def _run(self, model: nn.Module, part: Callable[..., Any]) -> list[Tensor]:
        with untouched(model), training_mode(model, False):
            vars(model.get_submodule(self.inside))["forward"] = part
            return tensors(call(model, self.example))


def _copied(value: Any) -> Any:
    return tree_map_only(Tensor, Tensor.clone, value)
