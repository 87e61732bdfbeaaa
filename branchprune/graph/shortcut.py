"""What stands in the place of a residual block that is left out: its shortcut."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Mish),
        *(nn.ELU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid),
    )
}
"""What may follow the sum of a block, with torch's defaults, by the name of the class."""


class Shortcut(nn.Module):
    """Hands on its input, with the activation that has followed the sum of the block.

    Args:
        activation: One of `ACTIVATIONS`.
        params: How many parameters the block has.
    """

    def __init__(self, activation: str, params: int) -> None:
        super().__init__()
        self.name, self.params = activation, params
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of the input, of any shape."""
        found: Tensor = self.activation(x)
        return found

    def extra_repr(self) -> str:
        """Say which activation it is."""
        return self.name


def shortcuts(model: nn.Module) -> dict[str, str]:
    """Return the activations of the blocks of a model that are left out, by path."""
    return {
        name: module.name for name, module in model.named_modules() if isinstance(module, Shortcut)
    }


def params_left_out(model: nn.Module) -> int:
    """Return how many parameters the blocks of a model have that are left out."""
    return sum(module.params for module in model.modules() if isinstance(module, Shortcut))


def put_shortcuts(model: nn.Module, activations: Mapping[str, str]) -> None:
    """Leave blocks of a model out, in place.

    Args:
        model: The model.
        activations: What follows the sum of each block, by path.
    """
    for name, activation in activations.items():
        block = model.get_submodule(name)
        params = sum(each.numel() for each in block.parameters()) + params_left_out(block)
        shortcut = Shortcut(activation, params).train(block.training)
        model.set_submodule(name, shortcut)
