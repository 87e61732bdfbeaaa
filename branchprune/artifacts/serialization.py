"""Saving and loading models as safetensors, with their widths in the header and no pickle."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from branchprune.blending.blended import Blended
from branchprune.errors import PruneError, optional
from branchprune.graph.layers import set_sizes, sizes
from branchprune.graph.width_attributes import kept_numbers, take_over

FORMAT = "branchprune/1"


def save(model: nn.Module, path: str | Path) -> None:
    """Write a model's weights and widths to a safetensors file, whole or not at all.

    Args:
        model: A dense or collapsed model.
        path: Where to write; an existing file is replaced.

    Raises:
        PruneError: The file cannot be written, the model is blended, or a module's extra state is
            no tensor.
    """
    path = Path(path)
    optional("numpy", "safetensors")
    _check_module(model)
    if isinstance(model, Blended):
        raise PruneError("model is blended: collapse it before it is saved")
    state = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in _tensors(model).items()
    }
    widths = {name: sizes(module) for name, module in model.named_modules() if sizes(module)}
    header = {"format": FORMAT, "class": type(model).__qualname__, "widths": json.dumps(widths)}
    header["numbers"] = json.dumps(kept_numbers(model))
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            file = Path(folder) / path.name
            file.touch()
            mode = file.stat().st_mode
            save_file(state, file, metadata=header)
            file.chmod(mode)  # that of any new file, of which safetensors makes a private one
            file.replace(path)
    except OSError as error:
        raise PruneError(f"cannot write {path}: {error.strerror or error}") from error


def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Read a file written by `save` into a copy of a model, narrowed to the widths in the file.

    ```python
    small = bp.load(make_model(), "small.safetensors")
    ```

    Args:
        model: The model at its full widths; it is not changed.
        path: The file. Only tensors and numbers are read from it; nothing in it is executed.

    Returns:
        A model of the same class with the file's widths and weights.

    Raises:
        PruneError: The file is missing, truncated, not safetensors or of another model.
    """
    path = Path(path)
    _check_module(model)
    header, state = _read(path)
    narrow = copy.deepcopy(model)
    for name, attributes in _widths(header, path).items():
        try:
            module = narrow.get_submodule(name)
        except AttributeError:
            raise PruneError(f"{path} is of another model: it has a layer {name}") from None
        set_sizes(module, attributes)
    _resize(narrow, state, path)
    narrow.load_state_dict(state)
    take_over(narrow, model, _numbers(header, path))
    return narrow


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise PruneError(f"model (={model!r}) must be a torch.nn.Module, not its class")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Any] = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            owner = name.rpartition(".")[0] or type(model).__name__
            raise PruneError(
                f"{owner} has {name} (a {type(value).__name__}) in its state: only tensors are "
                "saved, and with them alone it would not be loaded"
            )
    return state


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise PruneError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        start = path.read_bytes()[:4] if path.is_file() else b""
        pickled = start[:1] == b"\x80" or start == b"PK\x03\x04"
        hint = "it is a pickle, which could run code and is refused" if pickled else str(error)
        raise PruneError(f"{path} is not a complete safetensors file: {hint}") from error


def _widths(header: dict[str, str], path: Path) -> dict[str, dict[str, Any]]:
    if header.get("format") != FORMAT:
        raise PruneError(f"{path} was not written by branchprune: its header lacks {FORMAT!r}")
    try:
        widths: dict[str, dict[str, Any]] = json.loads(header["widths"])
    except (KeyError, ValueError):
        raise PruneError(f"{path} is not complete: its header has no 'widths'") from None
    return widths


def _numbers(header: dict[str, str], path: Path) -> dict[str, dict[str, list[int]]]:
    """Return the numbers that modules of the saved model kept; an older file has none."""
    try:
        found = json.loads(header.get("numbers", "{}"))
        return {
            str(module): {str(name): [*map(int, values)] for name, values in named.items()}
            for module, named in found.items()
        }
    except (ValueError, TypeError, AttributeError):
        raise PruneError(f"{path} is not complete: its header has damaged 'numbers'") from None


def _resize(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Give every parameter and buffer the shape and dtype it has in the file."""
    expected = model.state_dict()
    missing, extra = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or extra:
        what = f"lacks {min(missing)}" if missing else f"has {min(extra)}"
        raise PruneError(f"{path} is of another model: it {what}")
    resized: dict[int, nn.Parameter] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        stores: list[dict[str, Any]] = [module._parameters, module._buffers]
        for key, old in [(k, t) for store in stores for k, t in store.items()]:
            new = state.get(prefix + key)
            if old is None or new is None:
                continue
            if not _fits(module, key, old.shape, new.shape):
                raise PruneError(
                    f"{path} is of another model: {prefix}{key} has shape {tuple(new.shape)}, "
                    f"not {tuple(old.shape)}"
                )
            empty = torch.empty(new.shape, dtype=new.dtype, device=old.device)
            if key in module._parameters:
                parameter = nn.Parameter(empty, old.requires_grad)
                module._parameters[key] = resized.setdefault(id(old), parameter)
            else:
                module._buffers[key] = empty


def _fits(module: nn.Module, key: str, old: torch.Size, new: torch.Size) -> bool:
    """Return whether two shapes differ in nothing but the number of channels.

    Those are counted by the first two dimensions (of a fully connected layer, times positions) or,
    except in a kernel, by any other one.
    """
    if len(old) != len(new):
        return False
    differing = {i for i, size in enumerate(old) if size != new[i]}
    kernel = key == "weight" and hasattr(module, "kernel_size")
    return differing <= {0, 1} or (len(differing) == 1 and not kernel)
