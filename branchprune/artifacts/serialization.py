"""Saving and loading models as safetensors, with their widths in the header and no pickle."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from branchprune.artifacts import checksum
from branchprune.artifacts.digest import weights_digest
from branchprune.artifacts.facts import Facts, Keep, Metric, facts_in, remember, remembered
from branchprune.artifacts.header import header_of
from branchprune.artifacts.hub_folder import check_folder, is_folder, write_beside
from branchprune.artifacts.origin import checked_origin
from branchprune.artifacts.rebuild import Trusted, wide_model
from branchprune.artifacts.same_model import Content, differences
from branchprune.artifacts.saved_file import IN_FOLDER, file_of, read
from branchprune.artifacts.whole_file import whole_file
from branchprune.blending.blended import Blended
from branchprune.errors import PruneError, optional
from branchprune.graph.full_shapes import remember_full_shapes, shapes
from branchprune.graph.inference_mode import outside_inference_mode
from branchprune.graph.layers import memory_format, put_parameters, set_sizes
from branchprune.graph.plain_model import refuse_lazy, refuse_wrapped
from branchprune.graph.saved_numbers import take_over
from branchprune.graph.shortcut import put_shortcuts

OF_TORCH = (".pt", ".pth", ".ckpt", ".bin")
"""How names of files of torch.save end, as which others would read it."""


def save(
    model: nn.Module,
    path: str | Path,
    made_by: str | None = None,
    init_args: Mapping[str, Any] | None = None,
    *,
    keep: Keep | None = None,
    metric: Metric | None = None,
    license: str | None = None,
) -> None:
    """Write a model's weights and widths to a safetensors file, whole or not at all.

    The header also holds the settings of all layers of torch.nn, the shapes of the dense model as
    far as they are known, the import path of the class, versions, a digest of the weights, and a
    checksum of the file. What a model that was loaded knows of itself is written again, where its
    weights are still those of its file; `made_by` in any case.

    A folder, "name/", is made as the Hugging Face Hub expects one: `model.safetensors`,
    `config.json`, and a model card `README.md`, which is left alone once its comment is deleted.

    ```python
    bp.save(small, "small.safetensors", "my_package:MyNet", {"classes": 5}, metric={"top1": 0.76})
    ```

    Args:
        model: A dense or collapsed model.
        path: Where to write, NAME.safetensors; an existing file is replaced. Or a folder: one that
            is there, or a text that ends in "/".
        made_by: What makes the wide model, as `branchprune plan` takes it: "resnet18",
            "timm/mixnet_s", "torchvision.models.resnet18", "my_package:MyNet". Then `load` and
            commands take the file alone.
        init_args: Arguments of the class or function there: numbers, texts, lists of them.
        keep: What was asked to stay of the channels; see `plan`.
        metric: How good the model is: numbers by name, or dictionaries with a "value", and perhaps
            an "interval" of two numbers, and others.
        license: Of the weights, as the Hub names it: "mit".

    Raises:
        PruneError: The file cannot be written, its name is that of one of torch.save, the model is
            blended or has tensors on `meta`, a module's extra state is no tensor, JSON cannot hold
            `init_args`, another argument is wrong, or a folder has files of another program.
    """
    write_model(model, path, Facts(checked_origin(made_by, init_args), keep, metric or {}, license))


def write_model(model: nn.Module, path: str | Path, facts: Facts) -> None:
    """Write a model with what is known of it; see `save`.

    Args:
        model: See `save`.
        path: See `save`.
        facts: What is known of it.

    Raises:
        PruneError: See `save`.
    """
    facts.check()
    if Path(path).suffix.lower() in OF_TORCH:
        raise PruneError(
            f"path (={str(path)!r}) ends as a file of torch.save, and this is one of safetensors: "
            "take .safetensors"
        )
    folder = Path(path).resolve() if is_folder(path) else None
    path = Path(path).resolve()  # what a link stands for is replaced, not the link
    optional("numpy", "safetensors")
    _check_module(model)
    if isinstance(model, Blended):
        raise PruneError("model is blended: collapse it before it is saved")
    state = {name: tensor.detach() for name, tensor in _tensors(model).items()}
    state = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    digest = weights_digest(state)
    header = header_of(model, facts.over(remembered(model, digest)), digest)
    if folder is None:
        _write(state, header, path)
        return
    made = check_folder(folder)
    try:
        _write(state, header, folder / IN_FOLDER)
        write_beside(folder, header)
    except BaseException:
        if made:
            with suppress(OSError):
                folder.rmdir()  # if nothing is in it
        raise


def _write(state: Mapping[str, Tensor], header: Mapping[str, str], path: Path) -> None:
    if path.exists() and not path.is_file():
        raise PruneError(f"cannot write {path}: it is no regular file")
    with whole_file(path) as part:
        part.touch()
        mode = part.stat().st_mode
        save_file({**state}, part, metadata={**header})
        checksum.stamp(part)
        part.chmod(mode)  # that of any new file, of which safetensors makes a private one


@overload
def load(model: nn.Module, path: str | Path) -> nn.Module: ...
@overload
def load(model: str | Path, *, trust: Trusted = ()) -> nn.Module: ...
@outside_inference_mode()
def load(
    model: nn.Module | str | Path, path: str | Path | None = None, *, trust: Trusted = ()
) -> nn.Module:
    """Read a file written by `save` into a copy of a model, narrowed to the widths in the file.

    ```python
    small = bp.load(make_model(), "small.safetensors")
    small = bp.load("small.safetensors")
    ```

    Of the file alone, the wide model is made by what was named as `made_by` when it was saved:
    models of torchvision, timm and `branchprune.models` without being asked, any other where you
    trust the package that it is from, since that is imported, and called with the arguments in the
    file. Where nothing was named, the class is called without arguments.

    Args:
        model: The model at its full widths; it is not changed. What is on the device `meta` gets
            its weights on the CPU. Or the file alone.
        path: The file, or the folder with it. Only tensors, numbers and names are read from it;
            nothing in it is executed.
        trust: Packages or modules whose code may make the model, such as "my_package".

    Returns:
        A model of the same class with the file's widths and weights; of a file alone in evaluation
        mode.

    Raises:
        PruneError: The file is missing, damaged, of a newer version, not safetensors or of another
            model, whose first differences are named; something that no file holds is on `meta`; or
            the model is not made of the file alone, and what to write instead is said.
    """
    alone = path is None and isinstance(model, str | os.PathLike)
    if isinstance(path, nn.Module) and isinstance(model, str | os.PathLike):
        raise PruneError(f"the model comes first: bp.load(model, {str(model)!r})")
    if path is None and not alone:
        raise PruneError("path is missing: give the file, bp.load(model, 'small.safetensors')")
    file = file_of(model if alone else path)  # type: ignore[arg-type]
    if not alone:
        _check_module(model)
    header, content = read(file)
    wide: Any = wide_model(header, file, trust).eval() if alone else model
    narrow = _narrowed(wide, content, file)
    remember(narrow, facts_in(header, file), weights_digest(content.state))
    return narrow


def _narrowed(model: nn.Module, content: Content, path: Path) -> nn.Module:
    """Return a copy of a model with the widths and weights of a file."""
    names = {name for name, _ in model.named_modules()}
    missing = [name for name in content.shortcuts if name not in names]
    if missing:
        raise PruneError(
            f"{path} is of another model: it leaves out {missing[0]}, which is not in this one"
        )
    if content.shortcuts:
        model = copy.deepcopy(model)
        put_shortcuts(model, content.shortcuts)
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
