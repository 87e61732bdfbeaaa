"""Reading α from its buffer, which is the one truth, without a cost where it stays.

Averaged copies, checkpoints and hand-written loops write into buffers in many ways. All but a write
by `.data` make another tensor of it or raise its version, which is looked at before each pass, on
every device. Numbers on the CPU are compared as well. Those on a GPU are compared before each pass
in evaluation mode and before the first one in training mode after that, so that the steps of a
training never wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from branchprune.errors import PruneError

Alphas = tuple[float, ...]
SLACK = 1e-6
"""How far outside of [0, 1] rounding in an average may take an α."""


class AlphaBuffer:
    """What the buffer of α holds, as plain numbers.

    Args:
        values: What it holds now.
    """

    def __init__(self, values: Alphas) -> None:
        self.values = values
        self._forget()

    def _forget(self) -> None:
        self.tensor: Tensor | None = None
        self.version: int | None = None
        self.raw: Sequence[float] = ()
        self.training = False

    def write(self, buffer: Tensor, values: Alphas) -> None:
        """Set α of each group."""
        with torch.no_grad():
            buffer.copy_(torch.tensor(values, dtype=torch.float32))
        self.values = values
        self._note(buffer, _rounded(values, buffer.dtype))

    def read(self, buffer: Tensor, training: bool, names: Callable[[], Sequence[str]]) -> Alphas:
        """Return α of each group; the same object as long as nothing has changed.

        Args:
            buffer: The buffer, of shape (number of groups,).
            training: Whether it is read for a pass in training mode.
            names: The groups, for the error.

        Raises:
            PruneError: An α is not in [0, 1].
        """
        if self._must_compare(buffer, training):
            self.training = training
            try:
                raw = buffer.tolist()
            except RuntimeError:  # without numbers: on "meta", fake, or one of several by vmap
                return self.values
            if raw != self.raw:
                self.values = _decimals(raw, self.values, buffer.dtype, names)
            self._note(buffer, raw)
        return self.values

    def _must_compare(self, buffer: Tensor, training: bool) -> bool:
        if buffer.device.type == "cpu" or buffer is not self.tensor:
            return True
        version = _version(buffer)
        steady = training and self.training
        return version is None or version != self.version or not steady

    def _note(self, buffer: Tensor, raw: Sequence[float]) -> None:
        self.tensor, self.version, self.raw = buffer, _version(buffer), raw

    def __getstate__(self) -> dict[str, Any]:
        return {"values": self.values}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["values"])  # type: ignore[misc]


def _version(buffer: Tensor) -> int | None:
    """Return a number that grows with writes; None for a tensor that does not count them."""
    return None if buffer.is_inference() else buffer._version


def _rounded(values: Sequence[float], dtype: torch.dtype) -> list[float]:
    """Return numbers as a buffer of a type holds them that were set as float32."""
    rounded: list[float] = torch.tensor(values, dtype=torch.float32).to(dtype).tolist()
    return rounded


def _decimals(
    raw: Sequence[float], before: Alphas, dtype: torch.dtype, names: Callable[[], Sequence[str]]
) -> Alphas:
    """Return what a buffer holds: as it was set where that is the same number, else shortest."""
    single = _rounded(before, dtype)
    return tuple(
        old if number == same else _shortest(number, names()[i])
        for i, (number, old, same) in enumerate(zip(raw, before, single, strict=True))
    )


def _shortest(number: float, name: str) -> float:
    """Return the decimal with the fewest digits that is the same number in float32."""
    if not -SLACK <= number <= 1 + SLACK:
        raise PruneError(
            f"the buffer `alphas` holds {number} for the group {name}, which is not in [0, 1]: set "
            "`blended.alpha`, or leave buffers out of what is averaged or loaded"
        )
    number = min(max(number, 0.0), 1.0)
    tried = (float(f"{number:.{digits}g}") for digits in range(1, 10))
    same = (t for t in tried if _rounded([t], torch.float32) == _rounded([number], torch.float32))
    return next(same, number)
