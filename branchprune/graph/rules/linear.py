"""Rule of the layers that make channels and read them: convolutions, fully connected layers."""

from __future__ import annotations

import torch
from torch import fx, nn

from branchprune.errors import PruneError
from branchprune.graph.channels import Layout
from branchprune.graph.layers import CONVOLUTIONS, TRANSPOSED
from branchprune.graph.state import Analysis


def linear(analysis: Analysis, node: fx.Node) -> Layout | None:
    """A producer and consumer: convolution, transposed convolution or fully connected layer."""
    module, source = analysis.module(node), analysis.layout(analysis.operand(node))
    weight, shape = module.weight, analysis.shape(analysis.operand(node))
    assert isinstance(weight, torch.Tensor)
    if isinstance(module, CONVOLUTIONS + TRANSPOSED) and len(shape) < weight.dim():
        raise PruneError(f"{node.target} reads shape {shape}: the example needs a batch dimension")
    dim = len(analysis.shape(node)) - 1 if isinstance(module, nn.Linear) else 1
    groups = int(getattr(module, "groups", 1))
    if source is not None and source.dim != dim:
        analysis.unknown(node, "it acts on another dimension than the channels")
        source = None
    if source is not None and groups == getattr(module, "in_channels", 0) > 1:
        return analysis.resized(node, 0, times=analysis.shape(node)[1] // groups)
    if str(node.target) in analysis.twins:
        return analysis.twin(node, analysis.twins[str(node.target)], source).made
    return analysis.linear(node, dim, source)
