"""Functions that make tensors of numbers alone, such as `torch.zeros(len(x), n)`."""

from __future__ import annotations

import torch

_CONSTANT = (
    *("zeros", "ones", "full", "eye", "arange", "linspace", "logspace", "tensor", "as_tensor"),
    *("scalar_tensor", "tril_indices", "triu_indices", "hann_window", "hamming_window"),
    *("blackman_window", "bartlett_window", "kaiser_window"),
)
_DRAWN = ("rand", "randn", "randint", "randperm", "normal")

CONSTANT_FACTORIES = frozenset(getattr(torch, name) for name in _CONSTANT)
"""Those that give the same for the same numbers."""
DRAWS = frozenset(getattr(torch, name) for name in _DRAWN)
"""Those that draw at random."""
FACTORIES = CONSTANT_FACTORIES | DRAWS | {torch.empty}
