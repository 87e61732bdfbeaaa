"""A trial of the planned widths: does a model of these widths compute what its graph says?

What a trace holds fast, such as a width that forward reads and computes with, is right in the
branch, which is the graph, and another number in the collapsed model, whose forward is the
user's. So a model of the planned widths is made before anything is trained, and both are run.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from branchprune.errors import PruneError, first_line
from branchprune.graph.hooks import watched
from branchprune.graph.inputs import (
    Example,
    call,
    copied,
    repeated,
    tensors,
    training_mode,
    untouched,
    without_constants,
)
from branchprune.graph.module_numbers import Values, replace_numbers
from branchprune.graph.python_code import compiled
from branchprune.graph.structure import Structure
from branchprune.graph.width_attributes import (
    WidthAttribute,
    followed_attributes,
    listed,
    set_attributes,
    width_attributes,
    without_attributes,
)
from branchprune.graph.width_constraints import values_at
from branchprune.planning.narrowed import narrowed
from branchprune.planning.rest_of_model import RestOfModel

LOGGER = logging.getLogger("branchprune")
MODEL = "model"
UNSEEN = "numbers of %s that change, with which nothing outside of it may compute: %s"


class Trial:
    """A model of the planned widths beside its graph.

    Args:
        model: The model; it is not changed.
        structure: Its structure.
        kept: The width that each group keeps.
        example: An example input of the part that was traced.
        whole: An example input of the whole model.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        kept: Sequence[int],
        example: Example,
        whole: Example,
    ) -> None:
        self.structure = structure
        self.example = without_constants(example)
        self._computed: dict[bool, tuple[Example, list[Tensor]] | None] = {}
        self.small = narrowed(model, structure, kept)
        self.traced = copied(self.small, sharing=True)
        for name in structure.inplace:
            self.traced.get_submodule(name).inplace = False  # type: ignore[assignment]
        for name, constant in structure.constants.items():
            owner, _, last = name.rpartition(".")
            setattr(self.traced.get_submodule(owner), last, constant.clone())
        numbers = values_at(structure.numbers, kept)
        self.programs = {
            training: partial(
                _program(graph, training, numbers), nn.ModuleDict({MODEL: self.traced})
            )
            for training, graph in structure.graphs.items()
        }
        around = (model, self.small, structure.inside, self._evaluated, whole)
        self.rest = RestOfModel(*around) if structure.inside else None

    def fault(self) -> str | None:
        """Return what goes wrong at the planned widths, or None.

        Both modes are compared. Training is tried with the example twice where it needs more than
        one, and left out where the branch cannot train on that either.
        """
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            return self._fault(False) or self._fault(True) or self._fault_of_the_rest()

    def _evaluated(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the part by its graph in evaluation mode."""
        with untouched(self.traced), training_mode(self.traced, False):
            return self.programs[False](*args, **kwargs)

    def _fault_of_the_rest(self) -> str | None:
        return None if self.rest is None else self.rest.fault(same_numbers)

    def sees_all(self) -> bool:
        """Return whether all that may read a width is compared."""
        return self.rest is None or self.rest.expected is not None

    def _fault(self, training: bool) -> str | None:
        expected = self._expected(training)
        if expected is None:
            return None
        example, wanted = expected
        try:
            found = self._run(self.small, self._part, training, example)
        except Exception as error:
            return f"does not run: {first_line(error)}"
        if len(found) == len(wanted) and all(map(same_numbers, wanted, found)):
            return None
        return f"differs from the branch{self._place(training, example)}"

    def _expected(self, training: bool) -> tuple[Example, list[Tensor]] | None:
        """Return what the graph computes, and of what; None where it cannot train on the example.

        It is computed once.
        """
        if training not in self._computed:
            self._computed[training] = None
            for example in (self.example, repeated(self.example)) if training else (self.example,):
                try:
                    outputs = self._run(self.traced, self.programs[training], training, example)
                except Exception as error:
                    if not training:
                        why = first_line(error)
                        raise PruneError(f"the branch does not run at its widths: {why}") from error
                else:
                    self._computed[training] = (example, outputs)
                    break
        return self._computed[training]

    @property
    def _part(self) -> nn.Module:
        return self.small.get_submodule(self.structure.inside)

    def _run(
        self, model: nn.Module, forward: Callable[..., Any], training: bool, example: Example
    ) -> list[Tensor]:
        with untouched(model), training_mode(model, training):
            return tensors(call(model, example, forward))

    def _place(self, training: bool, example: Example) -> str:
        """Name the first layer whose output differs."""
        kept: dict[str, list[Tensor]] = {name: [] for name in self.structure.linears}
        with watched(self._layers(self.traced), lambda name, output: kept[name].append(output)):
            self._run(self.traced, self.programs[training], training, example)
        differing: list[str] = []

        def compare(name: str, output: Tensor) -> None:
            if not kept[name] or not same_numbers(kept[name].pop(0), output):
                differing.append(name)

        with watched(self._layers(self.small), compare):
            self._run(self.small, self._part, training, example)
        return f" from {differing[0]} on" if differing else " behind its last layer"

    def _layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return {name: model.get_submodule(name) for name in self.structure.linears}


def _program(graph: fx.Graph, training: bool, numbers: Values) -> Callable[..., Any]:
    """Return a graph as a function of what holds the model, whose paths may begin with any word.

    Args:
        graph: The graph.
        training: Its mode.
        numbers: What attributes of the user's modules hold at these widths.
    """
    graph = copy.deepcopy(graph)
    for node in graph.nodes:
        replace_numbers(node, numbers)
        if node.op in ("call_module", "get_attr"):
            node.target = f"{MODEL}.{node.target}"
    return compiled(graph, f"branchprune training={training}")


def try_widths(
    model: nn.Module, structure: Structure, kept: Sequence[int], example: Example, whole: Example
) -> tuple[WidthAttribute, ...]:
    """Raise unless a model of the planned widths computes what the branch will.

    Attributes of the user's modules that equal a width which changes follow it, all of a name in
    a class alike, where forward then still agrees.

    Args:
        model: The model; it is not changed.
        structure: Its structure.
        kept: The width that each group keeps.
        example: An example input of the part that was traced.
        whole: An example input of the whole model.

    Returns:
        The attributes that equal a width which changes; `after` is None for those that stay.

    Raises:
        PruneError: It does not run, or computes something else; the first layer is named.
    """
    trial = Trial(model, structure, kept, example, whole)
    read = followed_attributes(model, structure, kept)
    set_attributes(trial.small, read, after=True)
    attributes = width_attributes(model, structure, kept)
    follow = [attribute for attribute in attributes if attribute.after is not None]
    set_attributes(trial.small, follow, after=True)
    fault = trial.fault()
    if fault is not None and follow:
        follow, fault = _that_may_follow(trial, follow)
    if fault is not None:
        raise PruneError(
            f"{type(model).__name__} at its planned widths {fault}. Its forward takes a width from "
            "a layer or an attribute and computes with it, such as `x * conv.out_channels**-0.5` "
            "or an `if` on it: keep that number in an attribute of its own that names no width, or "
            "exclude the layers around it"
        )
    follow = _without_undecided(trial, follow)
    if (read or follow) and not trial.sees_all():
        LOGGER.warning(UNSEEN, structure.inside, listed([*read, *follow]))
    return (*read, *(a if a in follow else replace(a, after=None) for a in attributes))


def _without_undecided(trial: Trial, follow: list[WidthAttribute]) -> list[WidthAttribute]:
    """Leave out what forward reads and agrees with at either value, such as a limit.

    On an input of another size than the example it may not agree with both, and a number that
    stays is right for what the model was trained on.
    """
    if not follow or not _reads(trial, follow):
        return follow
    decided: list[WidthAttribute] = []
    for alike in _kinds(trial, follow):
        set_attributes(trial.small, alike, after=False)
        if trial.fault() is None and _reads(trial, alike):
            continue
        set_attributes(trial.small, alike, after=True)
        decided += alike
    return decided


def _reads(trial: Trial, attributes: Sequence[WidthAttribute]) -> bool:
    """Return whether forward reads one of some attributes."""
    with without_attributes(trial.small, attributes):
        return trial.fault() is not None


def _kinds(trial: Trial, attributes: Sequence[WidthAttribute]) -> list[list[WidthAttribute]]:
    """Return attributes by the class of their module and their name."""
    kinds: dict[tuple[type, str], list[WidthAttribute]] = {}
    for attribute in attributes:
        owner = type(trial.small.get_submodule(attribute.module))
        kinds.setdefault((owner, attribute.name), []).append(attribute)
    return [*kinds.values()]


def _that_may_follow(
    trial: Trial, attributes: Sequence[WidthAttribute]
) -> tuple[list[WidthAttribute], str | None]:
    """Return the attributes with which forward agrees, and what goes wrong even so."""
    set_attributes(trial.small, attributes, after=False)
    fault = trial.fault()
    follow: list[WidthAttribute] = []
    for alike in _kinds(trial, attributes):
        set_attributes(trial.small, alike, after=True)
        with_these = trial.fault()
        if with_these is not None and fault is None:
            set_attributes(trial.small, alike, after=False)
        else:
            follow, fault = [*follow, *alike], with_these
    return follow, fault


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal; on a GPU, where sums change order, nearly equal."""
    if a.shape != b.shape:
        return False
    return _same(a.isnan(), b.isnan()) and _same(a.nan_to_num(), b.nan_to_num())


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, 1e-3, 1e-5) if a.is_cuda else torch.equal(a, b)
