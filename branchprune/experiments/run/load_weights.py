"""Reading a user's weights into a model without running any code in the file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.artifacts.serialization import read_tensors
from branchprune.artifacts.torch_checkpoint import damage, not_weights
from branchprune.errors import PruneError, first_line


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load weights of the dense model, in place.

    Args:
        model: The dense model.
        path: A .safetensors file, or a state_dict or Lightning checkpoint written by torch.save
            (keys may begin with "model.").

    Raises:
        PruneError: The file is missing, damaged, of another model, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise PruneError(f"checkpoint {path} does not exist")
    state = _strip(_read(path), model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        details = " ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise PruneError(f"checkpoint {path} is of another model: {details}") from error


def _read(path: Path) -> dict[str, Tensor]:
    held = not_weights(path)
    if held is not None:
        raise PruneError(f"checkpoint {path} holds {held}")
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path)[1]
        damaged = damage(path)
        if damaged is not None:
            raise PruneError(f"it is damaged: {damaged}")
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PruneError(
            f"checkpoint {path} is refused: it holds more than weights, which could run code, "
            "or is no checkpoint; where you trust it, save the state_dict() of what it holds"
        ) from error
    except Exception as error:
        raise PruneError(
            f"checkpoint {path} is not complete, or is no checkpoint: {first_line(error)}"
        ) from error
    state: Any = content
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise PruneError(f"checkpoint {path} holds no state_dict")
    return state


def _strip(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    if not state.keys() & model.state_dict().keys():
        return {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return state
