"""The change of a model's output on calibration inputs where one group alone is narrow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.blending.bn_recalibration import batch_norms
from branchprune.criteria.input_statistics import Reader, listening, readers
from branchprune.errors import PruneError, first_line
from branchprune.graph.inputs import Example, call, copied, tensors
from branchprune.graph.structure import Structure
from branchprune.targets.group_alone import narrow_alone
from branchprune.targets.output_change import OutputChange

RIDGE = 0.003
"""Of the least squares; see `fit_expand`."""


class Measurement:
    """The dense model on calibration inputs, of which groups are made narrow one at a time.

    Args:
        model: The model; a copy is run.
        structure: Its structure. The outputs are those of the part that it is of.
        batches: Inputs of the model.
        groups: Which groups are asked for.

    Raises:
        PruneError: The batches are no inputs of the model, or its outputs no finite numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        batches: Sequence[Example],
        groups: Sequence[int],
    ) -> None:
        self.model, self.structure, self.batches = copied(model).eval(), structure, batches
        self.listeners = readers(structure, groups)
        self.norms: list[nn.Module] = []
        with listening(self.model, self.listeners):
            self._outputs()
        self.norms = [*batch_norms(self.model)]
        self.dense = self._outputs()
        found = [each for outputs in self.dense for each in outputs]
        if not found:
            raise PruneError("target needs a model that returns floating-point tensors on batches")
        if not all(bool(each.isfinite().all()) for each in found):
            raise PruneError("target needs a model whose outputs on batches are finite numbers")
        self.changed = OutputChange(self.dense)

    def change(self, chosen: Mapping[int, Tensor]) -> float:
        """Return how much the output changes where groups keep some of their channels alone.

        Args:
            chosen: Indices of the channels by group, shape (k,); of others all are kept.
        """
        with ExitStack() as stack:
            for group, kept in chosen.items():
                here = (self.model, self.structure, group, kept, self.read(group), RIDGE)
                stack.enter_context(narrow_alone(*here))
            found = self.changed.of(self._outputs())
        if not math.isfinite(found):
            names = [self.structure.groups[group].name for group in chosen]
            raise PruneError(f"the output is not finite where {', '.join(names)} are narrow")
        return found

    def read(self, group: int) -> list[Reader]:
        """Return what layers have read of a group."""
        return [each for each in self.listeners if each.group == group and each.count]

    def _outputs(self) -> list[list[Tensor]]:
        """Return the outputs, with the statistics of each batch in the norms that are known."""
        found: list[list[Tensor]] = []

        def note(_: nn.Module, __: Any, output: Any) -> None:
            found[-1] += [each for each in tensors(output) if each.is_floating_point()]

        part = self.model.get_submodule(self.structure.inside)
        hook = part.register_forward_hook(note)
        momenta = [norm.momentum for norm in self.norms]
        try:
            for norm in self.norms:
                norm.momentum = 0.0  # type: ignore[assignment]
                norm.train()
            with torch.no_grad():
                for batch in self.batches:
                    found.append([])
                    call(self.model, batch)
        except PruneError:
            raise
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            raise PruneError(
                "batches must be inputs of forward, a tuple meaning several arguments, and large "
                "enough for BatchNorm; of a loader of pairs take `(batch[0] for batch in loader)`: "
                f"{first_line(error)}"
            ) from error
        finally:
            hook.remove()
            for norm, momentum in zip(self.norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()
        return found
