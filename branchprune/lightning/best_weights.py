"""The weights of the best epoch of a level."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn


class BestWeights:
    """Keeps the state of a module at its best metric.

    Args:
        mode: Whether the metric is to be large or small.
    """

    def __init__(self, mode: Literal["max", "min"]) -> None:
        self.sign = 1 if mode == "max" else -1
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.value, self.state = -math.inf, dict[str, Tensor]()

    def offer(self, metric: float, module: nn.Module) -> None:
        """Keep a copy of the module's state if its metric is the best so far."""
        value = -math.inf if math.isnan(metric) else self.sign * metric
        if not self.state or value > self.value:
            self.value = value
            self.state = {name: value.clone() for name, value in module.state_dict().items()}

    def restore(self, module: nn.Module) -> None:
        """Put the best state back into the module."""
        module.load_state_dict(self.state)

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept, for a checkpoint."""
        return {"value": self.value, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.value, self.state = state["value"], dict(state["state"])
