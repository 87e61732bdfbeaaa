"""Saving and loading models as safetensors, with their widths in the header and no pickle."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from branchprune.artifacts import checksum
from branchprune.artifacts.opened import opened
from branchprune.artifacts.origin import origin_fields
from branchprune.artifacts.same_model import Content, class_name, differences, settings
from branchprune.blending.blended import Blended
from branchprune.errors import Failed, PruneError, optional
from branchprune.graph.full_shapes import full_shapes, remember_full_shapes, shapes
from branchprune.graph.inference_mode import outside_inference_mode
from branchprune.graph.layers import memory_format, put_parameters, set_sizes, sizes
from branchprune.graph.plain_model import refuse_lazy, refuse_wrapped
from branchprune.graph.saved_numbers import followed_numbers, kept_numbers, take_over

FORMAT, EARLIER = "branchprune/2", "branchprune/1"
"""What the header of a file says it is; an earlier one has neither checksum nor settings."""
AS_JSON = ("widths", "numbers", "followed", "settings", "full")
"""What else it holds, as JSON."""
OF_TORCH = (".pt", ".pth", ".ckpt", ".bin")
"""How names of files of torch.save end, as which others would read it."""


def save(
    model: nn.Module,
    path: str | Path,
    made_by: str | None = None,
    init_args: Mapping[str, Any] | None = None,
) -> None:
    """Write a model's weights and widths to a safetensors file, whole or not at all.

    The header also holds the settings of all layers of torch.nn, the shapes of the dense model as
    far as they are known, and a checksum.

    ```python
    bp.save(small, "small.safetensors", "my_package:MyNet", {"classes": 5})
    ```

    Args:
        model: A dense or collapsed model.
        path: Where to write, NAME.safetensors; an existing file is replaced.
        made_by: What makes the wide model, as `branchprune plan` takes it: "resnet18",
            "timm/mixnet_s", "torchvision.models.resnet18", "my_package:MyNet". Commands then take
            the file alone. It is only written down: `load` does not look at it.
        init_args: Arguments of the class or function there: numbers, texts, lists of them.

    Raises:
        PruneError: The file cannot be written, its name is that of one of torch.save, the model is
            blended or has tensors on `meta`, a module's extra state is no tensor, or JSON cannot
            hold `init_args`.
    """
    made = origin_fields(made_by, init_args or {})
    if Path(path).suffix.lower() in OF_TORCH:
        raise PruneError(
            f"path (={str(path)!r}) ends as a file of torch.save, and this is one of safetensors: "
            "take .safetensors"
        )
    path = Path(path).resolve()  # what a link stands for is replaced, not the link
    optional("numpy", "safetensors")
    _check_module(model)
    if path.exists() and not path.is_file():
        raise PruneError(f"cannot write {path}: it is no regular file")
    if isinstance(model, Blended):
        raise PruneError("model is blended: collapse it before it is saved")
    state = {name: tensor.detach() for name, tensor in _tensors(model).items()}
    state = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    part = path.with_name(f".{path.name}.{token_hex(4)}.part")
    try:
        part.touch()
        mode = part.stat().st_mode
        save_file(state, part, metadata=_header(model) | made)
        checksum.stamp(part)
        part.chmod(mode)  # that of any new file, of which safetensors makes a private one
        part.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Failed(f"cannot write {path}: {reason}") from error
    finally:
        _remove(part)


def _remove(part: Path) -> None:
    with suppress(OSError):
        part.unlink(missing_ok=True)


def _header(model: nn.Module) -> dict[str, str]:
    widths = {name: sizes(module) for name, module in model.named_modules() if sizes(module)}
    full = full_shapes(model)
    header = {
        "format": FORMAT,
        "class": class_name(model),
        "widths": json.dumps(widths),
        "numbers": json.dumps(kept_numbers(model)),
        "followed": json.dumps(followed_numbers(model)),
        "settings": json.dumps(settings(model)),
        checksum.KEY: checksum.EMPTY,
    }
    return header if full is None else header | {"full": json.dumps(full)}


@outside_inference_mode()
def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Read a file written by `save` into a copy of a model, narrowed to the widths in the file.

    ```python
    small = bp.load(make_model(), "small.safetensors")
    ```

    Args:
        model: The model at its full widths; it is not changed. What is on the device `meta` gets
            its weights on the CPU.
        path: The file. Only tensors and numbers are read from it; nothing in it is executed.

    Returns:
        A model of the same class with the file's widths and weights.

    Raises:
        PruneError: The file is missing, damaged, not safetensors or of another model, whose first
            differences are named; or something that no file holds is on `meta`.
    """
    path = Path(path)
    _check_module(model)
    content = read(path)
    found = differences(model, content)
    if found:
        raise PruneError(f"{path} is of another model: {found}")
    _check_meta(model, content.state)
    narrow = copy.deepcopy(model)
    for name, attributes in content.widths.items():
        set_sizes(narrow.get_submodule(name), attributes)
    _resize(narrow, content.state)
    narrow.load_state_dict(content.state)
    take_over(narrow, model, content.numbers, content.followed)
    if shapes(narrow) != shapes(model):
        remember_full_shapes(narrow, model)
    return narrow


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        held = isinstance(getattr(model, "model", None), nn.Module)
        if isinstance(model, type) or not held:
            raise PruneError(f"model (={model!r}) must be a torch.nn.Module, not its class")
        raise PruneError(f"model (a {type(model).__name__}) must be a torch.nn.Module: its .model")
    refuse_wrapped(model)
    refuse_lazy(model)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Any] = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            owner = name.rpartition(".")[0] or type(model).__name__
            raise PruneError(
                f"{owner} has {name} (a {type(value).__name__}) in its state: only tensors are "
                "saved, and with them alone it would not be loaded"
            )
        if value.is_meta:
            raise PruneError(f"{name} is on the device meta: it has no numbers that could be saved")
        if value.layout != torch.strided:
            kind = str(value.layout).removeprefix("torch.")
            raise PruneError(f"{name} is {kind}, which no safetensors file holds: save it dense")
    return state


