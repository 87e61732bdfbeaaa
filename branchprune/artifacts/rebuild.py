"""The wide model of a file, made by what its header names.

To import what a file names is to run what its author chose. So models of torchvision, timm and
branchprune alone are made without being asked, of names that these list and of plain numbers; else
the user says which package is trusted, and nothing outside it is called.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from branchprune.artifacts.header import IMPORT_PATH
from branchprune.artifacts.library_models import is_name, is_of_library, model_of_library
from branchprune.artifacts.origin import NAME, Origin, origin_in, package_of
from branchprune.errors import PruneError, first_line
from branchprune.graph.import_path import value_at
from branchprune.graph.random_generators import own_generators

TORCH = ("torch", "torchvision")
Trusted = str | Sequence[str]


def wide_model(header: Mapping[str, str], path: Path, trust: Trusted = ()) -> nn.Module:
    """Return a model at full width, with weights that do not matter.

    Args:
        header: Of a file that `save` has written.
        path: The file, for messages.
        trust: Packages or modules whose code may be run, such as "my_package".

    Raises:
        PruneError: The file does not say what makes the model, that is not trusted, cannot be
            imported, or makes no model. The message says what to write instead.
    """
    trusted = _names(trust)
    origin = origin_in(header, path)
    otherwise = f"make the model yourself, and give it: bp.load(model, {str(path)!r})"
    if origin is None:
        origin = Origin(_class_in(header, path, otherwise))
    try:
        with own_generators([]):
            return _made(origin, trusted, path)
    except PruneError as error:
        raise PruneError(f"{error}; or {otherwise}") from error


def _names(trust: object) -> tuple[str, ...]:
    names = (trust,) if isinstance(trust, str) else trust
    if not isinstance(names, Sequence) or not all(isinstance(each, str) for each in names):
        raise PruneError(
            f'trust (={trust!r}) must be the name of a package, "my_package", or a list'
        )
    return tuple(names)


def _class_in(header: Mapping[str, str], path: Path, otherwise: str) -> str:
    """Return the import path of a model's class, which may need no arguments."""
    found = header.get(IMPORT_PATH, "")
    if NAME.fullmatch(found) and package_of(found) not in TORCH:
        return found
    kind = header.get("class", "model")
    kind = kind if NAME.fullmatch(kind) else "model"
    raise PruneError(
        f"{path} does not say what makes its {kind}: {otherwise}; or name that when it is saved: "
        'bp.save(small, path, "my_package:make", {"classes": 5})'
    )


def _made(origin: Origin, trusted: Sequence[str], path: Path) -> nn.Module:
    name, init_args = origin.made_by, dict(origin.init_args)
    library = is_of_library(origin)
    if is_name(name) and not library:
        raise PruneError(f"{path} was made by {name} with {init_args}, which could ask for more")
    try:
        made = model_of_library(origin) if library else _imported(origin, trusted, path)
    except PruneError:
        raise
    except Exception as error:  # whatever a constructor raises
        raise PruneError(
            f"{path} was made by {name}, which fails with {init_args}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    if not isinstance(made, nn.Module):
        raise PruneError(f"{path} was made by {name}, which makes a {type(made).__name__}")
    return made


def _imported(origin: Origin, trusted: Sequence[str], path: Path) -> Any:
    name = origin.made_by
    _check_trusted(name, name, trusted, path)
    found = value_at(name.replace(":", ".", 1), "made_by")
    if isinstance(found, nn.Module):
        return copy.deepcopy(found)
    home = getattr(found, "__module__", None)  # a package may hand on what another defines
    _check_trusted(name, f"{home}:" if home else name, trusted, path)
    return found(**origin.init_args)


def _check_trusted(name: str, place: str, trusted: Sequence[str], path: Path) -> None:
    """Raise PruneError where what makes a model is in no package that the user trusts."""
    module = place.partition(":")[0] if ":" in place else place.rpartition(".")[0]
    if not any(module == each or module.startswith(f"{each}.") for each in trusted):
        needed = [*trusted, package_of(module)]
        told = repr(needed if trusted else needed[0])
        raise PruneError(
            f"{path} was made by {name}, and to import that is to run it: where you trust both, "
            f"bp.load({str(path)!r}, trust={told})"
        )
