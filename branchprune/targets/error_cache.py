"""What was measured of a model on some inputs, kept in a folder by the digest of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError, first_line
from branchprune.graph.inputs import Example, tensors
from branchprune.graph.structure import Structure

FORM = 2
"""Changes where what is measured does, so that older files are not read."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The change of the output over the width of one group.

    Attributes:
        group: Its index.
        ranks: Of each channel, the greater the earlier it is kept, shape (C,).
        errors: The change at each width from 0 to that of the group, shape (C + 1,), falling.
        measured: Widths at which it was measured, with what was found.
    """

    group: int
    ranks: Tensor
    errors: Tensor
    measured: tuple[tuple[int, float], ...]


def digest(
    model: nn.Module, structure: Structure, batches: Sequence[Example], criterion: str
) -> str:
    """Return 32 digits that differ where curves may, also by what forward does between layers.

    Args:
        model: The model.
        structure: Its structure.
        batches: On what is measured.
        criterion: By which channels are chosen.
    """
    groups = [(group.name, group.width, group.blocks) for group in structure.groups]
    forward = str(structure.graphs[False])
    said = [
        FORM,
        criterion,
        type(model).__qualname__,
        str(model),
        structure.inside,
        groups,
        forward,
    ]
    found = hashlib.blake2b(json.dumps(said).encode(), digest_size=16)
    weights = [*model.named_parameters(), *model.named_buffers()]
    inputs = [("", each) for batch in batches for each in tensors(batch)]
    for name, tensor in weights + inputs:
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        found.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def read(folder: Path, key: str, widths: Sequence[int]) -> dict[int, Curve]:
    """Return the curves that a folder has under a digest, by group; of a damaged file none.

    Args:
        folder: The folder.
        key: The digest.
        widths: Those of all groups.
    """
    try:
        found = json.loads((folder / f"{key}.json").read_text())
        return {int(g): _curve(int(g), each, widths[int(g)]) for g, each in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return {}


def write(folder: Path, key: str, curves: Mapping[int, Curve]) -> None:
    """Keep curves under a digest.

    Args:
        folder: The folder; it is made where it is missing.
        key: The digest.
        curves: By group.

    Raises:
        PruneError: It cannot be written.
    """
    content = {
        group: {
            "ranks": curve.ranks.tolist(),
            "errors": curve.errors.tolist(),
            "measured": curve.measured,
        }
        for group, curve in curves.items()
    }
    part = folder / f"{key}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content))
        part.replace(part.with_suffix(".json"))
    except OSError as error:
        raise PruneError(
            f"cache (={str(folder)!r}) cannot be written: {first_line(error)}"
        ) from error


def _curve(group: int, found: Mapping[str, Any], width: int) -> Curve:
    ranks, errors = (torch.tensor(found[key], dtype=torch.double) for key in ("ranks", "errors"))
    measured = tuple((int(k), float(at)) for k, at in found["measured"])
    sized = ranks.shape == (width,) and errors.shape == (width + 1,)
    finite = all(bool(each.isfinite().all()) for each in (ranks, errors))
    if not (sized and finite) or errors[-1] != 0 or bool((errors.diff() > 0).any()):
        raise ValueError("the file is damaged")
    return Curve(group, ranks, errors, measured)
