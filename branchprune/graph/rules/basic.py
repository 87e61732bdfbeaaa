"""What each operation does to the channels: the one place where an operation is taught.

A rule takes the `Analysis` and a node of the graph and returns the layout of the node's output
(None where no channels are known). Whatever has no rule freezes the groups it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import gcd, lcm
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from branchprune.errors import PruneError
from branchprune.graph.channels import Channels, Layout, Segment, resolve, unify
from branchprune.graph.provenance import Joined

if TYPE_CHECKING:
    from branchprune.graph.state import Analysis

Known = Layout | tuple[Layout | None, ...] | None
"""What is known of a value: where a tensor's channels are, or those of each tensor in a tuple."""
Rule = Callable[["Analysis", fx.Node], Known]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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
    if source is not None and groups > 1:
        if groups == getattr(module, "in_channels", 0):
            return analysis.resized(node, 0, times=analysis.shape(node)[1] // groups)
        segments = resolve(source.segments)
        if len(segments) != 1 or segments[0].repeat != 1:
            source.freeze(f"grouped convolution {node.target} reads channels of several layers")
        _require_blocks(source, groups)
    return analysis.linear(node, dim, source)


def _require_blocks(layout: Layout, blocks: int) -> None:
    for segment in resolve(layout.segments):
        segment.channels.blocks = lcm(segment.channels.blocks, blocks)


def same(analysis: Analysis, node: fx.Node) -> Layout | None:
    """An operation on one tensor that treats every channel alike and keeps the dimensions."""
    if sum(analysis.is_tensor(n) for n in node.all_input_nodes) > 1:
        return analysis.unknown(node, "it reads a second tensor")
    return analysis.layout(analysis.operand(node))


def cast(analysis: Analysis, node: fx.Node) -> Layout | None:
    """A change of dtype or device, perhaps to that of a second tensor."""
    return analysis.layout(analysis.operand(node))


def pad(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Padding of the dimensions behind the channels."""
    layout = analysis.layout(analysis.operand(node))
    if layout is None:
        return None
    argument = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    padding = analysis.module(node).padding if node.op == "call_module" else argument
    if not isinstance(padding, list | tuple):
        return analysis.unknown(node)
    if len(analysis.shape(node)) - len(padding) // 2 <= layout.dim:
        return analysis.unknown(node, "it pads the channels")
    return layout


def norm(analysis: Analysis, node: fx.Node) -> Layout | None:
    """BatchNorm and InstanceNorm: one entry a channel in each parameter and buffer."""
    return analysis.resized(node, _axis(analysis, node))


def _axis(analysis: Analysis, node: fx.Node) -> int | None:
    """Return 0 if the module's parameters count the channels: it acts on dimension 1."""
    layout = analysis.layout(analysis.operand(node))
    return 0 if layout is not None and layout.dim == 1 else None


def group_norm(analysis: Analysis, node: fx.Node) -> Layout | None:
    """GroupNorm: the kept width must be divisible by its groups."""
    layout, module = analysis.layout(analysis.operand(node)), analysis.module(node)
    if layout is None or not isinstance(module, nn.GroupNorm):
        return layout
    axis = _axis(analysis, node)
    if module.num_groups > 1 and axis == 0:
        segments = resolve(layout.segments)
        if len(segments) != 1:
            layout.freeze(f"GroupNorm {node.target} normalises channels of several layers together")
        whole = segments[0].channels.width % module.num_groups == 0
        divided = 1 if whole else gcd(module.num_groups, segments[0].repeat)
        _require_blocks(layout, module.num_groups // divided)
    return analysis.resized(node, axis)


def layer_norm(analysis: Analysis, node: fx.Node) -> Layout | None:
    """LayerNorm: narrowed if it normalises over the channels, else left as it is."""
    layout, module = analysis.layout(analysis.operand(node)), analysis.module(node)
    if layout is None or not isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return layout
    if has_own_forward(module) and tuple(module.normalized_shape) == (layout.size,):
        return analysis.resized(node, 0)
    axis = layout.dim - (len(analysis.shape(node)) - len(module.normalized_shape))
    if axis < 0:
        return layout
    return analysis.resized(node, axis)


def has_own_forward(module: nn.Module) -> bool:
    """Return whether a module of a user's class replaces the forward of its class in torch.nn."""
    return not str(type(module).forward.__module__).startswith("torch.nn.modules")


def channelwise(analysis: Analysis, node: fx.Node) -> Layout | None:
    """A module that treats every channel alike, or has one entry a channel in each tensor.

    Each of its parameters and buffers either counts the channels in its first dimension or is a
    single number.
    """
    layout, module = analysis.layout(analysis.operand(node)), analysis.module(node)
    if layout is None:
        return None
    saved = module.state_dict()
    for name, buffer in module.named_buffers():
        if name not in saved and buffer.shape[:1] == (layout.size,):
            return analysis.unknown(node, f"its buffer {name} is not saved with the model")
    sizes = {t.shape[0] for t in saved.values() if t.numel() > 1}
    return analysis.resized(node, 0 if sizes == {layout.size} else None)


def opaque(analysis: Analysis, node: fx.Node) -> None:
    """Something that is not looked into: the widths of what it reads stay."""
    analysis.unknown(node, "it is opaque")


def batch_norm(analysis: Analysis, node: fx.Node) -> Layout | None:
    """The functions batch_norm and instance_norm: their parameters are tied to the channels."""
    layout = analysis.layout(analysis.operand(node))
    if layout is None:
        return None
    for operand in node.all_input_nodes[1:]:
        parameter = analysis.layout(operand)
        if parameter is None and analysis.is_tensor(operand):
            return analysis.unknown(node, f"the width of {operand.name} stays")
        if parameter is not None and layout.dim == 1:
            unify(layout.segments, parameter.segments, node.name)
    return layout


def prelu(analysis: Analysis, node: fx.Node) -> Layout | None:
    """PReLU: one slope for all channels, or one a channel."""
    single = getattr(analysis.module(node), "num_parameters", 1) == 1
    return analysis.resized(node, None if single else _axis(analysis, node))


def elementwise(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Addition, multiplication, …: operands are aligned from the right, as in broadcasting."""
    operands = [n for n in node.all_input_nodes if analysis.is_tensor(n)]
    known = list(analysis.layouts(operands))
    made = [(n, layout) for n, layout in known if not layout.free] or known
    offsets = {layout.dim - len(analysis.shape(n)) for n, layout in made}
    if len(offsets) > 1:
        return analysis.unknown(node, "it combines channels of different dimensions")
    tied: list[Layout] = []
    for offset in offsets:
        for operand in operands:
            shape = analysis.shape(operand)
            size = shape[offset] if len(shape) >= -offset else 1
            layout = analysis.layout(operand) or (
                analysis.parameter(operand, len(shape) + offset) if size > 1 else None
            )
            if layout is not None and layout.dim == len(shape) + offset:
                tied.append(layout.at(len(analysis.shape(node)) + offset))
            elif size > 1:
                analysis.freeze_inputs(node, f"tied by {node.name} to {analysis.stays(operand)}")
    tied.sort(key=lambda layout: -layout.size)
    for layout in tied[1:]:
        if layout.size == tied[0].size:
            unify(tied[0].segments, layout.segments, node.name)
    return tied[0] if tied else None


def concatenate(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Concatenation: along the channels their widths add up, else the inputs are tied."""
    tensors = node.args[0] if node.args else node.kwargs["tensors"]
    parts = [n for n in tensors if isinstance(n, fx.Node)] if isinstance(tensors, Iterable) else []
    known = [pair for pair in analysis.layouts(parts) if not pair[1].free]
    if not known:
        return None
    shape = analysis.shape(node)
    argument = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    channel = known[0][1].dim
    if not isinstance(argument, int) or any(layout.dim != channel for _, layout in known):
        return analysis.unknown(node)
    joined: list[Layout] = []
    for part in parts:
        layout = analysis.layout(part) or analysis.parameter(part, channel)
        if layout is None:
            constant = Channels(analysis.shape(part)[channel], reason="not made by a layer")
            layout = Layout(channel, (Segment(constant),))
        joined.append(layout)
    if argument % len(shape) == channel:
        segments = tuple(segment for layout in joined for segment in layout.segments)
        moved = any(layout.moved for layout in joined)
        origin = Joined(tuple(layout.origin for layout in joined)) if moved else None
        return Layout(channel, segments, None, origin)
    for other in joined[1:]:
        unify(joined[0].segments, other.segments, node.name)
    return joined[0].at(channel)
