"""The change of a model's output on calibration inputs where one group alone is narrow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from branchprune.blending.bn_recalibration import batch_norms
from branchprune.criteria.input_statistics import Reader, Statistic, listening, readers
from branchprune.errors import PruneError, first_line
from branchprune.graph.inputs import Example, call, copied, on_device, tensors
from branchprune.graph.memory_format import put_channels_last
from branchprune.graph.structure import Structure
from branchprune.targets.group_alone import narrow_alone
from branchprune.targets.output_change import OutputChange

LEAST = 4
"""Examples of a batch that is cut in two: BatchNorm needs two."""
RIDGE = 0.003
"""Of the least squares; see `fit_expand`."""


class Measurement:
    """The dense model on calibration inputs, of which groups are made narrow.

    Least squares of one half of the inputs are judged on the other, since what they fit well there
    they may know by heart: a last layer reads one position an image alone.

    Args:
        model: The model; a copy is run. A criterion may want its gradients.
        structure: Its structure. The outputs are those of the part that it is of.
        batches: Inputs of the model.
        groups: Which groups are asked for.
        statistic: What a criterion asks of each example; None: nothing.

    Raises:
        PruneError: The batches are no inputs of the model, or its outputs no finite numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        batches: Sequence[Example],
        groups: Sequence[int],
        statistic: Statistic | None = None,
    ) -> None:
        self.graded, self.structure = model, structure
        self.model = copied(model).eval()
        self.listeners: list[list[Reader]] = []
        self.norms: list[nn.Module] = []
        self.halves = halves(batches)
        if len(batches) < len(self.halves) and not self._are_cut_right(batches[0]):
            self.halves = [batches]
        for half in self.halves:
            self.listeners.append(readers(structure, groups, statistic))
            with listening(self.model, self.listeners[-1]):
                self._outputs(half)
        some = on_device(batches[0], self.model)
        if isinstance(some, Tensor):
            put_channels_last([self.model], some)
        self.norms = [*batch_norms(self.model)]
        self.dense = [each for half in self.halves for each in self._outputs(half)]
        found = [each for outputs in self.dense for each in outputs]
        if not found:
            raise PruneError("target needs a model that returns floating-point tensors on batches")
        if not all(map(_is_finite, found)):
            strange = [
                i for i, each in enumerate(batches) if not all(map(_is_finite, tensors(each)))
            ]
            if strange:
                which = f"batches[{strange[0]}]"
                raise PruneError(
                    f"{which} holds numbers that are not finite: leave such inputs out"
                )
            raise PruneError("target needs a model whose outputs on batches are finite numbers")
        self.changed = OutputChange(self.dense)

    def change(self, chosen: Mapping[int, Tensor]) -> float:
        """Return how much the output changes where groups keep some of their channels alone.

        Args:
            chosen: Indices of the channels by group, shape (k,); of others all are kept.
        """
        outputs = []
        for half, others in zip(self.halves, reversed(self.listeners), strict=True):
            with ExitStack() as stack:
                for group, kept in chosen.items():
                    here = [each for each in others if each.group == group and each.count]
                    narrow = narrow_alone(self.model, self.structure, group, kept, here, RIDGE)
                    stack.enter_context(narrow)
                outputs += self._outputs(half)
        found = self.changed.of(outputs)
        if not math.isfinite(found):
            names = [self.structure.groups[group].name for group in chosen]
            raise PruneError(f"the output is not finite where {', '.join(names)} are narrow")
        return found

    def _are_cut_right(self, batch: Example) -> bool:
        """Return whether the halves of a batch are of the examples that its outputs are of."""
        whole = [*self._outputs([batch])[0]]
        if any(not each.dim() or len(each) != len(tensors(batch)[0]) for each in whole):
            return False
        try:
            parts = [self._outputs(half)[0] for half in self.halves]
        except PruneError:
            return False
        sizes = [sum(map(len, each)) for each in zip(*parts, strict=True)]
        return sizes == [*map(len, whole)]

    def read(self, group: int) -> list[Reader]:
        """Return what layers have read of a group, in each half of the inputs."""
        every = [each for half in self.listeners for each in half]
        return [each for each in every if each.group == group and each.count]

    def _outputs(self, batches: Sequence[Example]) -> list[list[Tensor]]:
        """Return the outputs on batches; norms that are known take the statistics of each."""
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
                for batch in batches:
                    found.append([])
                    call(self.model, batch)
        except PruneError:
            raise
        except Exception as error:  # whatever forward raises
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


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def halves(batches: Sequence[Example]) -> list[Sequence[Example]]:
    """Return two halves of some inputs, every second batch; of a single one every second example.

    A single one whose tensors are not of one number of examples, or of few, is not cut.
    """
    if len(batches) > 1:
        return [batches[::2], batches[1::2]]
    found = tensors(batches[0])
    sizes = {len(each) if each.dim() else 0 for each in found}
    if len(sizes) != 1 or max(sizes) < LEAST:
        return [batches]

    def part(first: int) -> list[Example]:
        one: Example = tree_map_only(Tensor, lambda tensor: tensor[first::2], batches[0])
        return [one]

    return [part(0), part(1)]
