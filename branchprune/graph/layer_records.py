"""What the walk knows so far of the layers that make channels."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from branchprune.graph.channels import Known, Layout


@dataclass(eq=False)
class Linear:
    """A convolution or fully connected layer while the walk goes on.

    Attributes:
        dim: The channel dimension of its output.
        outputs: Its output channels.
        groups: Its number of groups, as of a grouped convolution.
        macs: Multiply-adds of all its calls so far, for one example.
        inputs: The channels that it reads; None: not known, so that they stay.
        operands: The tensors that it is called on, one a call.
    """

    dim: int
    outputs: Layout
    groups: int
    macs: int = 0
    inputs: Layout | None = None
    operands: set[fx.Node] = field(default_factory=set)


@dataclass(eq=False)
class Twin:
    """A layer whose twin is a layer of its own, while the walk goes on.

    Attributes:
        outputs: What its rule has found of its output.
        made: The channels that it makes.
        inputs: The channels that it reads; None: not known, so that they stay.
        stays: Whether the channels are not known that it reads in some call.
    """

    outputs: Known
    made: Layout
    inputs: Layout | None = None
    stays: bool = False
