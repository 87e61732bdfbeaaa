"""Modules with a forward of their own are tried out: do they do what their rule takes them for?"""

from __future__ import annotations

import copy
from math import lcm

import torch
from torch import Tensor, fx, nn

from branchprune.errors import first_line
from branchprune.graph.channels import resolve
from branchprune.graph.folding import fold_bias, fold_weight
from branchprune.graph.layer_records import Twin
from branchprune.graph.layers import narrow_channelwise, set_linear_width
from branchprune.graph.state import Analysis
from branchprune.graph.twin_layers import narrow_layer

TOLERANCE = 1e-9


def find_fault(module: nn.Module, analysis: Analysis, node: fx.Node) -> str | None:
    """Return how a module departs from its rule, tried on random numbers; None if it does not.

    A linear layer must give the same with random linear maps around it as with the maps folded
    into its weight; a channelwise module, when its channels are put in another order, must give
    the same in that order.

    Args:
        module: The module.
        analysis: The walk, which has already applied the rule to the node.
        node: The node that calls it.
    """
    name, layout = str(node.target), analysis.layout(analysis.operand(node))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        trial = _scrambled(module)
        shape = (1, *analysis.shape(analysis.operand(node))[1:])
        try:
            if name in analysis.linears:
                fault = "has a forward of its own, which is not that of its class"
                agrees = _is_linear(trial, shape, analysis.linears[name].dim)
            elif layout is None:
                return None
            else:
                fault = "does not treat its channels alike"
                axis = analysis.channelwise[name][1] if name in analysis.channelwise else None
                blocks = lcm(*(s.channels.blocks for s in resolve(layout.segments)))
                agrees = _is_channelwise(trial, shape, layout.dim, axis, blocks)
        except Exception as error:
            return f"has a forward of its own, which fails at other widths: {first_line(error)}"
    return None if agrees else fault


def make_twin(analysis: Analysis, node: fx.Node) -> bool:
    """Let a layer have a twin of its own, if its outputs can be cut out and it runs at any width.

    That is so where forward changes the weight of each output channel by itself, as the
    standardisation of weights does.

    Args:
        analysis: The walk, which has taken the module for a linear layer of its class.
        node: The node that calls it.
    """
    name, module = str(node.target), analysis.module(node)
    layer = analysis.linears.get(name)
    if layer is None or len(layer.operands) > 1 or getattr(module, "transposed", False):
        return False
    shape = analysis.shape(analysis.operand(node))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            if not _has_rows(_scrambled(module), (1, *shape[1:]), layer.dim, layer.groups):
                return False
        except Exception:
            return False
    del analysis.linears[name]
    analysis.channels = [(other, c) for other, c in analysis.channels if other != name]
    analysis.twin(node, Twin(layer.outputs, layer.outputs), layer.inputs)
    return True


def _has_rows(layer: nn.Module, shape: tuple[int, ...], dim: int, groups: int) -> bool:
    """Return whether a layer cut to some outputs gives these, and runs with fewer inputs."""
    x = torch.randn(shape, dtype=torch.float64)
    wide: Tensor = layer(x.clone())
    some, fewer = (
        torch.cat([block[: (len(block) + 1) // 2] for block in _blocks(width, groups)])
        for width in (wide.shape[dim], shape[dim])
    )
    if not _close(narrow_layer(layer, None, some)(x.clone()), wide.index_select(dim, some)):
        return False
    narrow: Tensor = narrow_layer(layer, fewer, some)(x.index_select(dim, fewer))
    return narrow.shape == wide.index_select(dim, some).shape


def _scrambled(module: nn.Module) -> nn.Module:
    """Return a copy in float64 on the CPU, in evaluation mode, with random positive tensors."""
    trial = copy.deepcopy(module).to("cpu", torch.float64).eval()
    for tensor in trial.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return trial


def _is_linear(layer: nn.Module, shape: tuple[int, ...], dim: int) -> bool:
    """Return whether a layer between two random linear maps gives what the folded layer gives."""
    groups = int(getattr(layer, "groups", 1))
    wide: Tensor = layer(torch.randn(shape, dtype=torch.float64))
    inputs, outputs = shape[dim], wide.shape[dim]
    reduce = torch.randn(groups, outputs // groups, dtype=torch.float64)
    expand = torch.randn(inputs, 1, dtype=torch.float64)
    x = torch.randn(*shape[:dim], groups, *shape[dim + 1 :], dtype=torch.float64)
    blocks = x.movedim(dim, -1).repeat_interleave(inputs // groups, -1)
    z = layer((blocks * expand[:, 0]).movedim(-1, dim))
    z = (z.movedim(dim, -1).unflatten(-1, (groups, -1)) * reduce).sum(-1).movedim(-1, dim)
    weight, bias = layer.weight, getattr(layer, "bias", None)
    assert isinstance(weight, Tensor)
    behind, before = [(outputs, 1, reduce)], [(inputs, 1, expand)]
    narrow = copy.deepcopy(layer)
    set_linear_width(
        narrow,
        fold_weight(layer, weight, behind, before),
        fold_bias(layer, bias, behind) if isinstance(bias, Tensor) else None,
    )
    return _close(narrow(x), z)


def _is_channelwise(
    module: nn.Module, shape: tuple[int, ...], dim: int, axis: int | None, blocks: int
) -> bool:
    """Return whether channels reordered in their blocks come out so, and fewer channels as fewer.

    Args:
        module: The module.
        shape: Of its input.
        dim: The channel dimension.
        axis: The dimension of its tensors that has one entry a channel; None: no such tensors.
        blocks: What the number of channels must be divisible by.
    """
    width = shape[dim]
    order = torch.cat([block[torch.randperm(len(block))] for block in _blocks(width, blocks)])
    x = torch.randn(shape, dtype=torch.float64)
    y: Tensor = module(x.clone())
    other = narrow_channelwise(module, axis, 1, width, order)
    if not _close(other(x.index_select(dim, order)), y.index_select(dim, order)):
        return False
    some = torch.cat([block[: (len(block) + 1) // 2] for block in _blocks(width, blocks)])
    narrow = narrow_channelwise(module, axis, 1, width, some)(x.index_select(dim, some))
    return bool(narrow.shape == y.index_select(dim, some).shape)


def _blocks(width: int, blocks: int) -> tuple[Tensor, ...]:
    """Return the channels of each of some equal blocks, from each of which as many are kept."""
    return torch.arange(width).chunk(blocks)


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, TOLERANCE, TOLERANCE)
