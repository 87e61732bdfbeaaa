"""The models of `branchprune cost`: dense ones with random weights, and what pruning makes of them.

Neither time nor memory depends on the weights, as long as no numbers are so small that they slow a
processor down, which is checked.
"""

from __future__ import annotations

from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from branchprune.artifacts.export import export
from branchprune.artifacts.serialization import load, save
from branchprune.benchmarks.cost_child import (
    CLASSES,
    TINY,
    TINY_INPUT,
    Row,
    check_numbers,
    file_format,
    tiny,
)
from branchprune.blending.attach import attach
from branchprune.collapsing.collapse import collapse
from branchprune.planning.plan import plan


def _defaults(cls: str, *names: str) -> dict[str, Any]:
    return {name: signature(CLASSES[cls]).parameters[name].default for name in names}


MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "vgg16": ("VGG", _defaults("VGG", "stages"), (3, 32, 32)),
    "autoencoder": ("Autoencoder", _defaults("Autoencoder", "encoder", "decoder"), (3, 128, 128)),
}
"""Class, its arguments that are widths, stage by stage in the order of layers, and image shape."""

VARIANTS = {"dense": None, "small": 1, "small, multiple of 8": 8}
"""What the kept widths are multiples of; None: nothing is pruned."""


def prepare(name: str, keep: float, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the variants of a model to a folder, and return the arguments to build each with.

    Raises:
        PruneError: Some layer's output is not finite, or subnormal.
    """
    cls, widths, shape = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense, x = CLASSES[cls](**widths).eval(), torch.randn(2, *shape)
        arguments = {}
        for variant, multiple in VARIANTS.items():
            model = dense
            if multiple is not None:
                blended = attach(dense, plan(dense, x, keep, multiple_of=multiple))
                blended.alpha = 0.0
                model = collapse(blended).eval()
            arguments[variant] = narrowed(widths, model)
            CLASSES[cls](**arguments[variant]).load_state_dict(model.state_dict())
            _check_layers(f"{name}, {variant}", model, x)
            save(model, folder / f"{name} {variant}")
    return arguments


def write_file(row: Row, folder: Path) -> Path:
    """Write the file that a row's runtime opens, if it opens one and it is not there yet.

    It takes batches of the row's size alone, and is compared with the model there.

    Args:
        row: What is to be measured.
        folder: Where `prepare` has written the models.

    Returns:
        The file to measure.

    Raises:
        PruneError: The model cannot be exported, or computes something else there.
    """
    saved = folder / f"{row.model} {row.variant}"
    kind = file_format(row.runtime)
    if kind is None:
        return saved
    path = folder / f"{saved.name} {row.batch}{kind.suffix}"
    if not path.exists():
        model = load(CLASSES[row.cls](**row.arguments), saved).eval()
        x = torch.randn(row.batch, *row.shape, generator=torch.Generator().manual_seed(0))
        export(model, x, path, format=kind.name, batch=row.batch)
    beside = folder / f"{TINY}{kind.suffix}"
    if not beside.exists():
        export(tiny(), torch.zeros(TINY_INPUT), beside, format=kind.name, batch=1)
    return path


def narrowed(arguments: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return the arguments with the widths that a model's convolutions have."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    widths = iter(layer.out_channels for layer in model.modules() if isinstance(layer, kinds))
    return {
        name: [[next(widths) for _ in stage] for stage in stages]
        for name, stages in arguments.items()
    }


def _check_layers(name: str, model: nn.Module, x: torch.Tensor) -> None:
    def check(layer: str, _module: nn.Module, _args: object, output: torch.Tensor) -> None:
        check_numbers(f"the output of {layer} ({name})", output)

    leaves = {path: layer for path, layer in model.named_modules() if not [*layer.children()]}
    hooks = [layer.register_forward_hook(partial(check, path)) for path, layer in leaves.items()]
    with torch.inference_mode():
        model(x)
    for hook in hooks:
        hook.remove()
