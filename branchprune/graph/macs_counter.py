"""Multiply-adds of what runs, as torch counts them, with those of attention on a CPU."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _attention(*shapes: Any, **_: Any) -> int:
    return int(sdpa_flop_count(*shapes[:3]))


def _attention_backward(*shapes: Any, **_: Any) -> int:
    return int(sdpa_backward_flop_count(*shapes[:4]))


class MacsCounter(FlopCounterMode):
    """Counts multiply-adds in convolutions and matrix products, for a `with` block."""

    def __init__(self) -> None:
        aten, attention = torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"
        on_cpu = {
            getattr(aten, attention): _attention,
            getattr(aten, f"{attention}_backward"): _attention_backward,
        }
        super().__init__(display=False, custom_mapping=on_cpu)

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    @property
    def macs(self) -> int:
        """How many there were."""
        return int(self.get_total_flops()) // 2
