"""The small model of a checkpoint that was written while its network was blended."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.artifacts.torch_checkpoint import begins_as_none, damage
from branchprune.blending.attach import attach
from branchprune.collapsing.collapse import collapse_with_error
from branchprune.errors import PruneError, first_line
from branchprune.graph.inputs import Example
from branchprune.lightning.example_shapes import example_like, shapes_of
from branchprune.lightning.network_swap import NetworkSwap
from branchprune.planning.plan import Plan, plan

KEY = "blending"
"""In the state of the callback: what makes the blended network again."""


@dataclass(frozen=True, eq=False)
class CollapsedCheckpoint:
    """What a checkpoint has become.

    Attributes:
        model: The small network, in evaluation mode.
        wide: The network of which it is the small form: the model that was given, or a part of it.
        plan: Its widths, and what both cost.
        keep: What was asked to stay of the channels.
        alphas: The levels of α in the checkpoint; at 0 the branch alone is what predicts.
        epoch: After which the checkpoint was written, from 0; None: it does not say.
        error: Relative error of the collapse in float64.
    """

    model: nn.Module
    wide: nn.Module
    plan: Plan
    keep: float | Mapping[str, float]
    alphas: tuple[float, ...]
    epoch: int | None
    error: float


def blending_state(
    planned: Plan,
    keep: float | Mapping[str, float],
    planning: Mapping[str, Any],
    training: Mapping[str, Any],
    target: str,
) -> dict[str, Any]:
    """Return what makes a blended network again, of nothing but numbers, texts and lists of them.

    Args:
        planned: Its plan.
        keep: See `plan`.
        planning: Other arguments of `plan`, by name.
        training: Those of `attach`.
        target: Path of the network in the LightningModule; "": its own forward.
    """
    lists = {key: [*x] if isinstance(x, tuple | list) else x for key, x in planning.items()}
    return {
        "keep": dict(keep) if isinstance(keep, Mapping) else keep,
        "planning": lists,
        "training": dict(training),
        "target": target,
        "example": shapes_of(planned.whole),
        "widths": {group.name: group.kept for group in planned.groups},
    }


def load_collapsed(path: str | Path, model: nn.Module, example: Example | None = None) -> nn.Module:
    """Return the small network of a checkpoint that was written before the collapse.

    ```python
    best = trainer.checkpoint_callback.best_model_path
    small = BranchPruning.load_collapsed(best, make_network())
    ```

    Args:
        path: See `collapse_checkpoint`.
        model: See `collapse_checkpoint`.
        example: See `collapse_checkpoint`.

    Returns:
        The network at α = 0, collapsed, in evaluation mode. Where the checkpoint's α is not 0, a
        warning says so.

    Raises:
        PruneError: See `collapse_checkpoint`.
    """
    return collapse_checkpoint(path, model, example).model


def collapse_checkpoint(
    path: str | Path, model: nn.Module, example: Example | None = None
) -> CollapsedCheckpoint:
    """Make the blended network of a checkpoint again, and collapse it at α = 0.

    Args:
        path: A checkpoint of Lightning, written in a training with `BranchPruning`. It is read
            without running code in it.
        model: The network as it was before the training, or the LightningModule with it; its
            weights do not matter, and it is not changed.
        example: See `plan`; None: random numbers of the shapes of the example that was used.

    Raises:
        PruneError: The file is missing, damaged, holds more than weights and plain settings, no
            blended network, or that of another model.
    """
    path = Path(path)
    content = _read(path)
    found = _blending(content, path)
    swap = NetworkSwap(model, found["target"]) if _holds(model, found["target"]) else None
    wide = model if swap is None else swap.network
    given = example_like(found["example"]) if example is None else example
    planned = plan(wide, given, found["keep"], **found["planning"])
    if (widths := {group.name: group.kept for group in planned.groups}) != found["widths"]:
        differing = sorted(widths.items() ^ found["widths"].items())
        raise PruneError(f"{path} is of another model: its widths differ, {differing[:2]}")
    blended = attach(wide, planned, **found["training"])
    state, alphas = _state(content, found["target"] or "blended", path)
    try:
        blended.load_state_dict(state)
    except RuntimeError as error:
        details = " ".join(line.strip() for line in str(error).splitlines()[1:3])[:300]
        raise PruneError(f"{path} is of another model: {details}") from error
    blended.alpha = 0.0
    small, relative_error = collapse_with_error(blended)
    if alphas != (0.0,):
        levels = ", ".join(f"{level:.4g}" for level in alphas)
        warnings.warn(
            f"in {path.name} alpha is {levels}, and what is collapsed is the branch alone, which "
            "may predict worse: monitor a metric whose name ends in _branch, or take a later one",
            stacklevel=3,
        )
    epoch = content.get("epoch")
    return CollapsedCheckpoint(
        small.eval(), wide, planned, found["keep"], alphas, epoch, relative_error
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise PruneError(f"checkpoint {path} does not exist")
    if begins_as_none(path):
        raise PruneError(f"checkpoint {path} is no file of torch.save")
    if (torn := damage(path)) is not None:
        raise PruneError(f"checkpoint {path} is damaged: {torn}")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PruneError(
            f"checkpoint {path} is refused: it holds more than weights and plain settings, which "
            "could run code; where you trust it, name the classes in it, "
            "torch.serialization.add_safe_globals([…])"
        ) from error
    except Exception as error:  # of many kinds, in a torn file
        raise PruneError(f"checkpoint {path} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise PruneError(f"checkpoint {path} is none of Lightning: it has no 'state_dict'")
    return content


def _blending(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what the callback has noted in a checkpoint."""
    callbacks = content.get("callbacks")
    states = callbacks.values() if isinstance(callbacks, dict) else ()
    for state in states:
        if isinstance(state, dict) and isinstance(state.get(KEY), dict):
            return dict(state[KEY])
    if any(isinstance(state, dict) and "schedule" in state for state in states):
        raise PruneError(
            f"checkpoint {path} does not say how its network was blended: an earlier version of "
            "branchprune wrote it; continue its training, which collapses it at its end"
        )
    raise PruneError(f"checkpoint {path} was not written in a training with BranchPruning")


def _holds(model: nn.Module, target: str) -> bool:
    """Return whether a model is what holds the network, and not the network itself."""
    trained = hasattr(model, "training_step")  # a LightningModule of either package
    return trained and (not target or target in dict(model.named_modules()))


def _state(
    content: Mapping[str, Any], place: str, path: Path
) -> tuple[dict[str, Tensor], tuple[float, ...]]:
    """Return the state of the blended network, and the levels of its α."""
    start = f"{place}."
    state = {
        k.removeprefix(start): v for k, v in content["state_dict"].items() if k.startswith(start)
    }
    if "alphas" not in state:
        raise PruneError(
            f"checkpoint {path} holds no blended network: it was written when it was collapsed, "
            "and its weights are those of the small one"
        )
    return state, tuple(sorted({round(float(x), 6) for x in state["alphas"]}))
