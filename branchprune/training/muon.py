"""Muon for convolutions that start from trained weights, whose sizes differ from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from branchprune.errors import PruneError

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial that brings singular values near 1 (Jordan et al., 2024)."""


LEAST = 1e-4
"""Size of an entry up to which a convolution's weights count as that large: zeros can move, too."""


class Muon(Optimizer):
    """Orthogonalised momentum for convolutions, SGD with Nesterov momentum for all else.

    The step of a convolution is its momentum with all singular values made alike (Jordan et al.,
    "Muon", 2024), over as large a part of the weight's norm in every layer, as in LARS (You et
    al., 2017). In front of a norm only that part matters; torch's and timm's Muon step by the same
    absolute length in every layer, which is a tenth of the weights of one layer of a trained
    network and a hundredth of those of another.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate of all but convolutions.
        weight_decay: Weight decay of the same.
        momentum: Momentum of those; that of convolutions is 0.95.
        relative_step: Length of a convolution's step, in norms of its weight, as a multiple of
            `lr`: it falls with it.
        iterations: Of the orthogonalisation (Newton-Schulz).

    Raises:
        PruneError: A number is negative; a gradient is sparse.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        relative_step: float = 0.5,
        iterations: int = 5,
    ) -> None:
        settings = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        settings |= {"relative_step": relative_step, "iterations": iterations}
        for name, value in settings.items():
            if not 0 <= value < math.inf:  # a learning rate may be a tensor
                raise PruneError(f"{name} (={value}) must not be negative, infinite or NaN")
        super().__init__(params, settings)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step, after evaluating the closure where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and weight.grad.is_sparse:
                    raise PruneError(f"Muon: a gradient of shape {[*weight.shape]} is sparse")
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)
        return loss

    def _move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        convolution = weight.dim() > 2
        if not convolution:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        momentum = 0.95 if convolution else group["momentum"]
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer = state["momentum_buffer"]
        buffer.mul_(momentum).add_(gradient)
        change, length = gradient.add(buffer, alpha=momentum), group["lr"]
        if convolution:
            change = orthogonalised(change.flatten(1).float(), group["iterations"])
            change = change.view(weight.shape) * (gradient != 0).any()  # nothing learnt, no step
            size = weight.norm().clamp_min(LEAST * weight.numel() ** 0.5)
            length = length * group["relative_step"] * size / change.norm().clamp_min(1e-12)
        weight.sub_(length * change)


def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Return a matrix with the same singular vectors and all singular values near 1.

    Args:
        matrix: Shape (M, N).
        iterations: Of the Newton-Schulz iteration of Jordan et al. (2024); with 5, singular values
            that are at least a hundredth of the norm end between 0.5 and 1.3.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(1e-12)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.T if tall else x
    return result
