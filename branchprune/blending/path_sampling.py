"""How training mixes the wide path and the branch: a weighted sum, or one of them, drawn.

With a weighted sum the wide path can make up for a small α, if only because a norm behind what
reads the sum undoes its scale; where either path is drawn, with probability α for the wide one, it
cannot. Random numbers come from torch's generator on the CPU, whatever the device; compiled code
may turn a seed into other numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, get_args

from torch import Tensor
from torch.utils._pytree import tree_map

from branchprune.blending.shared_random import uniform, uniform_rows
from branchprune.errors import PruneError
from branchprune.graph.inputs import tensors

Mixing = Literal["sum", "group", "step", "sample"]
Norms = Literal["batch", "kept", "private"]


@dataclass(frozen=True)
class PathMixing:
    """How both paths become one where both are computed.

    Args:
        mixing: See `attach`.
        matching: See `attach`.
        norms: See `attach`.
        layers: Paths of what `norms` concerns: with "kept" the norms that keep their statistics,
            with "private" the linear layers that compute each path apart.

    Raises:
        PruneError: They are not what they can be, or do not go together.
    """

    mixing: Mixing = "sum"
    matching: float = 0.0
    norms: Norms = "batch"
    layers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, kind in (("mixing", Mixing), ("norms", Norms)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(map(repr, get_args(kind)))
                raise PruneError(f"{name} (={getattr(self, name)!r}) must be one of {known}")
        if not isinstance(self.matching, Real) or not 0 <= self.matching < float("inf"):
            raise PruneError(f"matching (={self.matching!r}) must be a weight of at least 0")
        if self.matching and self.mixing == "step":
            raise PruneError(
                f"matching (={self.matching}) needs both paths, of which mixing (='step') computes "
                "only one"
            )
        if self.norms != "batch" and self.mixing != "sum":
            raise PruneError(
                f"norms (={self.norms!r}) needs mixing='sum', and mixing is {self.mixing!r}: set "
                "norms='batch', since where one path is drawn no norm can undo α"
            )

    @property
    def apart(self) -> frozenset[str]:
        """Paths of the layers that compute each path apart."""
        return self.layers if self.norms == "private" else frozenset()

    @property
    def kept(self) -> frozenset[str]:
        """Paths of the norms that keep their statistics while the paths are mixed."""
        return self.layers if self.norms == "kept" else frozenset()

    @property
    def in_evaluation(self) -> PathMixing:
        """What evaluation does instead: nothing is drawn or matched."""
        return replace(self, mixing="sum", matching=0.0)


def drawn_together(alphas: Sequence[float]) -> tuple[float, ...]:
    """Return α of each group for one step: 1 with probability α, else 0, by one common number."""
    if all(alpha in (0, 1) for alpha in alphas):
        return tuple(alphas)
    number = float(uniform())
    return tuple(float(number < alpha) for alpha in alphas)


def drawn(alphas: Tensor) -> Tensor:
    """Return 1 with probability α, else 0, for each group; shapes (n,)."""
    return _decided(uniform(len(alphas)), alphas)


def _decided(numbers: Tensor, alphas: Tensor) -> Tensor:
    return (numbers.to(alphas.device, non_blocking=True) < alphas).to(alphas.dtype)


def drawn_for_each_example(alphas: Tensor, inputs: Sequence[Any]) -> Tensor:
    """Return 1 with probability α, else 0, for each example of a batch.

    Args:
        alphas: α of each group, shape (n,).
        inputs: The arguments of forward; the first tensor among them has the batch size N.

    Returns:
        Tensor of shape (N, n).
    """
    batch = next((len(tensor) for tensor in tensors(inputs) if tensor.dim()), None)
    if batch is None:
        raise PruneError("mixing (='sample') needs a tensor with a batch dimension in the inputs")
    return _decided(uniform_rows(batch, len(alphas)), alphas)


def met(narrow: Any, wide: Any, alphas: Tensor, branches: Sequence[int]) -> Any:
    """Return `α · wide + (1 − α) · narrow` of what is computed from channels that end there.

    Args:
        narrow: A tensor computed from the branch, or a tuple with tensors.
        wide: The same of the wide path, of the same shapes.
        alphas: α of every group, shape (n,), or of each example and group, shape (N, n).
        branches: Indices of the groups that end; their mean is α. Where no dimension 0 of N
            examples, or of as many parts of each, is left, so is that of all examples.
    """
    alpha = alphas[..., list(branches)].mean(-1)

    def mixed(first: Any, second: Any) -> Any:
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return second
        of_all, size = alpha.mean(), len(first) if first.dim() else 0
        if alpha.dim() and size and size % len(alpha) == 0:
            each = alpha.repeat_interleave(size // len(alpha))
            of_all = each.view(-1, *[1] * (first.dim() - 1))
        of_all = of_all.to(first.dtype)
        return second * of_all + first * (1 - of_all)

    return tree_map(mixed, narrow, wide)


def along_examples(alphas: Tensor, wide: Tensor, dim: int, layer: str) -> Tensor:
    """Return α of each example in a shape that goes with a tensor.

    Args:
        alphas: α of each example and group, shape (N, n).
        wide: The tensor, its examples along dimension 0.
        dim: Its channel dimension.
        layer: The layer that reads it, for the error.

    Returns:
        Tensor of shape (N, 1, …, 1, n), in which the last dimension is not one of `wide`.

    Raises:
        PruneError: Dimension 0 of the tensor does not hold the examples.
    """
    if len(wide) != len(alphas) or dim % wide.dim() == 0:
        raise PruneError(
            f"mixing (='sample') needs the {len(alphas)} examples along dimension 0, but {layer} "
            f"reads a tensor of shape {tuple(wide.shape)}: use mixing='group'"
        )
    return alphas.to(wide.dtype).view(len(alphas), *[1] * (wide.dim() - 1), -1)
