"""Torch-Pruning's own pruners at the widths of a plan, as controls; its package is optional."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from branchprune.errors import PruneError, optional
from branchprune.graph.inputs import copied, example_inputs, on_device
from branchprune.planning.plan import Plan

Pruner = Literal["magnitude", "group_norm"]
WIDTHS = ("out_channels", "out_features")


def make_pruner(kind: Pruner, model: nn.Module, planned: Plan, reg: float = 1e-4) -> Any:
    """Return a pruner of Torch-Pruning that would bring a model to the widths of a plan.

    Args:
        kind: "magnitude": `MagnitudePruner`; "group_norm": `GroupNormPruner`, which also has a
            penalty for training. Each with the importance that belongs to it, and its defaults.
        model: The model that was planned; the pruner changes it.
        planned: The widths.
        reg: Weight of the penalty.

    Raises:
        PruneError: Torch-Pruning is not installed.
    """
    tp = optional("torch_pruning", f"pruner (={kind!r})")
    args, _ = example_inputs(on_device(planned.example, model))
    ratios: dict[nn.Module, float] = {}
    ignored: list[nn.Module] = []
    for group in planned.groups:
        layers = [model.get_submodule(name) for name in group.layers]
        if not group.pruned:
            ignored += layers
            continue
        # It keeps int(width · (1 − ratio)); half a channel more makes the rounding certain.
        ratios |= dict.fromkeys(layers, 1 - (group.kept + 0.5) / group.width)
    modes = {module: module.training for module in model.modules()}
    options = {"pruning_ratio": 0.0, "pruning_ratio_dict": ratios, "ignored_layers": ignored}
    if kind == "magnitude":
        importance = tp.importance.MagnitudeImportance()
        pruner = tp.pruner.MagnitudePruner(model, args, importance=importance, **options)
    else:
        importance = tp.importance.GroupMagnitudeImportance()
        pruner = tp.pruner.GroupNormPruner(model, args, importance=importance, reg=reg, **options)
    for module, training in modes.items():
        module.training = training  # it has put all into evaluation mode
    return pruner


def prune_by(kind: Pruner, model: nn.Module, planned: Plan) -> nn.Module:
    """Return a copy of a model that Torch-Pruning has brought to the widths of a plan.

    Args:
        kind: See `make_pruner`.
        model: The model that was planned; it is not changed.
        planned: The widths.

    Raises:
        PruneError: A layer has another width than planned.
    """
    small = copied(model)
    make_pruner(kind, small, planned).step()
    for name, layer in planned.structure.linears.items():
        kept = sum(planned.groups[piece.group].kept * piece.repeat for piece in layer.outputs)
        module = small.get_submodule(name)
        width = next(getattr(module, key) for key in WIDTHS if hasattr(module, key))
        if width != kept:
            raise PruneError(f"Torch-Pruning made {name} {width} channels wide, planned: {kept}")
    return small
