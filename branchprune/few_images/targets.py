"""Where the features of the narrow model are compared with those of the dense one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from branchprune.blending.projections import Expand
from branchprune.errors import PruneError
from branchprune.few_images.head import Read, called, reading
from branchprune.few_images.student import Student
from branchprune.graph.inputs import call, first_call, tensors, training_mode

POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


@dataclass(frozen=True)
class Targets:
    """Layers whose inputs are compared.

    Attributes:
        ends: For each layer, by path in either model, the linear end that leads from what it reads
            in the narrow model to what it reads in the dense one; None where that is in front of it
            already.
        own: The weights of these ends that are not the student's, and only learn beside it.
        hints: Layers inside, whose weight falls (Romero et al., "FitNets", 2015).
    """

    ends: Mapping[str, Callable[[Tensor], Tensor] | None]
    own: tuple[nn.Parameter, ...] = ()
    hints: frozenset[str] = frozenset()

    @contextmanager
    def reading(self, student: nn.Module, dense: nn.Module) -> Iterator[tuple[Read, Read]]:
        """Collect what the layers read in both models, for a `with` block."""
        names = [*self.ends]
        with reading(student, names) as found, reading(dense, names) as wanted:
            yield found, wanted

    def expanded(self, found: Read) -> Read:
        """Return what was read in the narrow model, at the width of the dense one."""
        return {
            name: list(map(end, found[name])) if end else found[name]
            for name, end in self.ends.items()
        }


def at_head(student: Student) -> Targets:
    """Return the layers that make the outputs."""
    return Targets(dict.fromkeys(student.head))


def at_maps(student: Student) -> Targets:
    """Return the global pooling before the head, where MiR compares (Wang et al., 2022).

    Raises:
        PruneError: There is not one module that pools to a single place, and one end that reads
            what it makes.
    """
    pools = [name for name, module in student.model.named_modules() if _is_global(module)]
    if len(pools) != 1 or len(student.ends) != 1:
        raise PruneError(
            "match (='maps') needs one module of global pooling, here "
            f"{', '.join(pools) or 'none'}, and one layer behind it, here {len(student.ends)}"
        )
    [end] = student.ends.values()
    if not _reads_pooled(student, pools[0], end):
        raise PruneError(
            f"match (='maps') needs {', '.join(student.head)} to read what {pools[0]} pools, as it "
            "is, and something lies between them: take match='head'"
        )

    def expand(x: Tensor) -> Tensor:
        places = x.movedim(1, -1)
        expanded: Tensor = end(places.flatten(0, -2)).unflatten(0, places.shape[:-1])
        return expanded.movedim(-1, 1)

    return Targets({pools[0]: expand})


def at_junctions(student: Student) -> Targets:
    """Return every convolution and fully connected layer that reads channels that shrink.

    Of several that read one tensor the first counts. The blended model's ends before them, but
    those before the head, only learn beside the narrow model, and are no part of it. All but the
    head are hints.
    """
    blended, plan = student.blended, student.blended.plan
    linears = plan.structure.linears
    readers = [
        layer.name
        for layer in linears.values()
        if any(piece.group in plan.pruned for piece in layer.inputs or ())
    ]
    ends: dict[str, Expand | None] = dict.fromkeys(student.head)
    copies: dict[str, Expand] = {}
    for name in called(blended.model, plan, readers):
        path = linears[name].expand
        if path not in copies and path not in student.ends:
            end = copy.deepcopy(blended.expand.get_submodule(path)).requires_grad_(True)
            assert isinstance(end, Expand)
            ends[name] = copies[path] = end
    weights = [weight for end in copies.values() for weight in end.parameters()]
    return Targets(ends, tuple(weights), frozenset(ends) - frozenset(student.head))


def _reads_pooled(student: Student, pool: str, end: nn.Module) -> bool:
    """Return whether an end reads the output of a pooling, in whatever shape."""
    plan = student.blended.plan
    part = student.model.get_submodule(plan.structure.inside)
    with torch.no_grad(), training_mode(student.model, False):
        modules = student.model.get_submodule(pool), end
        calls = [first_call(module, partial(call, part, plan.example)) for module in modules]
    if None in calls:
        return False
    pooled, read = (tensors(arguments)[0] for arguments in calls)
    means = pooled.flatten(2).mean(2)
    return means.shape == read.flatten(1).shape and torch.allclose(means, read.flatten(1))


def _is_global(module: nn.Module) -> bool:
    return isinstance(module, POOLS) and module.output_size in (1, (1, 1), (1, 1, 1))


AT: dict[str, Callable[[Student], Targets]] = {
    "head": at_head,
    "maps": at_maps,
    "junctions": at_junctions,
    "outputs": lambda _: Targets({}),
}
"""The targets by what is matched."""
