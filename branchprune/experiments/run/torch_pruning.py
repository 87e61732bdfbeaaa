"""Torch-Pruning's own pruners at the widths of a plan, as controls; its package is optional."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from branchprune.errors import PruneError, optional
from branchprune.experiments.run.shrinking import Pruned, Setup, Untrained
from branchprune.experiments.run.stages import Stages
from branchprune.graph.inputs import copied, example_inputs, on_device
from branchprune.planning.plan import Plan

Pruner = Literal["magnitude", "group_norm"]
WIDTHS = ("out_channels", "out_features")


@dataclass
class TorchPruningConfig(Untrained):
    """Let Torch-Pruning remove the channels, at the same widths.

    Args:
        pruner: Its "magnitude" or "group_norm"; each chooses the channels by itself.
    """

    pruner: Pruner = "magnitude"

    def check(self, setup: Setup, planned: Plan) -> None:
        """See that Torch-Pruning is there; see `Algorithm`."""
        _torch_pruning(self.pruner)

    def narrow(
        self,
        setup: Setup,
        stage: str,
        dense: nn.Module,
        wide: nn.Module,
        planned: Plan,
        stages: Stages,
    ) -> Pruned:
        """Remove channels; nothing is folded, so there is no error; see `Algorithm`."""
        return Pruned(prune_by(self.pruner, wide, planned), planned, 0.0, 0.0)


def _torch_pruning(kind: Pruner) -> Any:
    return optional("torch_pruning", f"pruner (={kind!r})")


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
    tp = _torch_pruning(kind)
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
