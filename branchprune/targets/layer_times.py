"""How long single layers take in a runtime, at a grid of their widths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.graph.inputs import Example, call, copied, own_buffers, tensors, training_mode
from branchprune.graph.layers import become, narrow_channelwise
from branchprune.graph.structure import Pieces, Structure, size_of
from branchprune.planning.narrowed import cut_linear
from branchprune.runtimes.latency import in_turns, quartiles
from branchprune.runtimes.runtime import Runtime, Step

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Of the channels on either side, at which a layer is timed."""
BLOCK_S = 0.003
"""Seconds of passes that are timed together."""
TURNS = 5
"""So often each width of a layer is timed, all of them in turns."""
LEAST = 0.1
"""Of what a run of a layer takes, that is its own."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer in forward.

    Attributes:
        layer: Its path.
        shape: The shape of its input.
        dim: The dimension of the channels.
        inputs: What its input channels are made of; None: they stay.
        outputs: What its output channels are made of; None: as many as its inputs, or a multiple.
        elements: Numbers that it makes for each output channel.
        macs: Its multiply-adds.
    """

    layer: str
    shape: tuple[int, ...]
    dim: int
    inputs: Pieces | None
    outputs: Pieces | None
    elements: float
    macs: float


def layer_calls(model: nn.Module, structure: Structure, example: Example) -> list[LayerCall]:
    """Return the calls of all layers whose work depends on the widths.

    Args:
        model: The model; it is run once, in evaluation mode, from the part that is traced on.
        structure: Its structure.
        example: An example input of that part.
    """
    found: list[LayerCall] = []
    part = model.get_submodule(structure.inside)
    sides: dict[str, tuple[int, Pieces | None, Pieces | None]] = {
        **{name: (each.dim, each.inputs, each.outputs) for name, each in structure.linears.items()},
        **{
            name: (1, each.pieces, None)
            for name, each in structure.channelwise.items()
            if each.macs and each.axis is not None
        },
    }

    def note(name: str, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        x, y = tensors((args, kwargs))[0], tensors(output)[0]
        dim, inputs, outputs = sides[name]
        elements = y.numel() / y.shape[dim]
        work = elements * next(layer.parameters()).numel()
        shape = tuple(x.shape)
        found.append(LayerCall(name, shape, dim % x.dim(), inputs, outputs, elements, work))

    hooks = [
        model.get_submodule(name).register_forward_hook(partial(note, name), with_kwargs=True)
        for name in sides
    ]
    try:
        with torch.no_grad(), training_mode(model, False), own_buffers(model):
            call(part, example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@dataclass(frozen=True, eq=False)
class LayerTimes:
    """How long a layer takes.

    Attributes:
        inputs: Widths of its input, rising.
        outputs: Widths of its output, rising.
        seconds: Its time at each of both, the least of several, by input and output.
        spread: The interquartile range as a share of the median, where that is largest.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    spread: float

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain numbers, ready for JSON."""
        return vars(self)

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> LayerTimes:
        """Return what `as_dict` has made plain.

        Raises:
            ValueError: It is none such.
        """
        seconds = tuple(tuple(map(float, row)) for row in found["seconds"])
        ins, outs = (tuple(map(int, found[side])) for side in ("inputs", "outputs"))
        rising = all(each and min(each) > 0 and [*each] == sorted({*each}) for each in (ins, outs))
        fits = len(seconds) == len(ins) and all(len(row) == len(outs) for row in seconds)
        if not (rising and fits) or not all(0 < s < math.inf for row in seconds for s in row):
            raise ValueError("its times are no positive numbers at rising widths")
        return cls(ins, outs, seconds, float(found["spread"]))


def name_of(layer: nn.Module, called: LayerCall) -> str:
    """Return what tells a layer from those that take another time: its kind and its sizes."""
    weight = next(layer.parameters())
    sides = [
        "fixed" if each is None else f"{size_of(each)}" for each in (called.inputs, called.outputs)
    ]
    dense = weight.dim() < 4 or weight.is_contiguous()
    return (
        f"{type(layer).__name__}({layer.extra_repr()}) on {[*called.shape]}, {weight.dtype}, "
        f"{weight.device.type}{'' if dense else ', channels last'}, inputs {sides[0]}, outputs "
        f"{sides[1]}"
    )


def timed(
    runtime: Runtime, layer: nn.Module, called: LayerCall, multiple: int, overhead: float
) -> LayerTimes:
    """Time a layer at a grid of widths.

    Args:
        runtime: Where.
        layer: The layer; it is not changed.
        called: A call of it.
        multiple: The widths are multiples of it, but of no larger ones.
        overhead: What each run takes beside its layer, in seconds.
    """
    groups = int(getattr(layer, "groups", 1))
    ins, outs = (_widths(pieces, multiple, groups) for pieces in (called.inputs, called.outputs))
    ins = ins or [called.shape[called.dim]]
    sizes = [(i, o) for i in ins for o in outs or [0]]
    steps = [runtime.prepared(*resized(layer, called, i, o)) for i, o in sizes]
    times = in_blocks(steps)
    least = [max(min(each) - overhead, LEAST * min(each)) for each in times]
    count = len(outs) or 1
    seconds = tuple(tuple(least[i : i + count]) for i in range(0, len(least), count))
    return LayerTimes(tuple(ins), tuple(outs) or (1,), seconds, max(map(spread_of, times)))


def in_blocks(steps: Sequence[Step], seconds: float = 0.0) -> list[list[float]]:
    """Time steps in turns; return the seconds of a pass of each, all of its turns.

    What else the machine does makes a pass longer, never shorter: the least of them is the time of
    a model, and their spread tells how far to trust it.

    Args:
        steps: What to time; each has been called before.
        seconds: How long to go on after the least number of turns.
    """
    ((*once,),) = in_turns(steps, CPU, 1)
    counts = [max(1, math.ceil(BLOCK_S / max(s, 1e-7))) for s in once]
    blocks = [partial(_repeated, *each) for each in zip(steps, counts, strict=True)]
    turns = in_turns(blocks, CPU, TURNS, seconds)
    return [[turn[i] / count for turn in turns] for i, count in enumerate(counts)]


def spread_of(times: Sequence[float]) -> float:
    """Return the interquartile range of times as a share of their median."""
    low, middle, high = quartiles(times)
    return (high - low) / middle


def _repeated(step: Step, count: int) -> None:
    for _ in range(count):
        step()


def resized(
    layer: nn.Module, called: LayerCall, inputs: int, outputs: int
) -> tuple[nn.Module, Tensor]:
    """Return a layer of other widths, and an input of it.

    Args:
        layer: The layer.
        called: A call of it.
        inputs: How many channels it reads.
        outputs: How many it makes; 0: as follows from those that it reads.
    """
    small = copied(layer)
    wide = called.shape[called.dim]
    if called.outputs is None:
        axis_one = torch.arange(inputs)
        times = int(getattr(layer, "out_channels", wide)) // wide
        become(small, narrow_channelwise(small, 0, times, wide, axis_one))
    else:
        cut_linear(small, outputs, inputs)
    shape = [*called.shape]
    shape[called.dim] = inputs
    weight = next(layer.parameters())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return small, x.to(weight.device, weight.dtype)


def sized_like(
    layer: nn.Module, called: LayerCall, multiple: int
) -> tuple[float, tuple[nn.Module, Tensor]]:
    """Return a layer of about half its widths, multiples of a number but of no larger power of 2.

    Args:
        layer: The layer.
        called: A call of it.
        multiple: The number.

    Returns:
        The product of its widths, and `resized` of it.
    """
    groups = int(getattr(layer, "groups", 1))

    def half(pieces: Pieces | None) -> int:
        step = math.lcm(multiple, groups)
        width = size_of(pieces) if pieces else 0
        return min(width, (round(width / 2 / step / 2) * 2 + 1) * step)

    ins, outs = half(called.inputs) or called.shape[called.dim], half(called.outputs)
    return ins * max(1, outs), resized(layer, called, ins, outs)


def _widths(pieces: Pieces | None, multiple: int, groups: int) -> list[int]:
    """Return widths between a tenth and all of a channel dimension; none where it is unknown."""
    if pieces is None:
        return []
    width = size_of(pieces)
    step = math.lcm(multiple, groups) if math.lcm(multiple, groups) < width else groups
    # Odd numbers of steps, so that what larger multiples gain is not taken for granted.
    odd = [max(0, round((share * width / step - 1) / 2)) * 2 + 1 for share in SHARES[:-1]]
    return sorted({width, *(each * step for each in odd if each * step < width)})
