"""A digest of a model's weights, which is the same in every file that holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from ctypes import c_char
from typing import Any

import torch
from torch import Tensor, nn


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors, in hexadecimal digits.

    For each, in the order of their names: the name, the dtype as torch writes it ("float32") and
    the sizes with commas between them, each ended by a zero byte, and the numbers as a C array.

    Args:
        state: The tensors by name, dense, on any device.
    """
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu").contiguous()
        dtype, sizes = str(tensor.dtype).removeprefix("torch."), ",".join(map(str, tensor.shape))
        found.update(b"".join(text.encode() + b"\0" for text in (name, dtype, sizes)))
        if tensor.numel():
            plain = tensor.resolve_conj().resolve_neg()
            found.update((c_char * plain.nbytes).from_address(plain.data_ptr()))  # without NumPy
    return found.hexdigest()


def model_digest(model: nn.Module) -> str:
    """Return the digest of a model's weights and buffers, of the dense tensors in its state."""
    state = {name: value for name, value in model.state_dict().items() if _is_dense(value)}
    return weights_digest(state)


def _is_dense(value: Any) -> bool:
    plain = type(value) in (Tensor, nn.Parameter)  # others may have no memory of their own
    return plain and value.layout == torch.strided and not value.is_meta
