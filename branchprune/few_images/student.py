"""The narrow model while it learns: its head is still the wide one, behind a linear end.

MiR (Wang et al., "Compressing Models with Few Samples: Mimicking then Replacing", 2022) lets the
narrow features mimic the wide ones, and then puts the original head on them. Here the linear end
maps narrow features to wide ones, the original head reads those, and the collapse folds the end
into the head.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.blending.blended import Blended
from branchprune.blending.projections import Expand
from branchprune.collapsing.collapse import collapse_with_error
from branchprune.collapsing.collapse_check import difference
from branchprune.few_images.head import head_layers, makes_all_outputs
from branchprune.graph.inputs import call, copied, tensors, training_mode
from branchprune.graph.layers import become


class Student:
    """A blended model's branch alone, as a narrow model that learns, and is folded at the end.

    Args:
        blended: The blended model, every α at 0; it is not changed.

    Attributes:
        blended: A copy of the blended model, whose linear ends before the head learn.
        model: The narrow model; its head has the wide weights, which are not trained.
        ends: The linear ends before the head, by path.
        head: The layers of the head, with the end that each reads through.
        covers: Whether the outputs follow from what the head reads.
        error: Relative error of the last collapse, in float64: after `folded` that of the end.
    """

    def __init__(self, blended: Blended) -> None:
        self.blended = copy.deepcopy(blended)
        self.head = head_layers(blended.model, blended.plan)
        self.covers = makes_all_outputs(blended.plan, self.head)
        self.model, self.error = collapse_with_error(self.blended)
        self.ends = {path: self._end(path) for path in self.head.values()}
        self._narrow = copied(self.model)  # with the flags of the dense model, which may be frozen
        fixed = constants(blended)
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(_learns(weight) and name not in fixed)
        for name, path in self.head.items():
            layer = self.model.get_submodule(name)
            become(layer, copy.deepcopy(self.blended.model.get_submodule(name)))
            layer.requires_grad_(False)
            layer.register_forward_pre_hook(_Through(self.ends[path]), with_kwargs=True)

    def _end(self, path: str) -> Expand:
        end = self.blended.expand.get_submodule(path)
        assert isinstance(end, Expand)
        end.requires_grad_(True)
        return end

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained: the narrow layers and the linear ends."""
        ends = [weight for end in self.ends.values() for weight in end.parameters()]
        return [p for p in self.model.parameters() if p.requires_grad] + ends

    def folded(self) -> nn.Module:
        """Return the narrow model with the ends folded into its head."""
        small = copied(self._narrow)
        head, self.error = collapse_with_error(self.blended)
        state = {**self.model.state_dict(), **self._head_state(head)}
        small.load_state_dict(state)
        return small

    def own_dtype_error(self, small: nn.Module) -> float:
        """Return the relative error of what `folded` returned, in its own dtype, on the example."""
        outputs = []
        for model in (self.model, small):
            with torch.no_grad(), training_mode(model, False):
                outputs.append(tensors(call(model, self.blended.plan.example)))
        return max(difference(wanted, found, 0.0) for wanted, found in zip(*outputs, strict=True))

    def _head_state(self, collapsed: nn.Module) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name in self.head
            for key, value in collapsed.get_submodule(name).state_dict().items()
        }


def constants(blended: Blended) -> set[str]:
    """Return the parameters that the user has frozen, of a model in which others learn.

    Those of layers, which become narrow, are not among them: they learn to be so.
    """
    structure = blended.plan.structure
    layers = {*structure.linears, *structure.twins}
    flags = {name: weight.requires_grad for name, weight in blended.model.named_parameters()}
    frozen = {name for name, learns in flags.items() if not learns and any(flags.values())}
    return {name for name in frozen if name.rpartition(".")[0] not in layers}


def _learns(weight: Tensor) -> bool:
    return weight.is_floating_point() or weight.is_complex()


class _Through:
    """A hook that lets a layer read through a linear end; a copy of both belongs together."""

    def __init__(self, end: Expand) -> None:
        self.end = end

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the arguments with the first tensor mapped."""
        if args:
            return (self.end(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, kwargs | {name: self.end(kwargs[name])}
