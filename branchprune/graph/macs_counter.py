"""Multiply-adds of what runs: as torch counts them, but for slopes of groups, and attention."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)


def _attention(*shapes: Any, **_: Any) -> int:
    return int(sdpa_flop_count(*shapes[:3]))


def _attention_backward(*shapes: Any, **_: Any) -> int:
    return int(sdpa_backward_flop_count(*shapes[:4]))


def _convolution_backward(slopes: Any, x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """Return the operations of both gradients: each has the products of the convolution itself.

    Torch counts those of the weight as if there were no groups.
    """
    *_settings, transposed, _padding, _groups, wanted = rest
    return sum(map(bool, wanted[:2])) * int(conv_flop_count(x, weight, slopes, transposed))


class MacsCounter(FlopCounterMode):
    """Counts multiply-adds in convolutions and matrix products, for a `with` block."""

    def __init__(self) -> None:
        aten, attention = torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"
        own = {
            aten.convolution_backward: _convolution_backward,
            getattr(aten, attention): _attention,
            getattr(aten, f"{attention}_backward"): _attention_backward,
        }
        super().__init__(display=False, custom_mapping=own)

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    @property
    def macs(self) -> int:
        """How many there were."""
        return int(self.get_total_flops()) // 2
