"""Does each channel of an output follow one channel of the inputs? Tried out on random numbers.

An operation treats its channels alike if reordered channels come out in that order, and without
some of them the others come out as before. It is called with few channels, on numbers of several
kinds: an operation may seem so as long as no limit is reached and no two numbers are equal.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten

TOLERANCE = 1e-9
DRAWS = (("normal", 5, 3), ("positive", 7, 4), ("of every size", 11, 2), ("equal", 4, 3))
"""Kinds of random numbers, each with two numbers of channels."""
FAILS = "it fails at other widths"

Call = Callable[[list[Tensor], Tensor], Any]
"""What is tried: given its tensors, and which channels those are."""


class NotFollowed(Exception):
    """The channels of an operation's inputs are not those of its output; says why."""


@dataclass(frozen=True)
class Operand:
    """A tensor that an operation is given.

    Attributes:
        shape: Its shape for the example.
        dtype: Its type; floating-point numbers are tried in float64.
        dim: The dimension of its channels; None: it has none that are tried.
        run: How many consecutive entries of it belong to one channel.
        value: The tensor itself, if its numbers count, as those of indices do.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    dim: int | None = None
    run: int = 1
    value: Tensor | None = None

    def draw(self, kind: str, width: int) -> Tensor:
        """Return a random tensor.

        Args:
            kind: One of `DRAWS`.
            width: Number of channels.
        """
        if self.value is not None:
            return self.value
        shape = list(self.shape)
        if self.dim is not None:
            shape[self.dim] = width * self.run
        if self.dtype is torch.bool:
            return torch.rand(shape) < 0.5
        if self.dtype.is_complex:
            return torch.randn(shape, dtype=torch.complex128)
        if not self.dtype.is_floating_point:
            low, high = (-9, 9) if kind == "of every size" else (0, 2)
            return torch.randint(low, high, shape, dtype=self.dtype)
        return _numbers(kind, shape)

    def pick(self, tensor: Tensor, channels: Tensor) -> Tensor:
        """Return some channels of a random tensor, or all of it where it has none."""
        return tensor.clone() if self.dim is None else picked(tensor, self.dim, channels, self.run)


def _numbers(kind: str, shape: Sequence[int]) -> Tensor:
    numbers = torch.randn(tuple(shape), dtype=torch.float64)
    if kind == "positive":
        return numbers.sigmoid()
    if kind == "of every size":
        return numbers * 10 ** torch.empty_like(numbers).uniform_(-9, 9)
    return numbers.round() if kind == "equal" else numbers


@dataclass(frozen=True)
class Place:
    """Where channels are in an output.

    Attributes:
        dim: Their dimension.
        run: Entries that belong to one channel.
        tiled: Whether these lie apart, as of all channels in turn, `run` times.
        keeps_shape: Whether the output has the shape of the first operand with channels.
    """

    dim: int
    run: int
    tiled: bool
    keeps_shape: bool = field(compare=False)  # a transposed square does by chance


@dataclass(frozen=True)
class Places:
    """Where channels are in each tensor that an operation returns, and how it holds them."""

    places: tuple[Place, ...]
    structure: TreeSpec


def probe(call: Call, operands: Sequence[Operand]) -> Places:
    """Find where the channels of an operation's output are.

    Args:
        call: The operation.
        operands: Its tensors; those with channels all have the same number of them.

    Raises:
        NotFollowed: They are nowhere: the operation mixes, picks or counts channels, draws at
            random, or fails at other widths.
    """
    found: list[Places] = []
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed, (kind, width, fewer) in enumerate(DRAWS):
            torch.manual_seed(seed)
            tensors = [operand.draw(kind, width) for operand in operands]
            try:
                wide = _outputs(call, operands, tensors, torch.arange(width))
            except NotFollowed:
                raise
            except Exception:  # numbers of another kind may do
                continue
            if not found:
                _refuse_draws(wide, _outputs(call, operands, tensors, torch.arange(width)))
            orders = [torch.randperm(width)[:fewer], torch.randperm(width)]
            outputs = [(order, _fewer(call, operands, tensors, order)) for order in orders]
            found.append(_places(wide, outputs, tensors, operands))
    if not found:
        raise NotFollowed(FAILS)
    return _agreed(found)


Outputs = tuple[list[Tensor], TreeSpec]


def _outputs(
    call: Call, operands: Sequence[Operand], tensors: Sequence[Tensor], channels: Tensor
) -> Outputs:
    given = [o.pick(t, channels) for o, t in zip(operands, tensors, strict=True)]
    leaves, structure = tree_flatten(call(given, channels))
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise NotFollowed("it returns something else than tensors")
    return leaves, structure


def _fewer(
    call: Call, operands: Sequence[Operand], tensors: Sequence[Tensor], channels: Tensor
) -> Outputs:
    try:
        return _outputs(call, operands, tensors, channels)
    except NotFollowed:
        raise
    except Exception as error:
        raise NotFollowed(FAILS) from error


def _refuse_draws(wide: Outputs, again: Outputs) -> None:
    if not all(map(close, wide[0], again[0])):
        raise NotFollowed("it draws at random")


def _places(
    wide: Outputs,
    narrow: Sequence[tuple[Tensor, Outputs]],
    tensors: Sequence[Tensor],
    operands: Sequence[Operand],
) -> Places:
    """Return where channels are in outputs, given the outputs for some of the channels."""
    if any(structure != wide[1] for _, (_, structure) in narrow):
        raise NotFollowed("how many tensors it returns follows the width")
    first = next(i for i, operand in enumerate(operands) if operand.dim is not None)
    width = tensors[first].shape[operands[first].dim or 0] // operands[first].run
    found = []
    for i, output in enumerate(wide[0]):
        parts = [(channels, leaves[i]) for channels, (leaves, _) in narrow]
        dim, run = _dimension(output, parts, width)
        merged = output.dim() < tensors[first].dim()  # perhaps the batch into the channels
        for tiled in (False,) if merged else (False, True):
            if all(close(picked(output, dim, c, run, tiled), part) for c, part in parts):
                same = output.shape == tensors[first].shape
                found.append(Place(dim, run, tiled and run > 1, same))
                break
        else:
            raise NotFollowed("it mixes the channels")
    return Places(tuple(found), wide[1])


def _dimension(
    output: Tensor, parts: Sequence[tuple[Tensor, Tensor]], width: int
) -> tuple[int, int]:
    """Return the dimension of an output that counts channels, and its entries for each."""
    if any(part.dim() != output.dim() for _, part in parts):
        raise NotFollowed("how many dimensions it returns follows the width")
    differ = {
        d
        for _, part in parts
        for d, (a, b) in enumerate(zip(output.shape, part.shape, strict=True))
        if a != b
    }
    if not differ:
        raise NotFollowed("it mixes all channels, or picks some")
    dim = min(differ)
    run = output.shape[dim] // width
    if len(differ) > 1 or any(part.shape[dim] != len(c) * run for c, part in parts):
        raise NotFollowed("it mixes the channels with another dimension, or picks some")
    return dim, run


def _agreed(found: Sequence[Places]) -> Places:
    """Return what all kinds of numbers agree in."""
    if any(places != found[0] for places in found):
        raise NotFollowed("it mixes the channels of some numbers")
    places = tuple(
        replace(same[0], keeps_shape=all(place.keeps_shape for place in same))
        for same in zip(*(each.places for each in found), strict=True)
    )
    return Places(places, found[0].structure)


def picked(tensor: Tensor, dim: int, channels: Tensor, run: int = 1, tiled: bool = False) -> Tensor:
    """Return the entries of a tensor that belong to some channels, in their order.

    Args:
        tensor: The tensor.
        dim: The dimension of its channels.
        channels: Which.
        run: Entries that belong to one channel.
        tiled: Whether these lie apart, as of all channels in turn.
    """
    if tiled:
        steps = torch.arange(run)[:, None] * (tensor.shape[dim] // run)
        return tensor.index_select(dim, (steps + channels).flatten())
    return tensor.index_select(dim, (channels[:, None] * run + torch.arange(run)).flatten())


def close(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal but for rounding in float64."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point() and not a.is_complex():
        return torch.equal(a, b)
    finite = a[a.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(a, b, TOLERANCE, TOLERANCE * largest, equal_nan=True)
