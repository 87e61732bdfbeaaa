"""Rules of modules with one entry a channel in their tensors: norms, PReLU, a user's own."""

from __future__ import annotations

from math import gcd

from torch import fx, nn

from branchprune.graph.channels import Known, Layout, resolve, unify
from branchprune.graph.counted_sizes import counted
from branchprune.graph.layers import has_own_forward
from branchprune.graph.nodes import argument, measured_tensor
from branchprune.graph.rules.unlisted import unlisted
from branchprune.graph.state import Analysis


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
    if axis == 0:
        _divide(analysis, layout, module.num_groups, f"GroupNorm {node.target}")
    return analysis.resized(node, axis)


def _divide(analysis: Analysis, layout: Layout, groups: int, name: str) -> None:
    """Let channels be divisible into groups that are normalised."""
    segments = resolve(layout.segments)
    if groups > 1 and len(segments) != 1:
        analysis.blocks.append((layout, groups, name))
        return
    whole = segments[0].channels.width % groups == 0
    divided = 1 if whole else gcd(groups, segments[0].repeat)
    layout.require_blocks(groups // divided)


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


def prelu(analysis: Analysis, node: fx.Node) -> Layout | None:
    """PReLU: one slope for all channels, or one a channel."""
    single = getattr(analysis.module(node), "num_parameters", 1) == 1
    return analysis.resized(node, None if single else _axis(analysis, node))


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


def batch_norm(analysis: Analysis, node: fx.Node) -> Layout | None:
    """The functions batch_norm, instance_norm, …: their parameters are tied to the channels."""
    layout = analysis.layout(analysis.operand(node))
    if layout is None:
        return None
    for operand in node.all_input_nodes[1:]:
        parameter = analysis.layout(operand)
        if parameter is None and analysis.is_tensor(operand):
            return analysis.unknown(node, analysis.why_it_stays(operand))
        if parameter is not None and layout.dim == 1:
            unify(layout.segments, parameter.segments, analysis.describe(node))
    return layout


def functional_group_norm(analysis: Analysis, node: fx.Node) -> Layout | None:
    """The function group_norm: the kept width must be divisible by its groups."""
    layout, groups = analysis.layout(analysis.operand(node)), argument(node, 1, "num_groups")
    if layout is None:
        return None
    if layout.dim != 1 or not isinstance(groups, int):
        return analysis.unknown(node, "it mixes the channels")
    _divide(analysis, layout, groups, f"`group_norm` in {node.name}")
    return batch_norm(analysis, node)


def functional_layer_norm(analysis: Analysis, node: fx.Node) -> Known:
    """The functions layer_norm and rms_norm: over the channels, the shape follows their number."""
    operand, shape = analysis.operand(node), argument(node, 1, "normalized_shape")
    layout, whole = analysis.layout(operand), measured_tensor(shape)
    if layout is None:
        return None
    if whole is None and not isinstance(shape, list | tuple):
        return analysis.unknown(node, "it normalises over a shape that is computed")
    rank, count = len(analysis.shape(node)), len(analysis.shape(whole) if whole else shape)
    axis = layout.dim - (rank - count)
    if axis < 0:
        return unlisted(analysis, node)
    for tensor in node.all_input_nodes:
        if analysis.is_tensor(tensor) and tensor is not operand:
            parameter = analysis.parameter(tensor, axis, node) or analysis.layout(tensor)
            if parameter is None or parameter.dim != axis:
                return analysis.unknown(node, analysis.why_it_stays(tensor))
            unify(layout.segments, parameter.segments, analysis.describe(node))
    if whole is None:
        remedy = f"write `x.shape[{layout.dim - rank}]` in its place"
        analysis.follows(node, shape[axis], layout.segments, remedy=remedy)
        return layout
    width = counted(analysis, whole, axis)
    if width is None or resolve(width.segments) != resolve(layout.segments):
        return analysis.unknown(node, f"it normalises over the shape of {whole.target}")
    return layout
