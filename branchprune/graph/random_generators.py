"""The random generators of torch, Python and NumPy: kept as they are, and compared."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

try:
    from numpy import random as numpy_random
except ImportError:  # torch runs without it, and then nothing draws from it
    numpy_random = None  # type: ignore[assignment]


@contextmanager
def own_generators(used: Iterable[Tensor]) -> Iterator[None]:
    """Leave the random generators of torch, Python and NumPy as they were, after a `with` block.

    Args:
        used: Tensors on the devices whose generators are meant, beside the CPU's.
    """
    devices = {tensor.device for tensor in used if tensor.is_cuda}
    python = random.getstate()
    numpy = None if numpy_random is None else numpy_random.get_state()
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy_random.set_state(numpy)


@contextmanager
def seeded(seed: int, used: Iterable[Tensor]) -> Iterator[None]:
    """Seed the generators of torch, Python and NumPy for a `with` block; see `own_generators`.

    Args:
        seed: A whole number of at least 0.
        used: Tensors on the devices whose generators are meant, beside the CPU's.
    """
    with own_generators(used):
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy_random is not None:
            numpy_random.seed(seed % 2**32)
        yield


def generator_states() -> dict[str, Any]:
    """Return the states of the random generators, to be compared."""
    states = {"torch": _content(torch.get_rng_state()), "random": random.getstate()}
    if numpy_random is not None:
        numpy = numpy_random.get_state(legacy=False)["state"]
        states["numpy"] = (numpy["key"].tobytes(), numpy["pos"])
    if torch.cuda.is_initialized():
        states["torch.cuda"] = tuple(map(_content, torch.cuda.get_rng_state_all()))
    return states


def _content(state: Tensor) -> bytes:
    """Return the bytes of a tensor on the CPU; `Tensor.numpy` would need NumPy."""
    return ctypes.string_at(state.data_ptr(), state.nbytes)
