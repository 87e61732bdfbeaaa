"""Models whose own `train` puts other modules or numbers in place, as fused or cached weights are.

A graph knows the modules and constants that it was recorded with, and the branch has none of those
that `train` would compute.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError
from branchprune.graph.held import own_attributes, tensors_in
from branchprune.graph.random_generators import own_generators


def sets_mode_itself(module: nn.Module) -> bool:
    """Return whether a module has a `train` of its own, which may change more than the mode."""
    return type(module).train is not nn.Module.train or "train" in vars(module)


def refuse_mode_swaps(model: nn.Module, inside: str, opaque: Collection[str]) -> None:
    """Raise a PruneError if `train` puts modules, parameters or what it computes of them in place.

    It is called on a copy with random parameters.

    Args:
        model: The model; it is not changed.
        inside: Path of the part that is meant; "" for all of it.
        opaque: Paths of modules that are not looked into, which may do so.
    """
    if not any(map(sets_mode_itself, model.get_submodule(inside).modules())):
        return
    part = _with_other_numbers(model.get_submodule(inside))
    if part is None:
        return
    with torch.no_grad(), own_generators(part.parameters()):
        evaluated = _of_modules(part.train(True).train(False))
        for parameter in filter(torch.is_floating_point, part.parameters()):
            parameter.data.normal_()
        training = _of_parameters(part.train(True)), {*dict(part.named_modules())}
        again = _of_parameters(part.train(False)), {*dict(part.named_modules())}
        computed = _of_modules(part)
    found = [n for a, b in zip(training, again, strict=True) for n in _differing(a, b)]
    found += [name for name in computed if computed[name] != evaluated.get(name)]
    for name in (f"{inside}.{name}" if inside else name for name in found):
        if not any(name == path or name.startswith(f"{path}.") for path in opaque):
            owner = name.rpartition(".")[0]
            raise PruneError(
                f"train() and eval() of the model put another {name} in place, which a trace "
                f"loses: leave {owner or 'the module'} out with `opaque`, compute it in forward, "
                "or do so to the collapsed model alone"
            )


def _with_other_numbers(part: nn.Module) -> nn.Module | None:
    """Return a copy with random parameters; None if there is none, as another check tells."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.randn_like(p), p.requires_grad)
        for p in part.parameters()
        if p.is_floating_point()
    }
    try:
        return copy.deepcopy(part, memo)
    except Exception:
        return None


def _differing(a: Any, b: Any) -> Iterator[str]:
    """Yield the names that only one has, or that stand for something else."""
    if isinstance(a, set):
        yield from sorted(a ^ b)
    else:
        yield from (name for name in a if name in b and a[name] != b[name])


def _of_parameters(part: nn.Module) -> dict[str, tuple[float, ...]]:
    return {name: _numbers(parameter) for name, parameter in part.named_parameters()}


def _of_modules(part: nn.Module) -> dict[str, list[tuple[float, ...]]]:
    """Return what stands in the tensors that modules hold beside parameters, and that may shrink.

    Buffers that are not saved stay as they are, and forward reads them anew.
    """
    found: dict[str, list[tuple[float, ...]]] = {}
    parameters = {*map(id, part.parameters())}
    for path, module in part.named_modules():
        left_out = module._non_persistent_buffers_set
        buffers = {n: b for n, b in module._buffers.items() if n not in left_out}
        for name, value in (*own_attributes(module).items(), *buffers.items()):
            tensors = (t for t in tensors_in(value) if id(t) not in parameters)
            found[f"{path}.{name}" if path else name] = [*map(_numbers, tensors)]
    return found


def _numbers(tensor: Tensor) -> tuple[float, ...]:
    """Return what tells a tensor from one with other numbers."""
    values = tensor.detach().double() if not tensor.is_complex() else tensor.detach().abs()
    return (*map(float, tensor.shape), float(values.sum()), float(values.norm()))
