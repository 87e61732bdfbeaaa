"""Depth: residual blocks blended with their shortcuts, until the shortcuts alone are left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError
from branchprune.graph.inputs import Example, copied
from branchprune.graph.shortcut import Shortcut
from branchprune.planning.residual_blocks import without


class Skipping(nn.Module):
    """A residual block and its shortcut: `α · block(x) + (1 − α) · shortcut(x)`.

    At α = 1 and at α = 0 only one of both is computed.

    Args:
        block: The block.
        shortcut: Its shortcut.
    """

    def __init__(self, block: nn.Module, shortcut: Shortcut) -> None:
        super().__init__()
        self.block, self.shortcut = block, shortcut
        self.alpha = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return the blend, of the shape of the input."""
        if self.alpha == 0:
            found: Tensor = self.shortcut(x)
            return found
        if self.alpha == 1:
            whole: Tensor = self.block(x)
            return whole
        # A block may work in place on what its shortcut still needs.
        return torch.lerp(self.shortcut(x), self.block(x.clone()), self.alpha)


class Shallowing(nn.Module):
    """A model some of whose residual blocks fade out, while all of it trains.

    Each computes `α · block(x) + (1 − α) · shortcut(x)`: the blend of Gschossmann, "Model pruning",
    2021, with the shortcut as the branch. `forward` takes and returns what the model does.

    ```python
    fading = bp.Shallowing(model, ["layer3.4", "layer3.5"], x)
    for fading.alpha in (0.75, 0.5, 0.25, 0.0):
        train_one_epoch(fading)
    shallow = fading.collapsed()
    ```

    Args:
        model: The model; it is copied.
        names: Paths of blocks, as `blocks` finds them.
        example: An input of the model.

    Raises:
        PruneError: One is no residual block, or the model does not run without it.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], example: Example) -> None:
        super().__init__()
        shallow = without(model, names, example)
        self.model, self.names = copied(model), [*dict.fromkeys(names)]
        for name in self.names:
            shortcut = shallow.get_submodule(name)
            assert isinstance(shortcut, Shortcut)
            block = self.model.get_submodule(name)
            self.model.set_submodule(name, Skipping(block, shortcut).train(block.training))

    @property
    def alpha(self) -> float:
        """The weight of the blocks, from 1, where it begins, to 0; others raise `PruneError`."""
        return next((each.alpha for each in self._skipping()), 1.0)

    @alpha.setter
    def alpha(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise PruneError(f"alpha (={value!r}) must be a number between 0 and 1")
        for each in self._skipping():
            each.alpha = float(value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model does, its blocks blended with their shortcuts."""
        return self.model(*args, **kwargs)

    def collapsed(self) -> nn.Module:
        """Return a copy of the model with the shortcuts in place of the blocks.

        Raises:
            PruneError: α is not 0 yet.
        """
        if self.names and self.alpha != 0:
            raise PruneError(f"alpha (={self.alpha}) must be 0 before blocks are left out")
        shallow = copied(self.model)
        for name in self.names:
            shallow.set_submodule(name, shallow.get_submodule(f"{name}.shortcut"))
        return shallow

    def _skipping(self) -> list[Skipping]:
        return [each for each in self.model.modules() if isinstance(each, Skipping)]
