"""Reading a user's weights into a model without running any code in the file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.artifacts.saved_file import read_tensors
from branchprune.artifacts.torch_checkpoint import begins_as_none, damage, not_weights
from branchprune.errors import PruneError, first_line

WRAPPED = ("state_dict", "model_state_dict", "model")
"""Keys under which weights are, whatever else is there; under another they must be alone."""
NAMED = 3
"""Keys that an error names."""


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load weights of the dense model, in place.

    Args:
        model: The dense model.
        path: A .safetensors file, or a state_dict or Lightning checkpoint written by torch.save
            (keys may begin with what a wrapper gave the model, such as "model." or "module.", and
            what is not under it is left out), or a dictionary with one state_dict in it.

    Raises:
        PruneError: The file is missing, damaged, of another model or of several, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise PruneError(f"checkpoint {path} does not exist")
    state = _own(_read(path), model, path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        details = " ".join(_shortened(line.strip()) for line in str(error).splitlines()[1:3])
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
    except Exception as error:
        raise _unread(path, error) from error
    state = _unwrapped(content, path)
    if not isinstance(state, dict) or not all(map(_is, state.values())):
        entries = state if isinstance(state, dict) else {}
        others = [(key, type(each).__name__) for key, each in entries.items() if not _is(each)]
        others = others or [("", type(state).__name__)]
        keys = [f"{key!r} (a {kind})" if key else f"a {kind}" for key, kind in others]
        raise PruneError(
            f"checkpoint {path} holds no state_dict but {', '.join(keys[:NAMED])}"
            f"{' …' * (len(keys) > NAMED)}: save the state_dict() of the model alone"
        )
    return state


def _unread(path: Path, error: Exception) -> PruneError:
    """Return what to say of a file that cannot be read."""
    torn = f"checkpoint {path} is not complete, or is no checkpoint"
    if path.suffix != ".safetensors" and begins_as_none(path):
        return PruneError(f"{torn}: it does not begin as a file of torch.save does")
    if isinstance(error, pickle.UnpicklingError):
        return PruneError(
            f"checkpoint {path} is refused: it holds more than weights, which could run code, "
            "or is no checkpoint; where you trust it, save the state_dict() of what it holds"
        )
    return PruneError(f"{torn}: {first_line(error)}")


def _unwrapped(content: Any, path: Path) -> Any:
    """Return the state_dict that a file holds, alone or beside what else a training keeps.

    Raises:
        PruneError: Two could be meant.
    """
    state: Any = content
    for key in WRAPPED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or any(map(_is, state.values())):
        return state
    found = {key: each for key, each in state.items() if _is_state(each)}
    if len(found) > 1:
        raise PruneError(
            f"checkpoint {path} holds {len(found)} that may be meant, {', '.join(map(repr, found))}"
            ": save the state_dict() of the one that is"
        )
    return next(iter(found.values()), state)


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is, value.values()))


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


def _own(state: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Return the entries that are the model's, by its own names.

    Raises:
        PruneError: Two wrapped models could be meant, such as one and its moving average.
    """
    wanted = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    if not wanted or wanted[0] in state:
        return state
    ends = [name.removesuffix(wanted[0]) for name in state if name.endswith(f".{wanted[0]}")]
    found = [start for start in ends if all(start + name in state for name in wanted)]
    if len(found) > 1:
        raise PruneError(
            f"checkpoint {path} holds {len(found)} such models, under {', '.join(sorted(found))}: "
            "save the state_dict() of the one that is meant"
        )
    here = {start: sum(start + name in state for name in wanted) for start in found or ends}
    start = max(here, key=here.__getitem__, default="")
    under = (name for name in state if name.startswith(start))
    return {name.removeprefix(start): state[name] for name in under}


def _shortened(line: str) -> str:
    """Return what torch says of keys with no more than three of them named."""
    names = line.rstrip(".").split('", "')
    if len(names) <= NAMED or "key(s) in state_dict" not in line:
        return line
    return '", "'.join(names[:NAMED]) + f'" and {len(names) - NAMED} more.'
