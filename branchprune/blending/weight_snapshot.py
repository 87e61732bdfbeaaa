"""A model's weights at one moment, to tell later whether they have been trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SAMPLED = 64
"""So many entries of each parameter are kept."""


class WeightSnapshot:
    """Some numbers of each parameter of a model, and how many steps optimizers had made.

    Versions of parameters do not grow with what optimizers write into their `.data`.

    Args:
        model: The model before it is trained.
    """

    optimizer_steps = 0
    """Steps that optimizers have made in this process."""

    def __init__(self, model: nn.Module) -> None:
        self.steps = WeightSnapshot.optimizer_steps
        self.versions = {name: p._version for name, p in model.named_parameters()}
        self.samples = {name: _sample(p) for name, p in model.named_parameters()}

    def optimizer_stepped(self) -> bool:
        """Return whether an optimizer has made a step since, with whatever it holds."""
        return WeightSnapshot.optimizer_steps > self.steps

    def matches(self, model: nn.Module) -> bool:
        """Return whether no parameter has changed since."""
        now = dict(model.named_parameters())
        return now.keys() == self.samples.keys() and all(
            p._version == self.versions[name] and _equal(_sample(p), self.samples[name])
            for name, p in now.items()
        )


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach().flatten()
    step = max(1, len(flat) // SAMPLED)
    return flat[::step].to("cpu", torch.float64, copy=True)


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())