def _check_meta(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Raise where a tensor without numbers would stay: it is in no file."""
    for path, module in model.named_modules():
        held = {**vars(module), **module._buffers}
        for name, value in held.items():
            full = f"{path}.{name}".lstrip(".")
            if isinstance(value, Tensor) and value.is_meta and full not in state:
                raise PruneError(
                    f"{full} is on the device meta and in no file: make the model on the CPU, or "
                    "give it its numbers first"
                )


def read(path: Path) -> Content:
    """Read a file written by `save`, and check that it is whole.

    Raises:
        PruneError: The file is missing, damaged, or not of branchprune.
    """
    header, state = read_tensors(path)
    if header.get("format") not in (FORMAT, EARLIER):
        raise PruneError(f"{path} was not written by branchprune: its header lacks {FORMAT!r}")
    try:
        fields = {key: json.loads(header[key]) for key in AS_JSON if key in header}
    except ValueError:
        raise PruneError(f"{path} is not complete: its header has no whole 'widths'") from None
    if "widths" not in fields:
        raise PruneError(f"{path} is not complete: its header has no 'widths'")
    for key, field in fields.items():
        if not _is_mapping(field, list if key == "full" else dict):
            raise PruneError(f"{path} is not complete: its header has damaged {key!r}")
    return Content(state, kind=header.get("class"), **fields)


def _is_mapping(value: Any, kind: type) -> bool:
    """Return whether a value is a mapping whose values are of a kind."""
    return isinstance(value, dict) and all(isinstance(each, kind) for each in value.values())


def was_saved(path: Path) -> bool:
    """Return whether `save` wrote a file; another may be of any kind.

    Raises:
        PruneError: The file ends in .safetensors, and is none.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    with opened(path) as file:
        return (file.metadata() or {}).get("format") in (FORMAT, EARLIER)


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the header and the tensors of any safetensors file; check one of `save` to be whole.

    Raises:
        PruneError: The file is missing or damaged.
    """
    with opened(path) as file:
        header: dict[str, str] = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    stamped = header.get("format") == FORMAT
    if stamped and not checksum.is_whole(path, header.get(checksum.KEY, "")):
        raise PruneError(f"{path} is damaged: its checksum is not that of its content")
    return header, state


def _resize(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give every parameter and buffer the shape and dtype it has in the file."""
    resized: dict[int, nn.Parameter] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        stores: list[dict[str, Any]] = [module._parameters, module._buffers]
        for key, old in [(k, t) for store in stores for k, t in store.items()]:
            new = state.get(prefix + key)
            if old is None or new is None:
                continue
            device = torch.device("cpu") if old.is_meta else old.device
            empty = torch.empty(
                new.shape, dtype=new.dtype, device=device, memory_format=memory_format(old)
            )
            if key in module._parameters:
                parameter = nn.Parameter(empty, old.requires_grad)
                put_parameters(module, {key: resized.setdefault(id(old), parameter)})
            else:
                module._buffers[key] = empty
