"""Calling a model on an example without leaving a trace in either."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from branchprune.errors import PruneError, first_line
from branchprune.graph.held import changeable, copies_of_nothing, held_tensors
from branchprune.graph.random_generators import own_generators

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


def example_inputs(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split an example into positional and keyword arguments of `forward`."""
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple | list):
        return tuple(example), {}
    if not isinstance(example, Tensor):
        kind = type(example).__name__
        raise PruneError(f"example (a {kind}) must be a tensor, a tuple or a dictionary of them")
    return (example,), {}


def on_device(example: Example, model: nn.Module) -> Example:
    """Return the example on the device of the model's parameters."""
    weight = next(model.parameters(), None)
    if weight is None:
        return example
    moved: Example = tree_map_only(Tensor, lambda tensor: tensor.to(weight.device), example)
    return moved


def call(model: nn.Module, example: Example, forward: Callable[..., Any] | None = None) -> Any:
    """Run a model on a copy of an example, which a model that works in place may change.

    Whatever it draws at random is the same in every call; the generators are left as they were.

    Args:
        model: The model.
        example: An example input.
        forward: What to call; None: the model.
    """
    args, kwargs = tree_map_only(Tensor, Tensor.clone, example_inputs(on_device(example, model)))
    with own_generators(tensors((args, kwargs))):
        return (forward or model)(*args, **kwargs)


def without_constants(example: Example) -> Example:
    """Return an example whose constant tensors of floats are noise, the same in every call.

    Zeros or ones would hide a difference between two models.
    """
    noise = torch.Generator().manual_seed(0)

    def convert(x: Tensor) -> Tensor:
        constant = x.numel() < 2 or bool((x == x.flatten()[0]).all())
        if not x.is_floating_point() or not constant:
            return x
        return torch.randn(x.shape, generator=noise, dtype=torch.float64).to(x.device, x.dtype)

    converted: Example = tree_map_only(Tensor, convert, example)
    return converted


def plain(example: Example) -> Example:
    """Return an example whose tensors are of torch's own class and belong to no computation.

    Raises:
        PruneError: A tensor holds no number, so that nothing could be checked on it.
    """
    for tensor in tensors(example):
        if not tensor.numel():
            shape = tuple(tensor.shape)
            raise PruneError(
                f"example has a tensor of shape {shape}, in which there is no number: what is "
                "attached and collapsed is checked on the example, so give one with a batch"
            )
    result: Example = tree_map_only(
        Tensor, lambda tensor: tensor.detach().as_subclass(Tensor), example
    )
    return result


def repeated(example: Example) -> Example:
    """Return an example with two in place of one wherever the first dimension is 1."""

    def twice(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor]) if tensor.shape[:1] == (1,) else tensor

    result: Example = tree_map_only(Tensor, twice, example)
    return result


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Take back what calls change in modules, buffers and attributes, after a `with` block."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    held = [(c, copy.copy(c)) for module in model.modules() for c in changeable(module)]
    try:
        with own_buffers(model):
            yield
    finally:
        for container, content in held:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


@contextmanager
def own_buffers(model: nn.Module) -> Iterator[None]:
    """Give a model copies of its buffers, which forward may change, for a `with` block."""
    before = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        for module, buffers in before:
            put(module._buffers, {n: b if b is None else b.clone() for n, b in buffers.items()})
        yield
    finally:
        for module, buffers in before:
            put(module._buffers, buffers)


def put(store: dict[str, Any], tensors: Mapping[str, Any]) -> None:
    """Put parameters or buffers back into a module, one by one as a ScriptModule wants it."""
    for name, tensor in tensors.items():
        store[name] = tensor


class _Reached(Exception):
    """The module whose arguments are wanted is about to be called."""


def first_call(
    module: nn.Module, run: Callable[[], object]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return the arguments with which a run first calls a module; None if it does not call it.

    Args:
        module: The module.
        run: What calls it; it is broken off there.
    """
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise _Reached

    handle = module.register_forward_pre_hook(keep, prepend=True, with_kwargs=True)
    try:
        run()
    except _Reached:
        return found[0]
    finally:
        handle.remove()
    return None


def inputs_of(part: nn.Module, model: nn.Module, example: Example) -> Example:
    """Return the arguments with which a model first calls a part of it.

    Args:
        part: A module in the model.
        model: The model; it is run in evaluation mode, up to the part.
        example: An example input of the model.

    Raises:
        PruneError: The model does not call it, or does not accept the example.
    """
    try:
        with torch.no_grad(), training_mode(model, False), own_buffers(model):
            found = first_call(part, partial(call, model, example))
            args, kwargs = tree_map_only(Tensor, Tensor.clone, found or ((), {}))
            named = inspect.signature(part.forward).bind(*args, **kwargs) if kwargs else None
    except Exception as error:
        kind = type(model).__name__
        raise PruneError(f"the example does not pass through {kind}: {error}") from error
    if found is None:
        raise PruneError("the model does not call it")
    inputs: Example = dict(named.arguments) if named else args
    return inputs


def tensors(output: Any) -> list[Tensor]:
    """Return all tensors in an output, however nested, in dataclasses, too."""
    found: list[Tensor] = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors([getattr(leaf, field.name) for field in fields(leaf)])
    return found


@contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put every module into one mode, and each back into its own afterwards."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        set_modes(before)


def set_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Put modules into modes of their own.

    That is by `train` where it can be: a user's may change other attributes, or what is within.

    Args:
        modes: The `training` flag of each module, those that contain others first.
    """
    for module, flag in modes.items():
        if module.training is not flag:
            module.train(flag)
    for module, flag in modes.items():
        if module.training is not flag:
            module.training = flag


def copied(model: nn.Module, sharing: bool = False) -> nn.Module:
    """Return a deep copy of a model.

    Args:
        model: The model.
        sharing: Whether the copy has the very parameters and buffers of the model.

    Raises:
        PruneError: The model holds something that cannot be copied.
    """
    shared = (*model.parameters(), *model.buffers()) if sharing else ()
    memo: dict[int, Any] = copies_of_nothing(model) | {id(tensor): tensor for tensor in shared}
    computed = [tensor for tensor in held_tensors(model) if not tensor.is_leaf]
    memo |= {id(tensor): tensor.detach().clone() for tensor in computed}  # deepcopy refuses them
    try:
        with torch.no_grad():  # a ScriptModule's parameters would come from those of the model
            made = copy.deepcopy(model, memo)
    except Exception as error:
        kind, why = type(model).__name__, first_line(error)
        raise PruneError(f"{kind} cannot be copied by deepcopy: {why}") from error
    _refuse_shared_modules(model, made)
    for new, old in zip(made.parameters(), model.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    with training_mode(made, True):  # a module that caches what it computes of weights forgets it
        return made


def evaluating(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, which has the parameters of a model in that mode.

    Of one that trains it has its own: some layers add to a weight as they change the mode.

    Raises:
        PruneError: The model holds something that cannot be copied.
    """
    return copied(model, sharing=not any(each.training for each in model.modules())).eval()


def _refuse_shared_modules(model: nn.Module, made: nn.Module) -> None:
    """Raise if a copy has a module of the model itself, which would be changed with the copy."""
    own = {id(module) for module in made.modules()}
    for name, module in model.named_modules():
        if id(module) in own:
            kind = type(module).__name__
            raise PruneError(
                f"{name or 'the model'} (a {kind}) is not copied by deepcopy, which returns the "
                f"very module, so that it would be changed: take __deepcopy__ out of {kind}"
            )
