"""Residual blocks that can be left out as a whole: their shortcut stands for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from branchprune.errors import PruneError, first_line
from branchprune.graph.exclusive import one_at_a_time
from branchprune.graph.inputs import Example, call, copied, training_mode
from branchprune.graph.shortcut import ACTIVATIONS, put_shortcuts
from branchprune.planning.profiling import count_macs, count_params

TOLERANCE = 1e-6
"""How near to its shortcut a block without weights must be, relative to the largest number."""


@dataclass(frozen=True)
class Block:
    """A residual block.

    Attributes:
        name: Path of the module.
        activation: What follows its sum, a class of torch.nn; "Identity": nothing.
        params: Parameters that go with it.
        macs: Multiply-adds that go with it, of the example.
    """

    name: str
    activation: str
    params: int
    macs: int


@one_at_a_time
def blocks(model: nn.Module, example: Example) -> list[Block]:
    """Return the residual blocks of a model, in the order in which they are called.

    ```python
    for block in bp.blocks(model, x):
        print(block.name, block.macs)
    shallow = bp.without(model, ["layer3.4", "layer3.5"], x)
    ```

    A block is a module that is called once, with one tensor, and hands on one of the same shape
    which, were all its weights and biases 0, would be its input, or an activation of that: what is
    left of it is its shortcut. That is tried out on random numbers, so any class is understood.
    (Norms then have the statistics that they begin with, and a PReLU its own slopes.) Of modules
    within each other, as a stage and its blocks, the innermost are returned. (Trained residual
    networks bear the loss of single blocks: Veit, Wilber, Belongie, "Residual networks behave like
    ensembles of relatively shallow networks", 2016.)

    Args:
        model: Any network; it is not changed.
        example: An input, a tuple of arguments or a dictionary of keyword arguments.

    Raises:
        PruneError: The model does not accept the example.
    """
    found = []
    for name, x in _inputs(model, example).items():
        block = copied(model.get_submodule(name)).eval()
        macs = count_macs(block, (x,))
        activation = _what_is_left(block, x) if macs else None
        if activation is not None:
            found.append(Block(name, activation, count_params(block), macs))
    outer = {each.name for each in found for o in found if o.name.startswith(f"{each.name}.")}
    return [each for each in found if each.name not in outer]


def holding_none(found: Sequence[Block], names: Iterable[str]) -> list[Block]:
    """Return the blocks that neither are one of some modules nor hold one.

    Args:
        found: Blocks.
        names: Paths of modules, or of groups of channels.
    """
    paths = [f"{name.partition('#')[0]}." for name in names]
    return [each for each in found if not any(p.startswith(f"{each.name}.") for p in paths)]


def without(model: nn.Module, names: Sequence[str], example: Example) -> nn.Module:
    """Return a copy of a model in which the shortcuts of some blocks stand for them.

    Each hands on its input (N, C, …), through the activation that has followed the sum. All other
    layers keep their names and weights; `save` and `load` know of the blocks that are left out.

    Args:
        model: The model; it is not changed.
        names: Paths of blocks, as `blocks` finds them, each once or more often.
        example: See `blocks`.

    Raises:
        PruneError: One is no such block, or the model does not run without them.
    """
    if isinstance(names, str):
        raise PruneError(f"names (={names!r}) must be several paths, such as [{names!r}]")
    known = {each.name: each for each in blocks(model, example)}
    for name in names:
        if name not in known:
            raise PruneError(
                f"names: {name!r} is no residual block; those are {', '.join(known) or 'none'}"
            )
    shallow = copied(model)
    put_shortcuts(shallow, {name: known[name].activation for name in names})
    try:
        with training_mode(shallow, False), torch.no_grad():
            call(shallow, example)
    except Exception as error:  # whatever forward raises
        raise PruneError(
            f"the model does not run without {', '.join(names)}: {first_line(error)}"
        ) from error
    return shallow


def _inputs(model: nn.Module, example: Example) -> Mapping[str, Tensor]:
    """Return what each module reads that is called once, with one tensor, and keeps its shape."""
    seen: dict[str, list[Tensor | None]] = {}
    hooks = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
            same = alone and isinstance(output, Tensor) and output.shape == args[0].shape
            floats = same and args[0].is_floating_point() and output.dtype == args[0].dtype
            seen.setdefault(name, []).append(args[0].detach() if floats else None)

        return hook

    for name, module in model.named_modules():
        if name and next(module.parameters(), None) is not None:
            hooks.append(module.register_forward_hook(note(name), with_kwargs=True))
    try:
        with training_mode(model, False), torch.no_grad():
            call(model, example)
    except Exception as error:  # whatever forward raises
        raise PruneError(f"the model does not accept the example: {first_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    once = {name: inputs[0] for name, inputs in seen.items() if len(inputs) == 1}
    return {name: x for name, x in once.items() if x is not None}


def _what_is_left(block: nn.Module, like: Tensor) -> str | None:
    """Return the activation that a block is if its weights are 0; None: something else."""
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like) * 5
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, _NormBase):
                module.reset_running_stats()
            for parameter in module._parameters.values():
                if parameter is not None and not isinstance(module, nn.PReLU):
                    parameter.zero_()
        try:
            output = call(block, noise)
        except Exception:  # as of a norm of the weights
            return None
        for name, kind in ACTIVATIONS.items():
            expected = kind()(noise)
            if torch.allclose(
                output, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max())
            ):
                return name
    return None
