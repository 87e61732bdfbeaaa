"""What the walk knows so far of the layers that make channels."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from branchprune.graph.channels import Known, Layout, unify


@dataclass(eq=False, kw_only=True)
class _Reader:
    """A layer that reads channels.

    Attributes:
        inputs: The channels that it reads; None: not known, so that they stay.
    """

    inputs: Layout | None = None

    def read(self, source: Layout, where: str) -> None:
        """Note what a call of it reads: channels that are tied to those of the calls before.

        Args:
            source: The channels.
            where: The layer, for a reason.
        """
        if self.inputs is not None:
            unify(self.inputs.segments, source.segments, where)
        self.inputs = source


@dataclass(eq=False)
class Linear(_Reader):
    """A convolution or fully connected layer while the walk goes on.

    Attributes:
        dim: The channel dimension of its output.
        outputs: Its output channels.
        groups: Its number of groups, as of a grouped convolution.
        macs: Multiply-adds of all its calls so far, for one example.
        operands: The tensors that it is called on, one a call.
    """

    dim: int
    outputs: Layout
    groups: int
    macs: int = 0
    operands: set[fx.Node] = field(default_factory=set)


@dataclass(eq=False)
class Twin(_Reader):
    """A layer whose twin is a layer of its own, while the walk goes on.

    Attributes:
        outputs: What its rule has found of its output.
        made: The channels that it makes.
        stays: Whether the channels are not known that it reads in some call.
        products: Multiply-adds, for one example, that follow its outputs alone, as of query and
            key.
    """

    outputs: Known
    made: Layout
    stays: bool = False
    products: int = 0


@dataclass(frozen=True, eq=False)
class Product:
    """Multiply-adds of a function, as many as the product of the sizes of some dimensions.

    Attributes:
        share: Of all multiply-adds of the function.
        summed: The channels that it sums over.
        made: Those of its output; None: nothing is known of them.
    """

    share: float
    summed: tuple[Layout, ...] = ()
    made: Layout | None = None
