"""A model by its name, its import path, or a file of `bp.save` that says how it was made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from branchprune.artifacts.origin import Origin
from branchprune.artifacts.saved_file import file_of, was_saved
from branchprune.artifacts.serialization import load
from branchprune.cli.model_file import is_file, origin_of
from branchprune.errors import PruneError, first_line
from branchprune.experiments.run.load_weights import load_weights
from branchprune.graph.full_shapes import shapes
from branchprune.graph.import_path import value_at

MODEL = """a model of torchvision by its name (resnet50), of others as timm/NAME, ultralytics/NAME
or segmentation_models_pytorch/NAME; your own by the import path of its class, of a function that
makes it or of the model itself (package.module:Net); or a file of bp.save or of a command
(small.safetensors), if it says that what was made small is a model of these libraries or of
branchprune.models"""
INIT_ARGS = """arguments of what is imported, or of a model of torchvision or timm:
--init_args.num_classes 10"""
CHECKPOINT = """its trained weights: a file of bp.save (its widths count, too), a state_dict or a
Lightning checkpoint"""
Shape = tuple[int, ...]


def named(
    name: str, init_args: Mapping[str, Any], checkpoint: Path | None
) -> tuple[Origin, Path | None]:
    """Return what makes a model, and the file with its weights; of a file it is in its header.

    Args:
        name: Name of a model of torchvision, `library/name`, an import path, or a file.
        init_args: Arguments of the class or function at an import path, or of a model of
            torchvision or timm.
        checkpoint: File with its weights.

    Raises:
        PruneError: It is a file from which no model is made.
    """
    if not is_file(name):
        return Origin(name, {**init_args}), checkpoint
    if init_args or checkpoint is not None:
        given = "init_args" if init_args else f"checkpoint (={str(checkpoint)!r})"
        raise PruneError(
            f"model (={name!r}) is a file, which says itself what it was made of: without {given}"
        )
    return origin_of(Path(name)), Path(name)


def build(origin: Origin, checkpoint: Path | None = None) -> tuple[nn.Module, Shape | None]:
    """Return a model, and the shape of one of its examples if it comes from a library.

    Args:
        origin: What makes it.
        checkpoint: File with its weights; of one that `bp.save` wrote the widths count, too.

    Raises:
        PruneError: There is no such model, it cannot be built, or the weights are of another.
    """
    model, shape = _made(origin.made_by, origin.init_args)
    if checkpoint is None:
        return model, shape
    if was_saved(checkpoint):
        return load(model, checkpoint), shape
    load_weights(model, checkpoint)
    return model, shape


def dense_of(model: nn.Module, origin: Origin) -> nn.Module | None:
    """Return the dense model of a small one, with weights of its own; None: it is dense itself.

    Args:
        model: A model that `build` has made.
        origin: What made it.
    """
    dense = build(origin)[0]
    return None if shapes(dense) == shapes(model) else dense


def _made(name: str, init_args: Mapping[str, Any]) -> tuple[nn.Module, Shape | None]:
    if "/" not in name and re.search("[.:]", name):
        _refuse_module(name)
        return _imported(name, init_args), None
    return _of_library(name, init_args)


def _of_library(name: str, init_args: Mapping[str, Any]) -> tuple[nn.Module, Shape]:
    from branchprune.benchmarks.zoo_models import LIBRARIES, WITH_ARGUMENTS  # imports torchvision

    library, _, own = name.partition("/") if "/" in name else ("torchvision", "", name)
    libraries = ", ".join(LIBRARIES)
    if library not in LIBRARIES:
        _refuse_folder(name)
        raise PruneError(f"model (={name!r}) names the library {library!r}, not one of {libraries}")
    if init_args and library not in WITH_ARGUMENTS:
        raise PruneError(
            f"init_args (={dict(init_args)}) are those of an import path or of a model of "
            f"{' or '.join(WITH_ARGUMENTS)}, and model (={name!r}) is of another library: give the "
            "import path of its class or function"
        )
    families, builder = LIBRARIES[library]
    known_names = families()
    if own not in known_names:
        _refuse_folder(name)
        _refuse_module(name)
        near = get_close_matches(own, known_names, n=1, cutoff=0.0)
        nearest = name.removesuffix(own) + near[0] if near else ""
        hint = f"; the nearest is {nearest!r}" * bool(near)
        raise PruneError(
            f"model (={name!r}) is not one of {library}'s{hint}; give one of {libraries} as "
            "LIBRARY/NAME, and your own by its import path, such as package.module:Net"
        )
    try:
        return builder(own, None, **init_args)
    except Exception as error:
        if not init_args:
            raise
        raise _not_built(name, error) from error


def _refuse_folder(name: str) -> None:
    """Raise PruneError for a folder of `bp.save`, which holds the file that is to be given."""
    if (file := file_of(name)) != Path(name) and file.is_file():
        raise PruneError(f"model (={name!r}) is a folder: give the file in it, {file}")


def _refuse_module(name: str) -> None:
    """Raise PruneError for the name of a module that is there, in which the model is not named."""
    module = name.removesuffix(".py")
    if module.isidentifier() and find_spec(module) is not None:
        raise PruneError(
            f"model (={name!r}) is a module: name the class in it, or a function that makes the "
            f"model, {module}:CLASS"
        )


def _not_built(name: str, error: Exception) -> PruneError:
    return PruneError(
        f"model (={name!r}) cannot be built: {type(error).__name__}: {first_line(error)}; its "
        "arguments are given by --init_args.NAME VALUE"
    )


def _imported(path: str, init_args: Mapping[str, Any]) -> nn.Module:
    found = value_at(path.replace(":", ".", 1), "model")
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise PruneError(
                f"model (={path!r}) is a {type(found).__name__}, not a class, a function or a model"
            )
        try:
            found = found(**init_args)
        except Exception as error:
            raise _not_built(path, error) from error
    if not isinstance(found, nn.Module):
        raise PruneError(f"model (={path!r}) makes a {type(found).__name__}, not an nn.Module")
    return found
