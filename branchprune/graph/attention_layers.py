"""The narrow form of `nn.MultiheadAttention`: as many heads, each of fewer channels."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from branchprune.graph.layers import linear_sizes, set_tensor


def narrow_attention(layer: nn.MultiheadAttention, inputs: Tensor | None, outputs: Tensor) -> None:
    """Restrict an attention to some channels of what it reads and makes.

    Inside, each head keeps those channels of query and key, and of the values, that weigh most.
    Torch divides scores by the square root of how many a head has; the query makes up for that.

    Args:
        layer: The attention; it is changed.
        inputs: The channels of the query, and of key and value where these are as wide, to keep,
            in order; None: all.
        outputs: The output channels to keep, in order; a multiple of the number of heads.
    """
    width, narrow, heads = layer.embed_dim, len(outputs), layer.num_heads
    if narrow == width and inputs is None:
        return
    query, key, value = (_norms(weight, 1) for weight in in_weights(layer).values())
    made = layer.out_proj.weight.detach()
    matched = _heaviest(query * key, heads, narrow // heads)
    handed_on = _heaviest(value * _norms(made, 0), heads, narrow // heads)
    _narrow_in(layer, (matched, matched, handed_on), inputs, sqrt(narrow / width))
    for name, kept in (("bias_k", matched), ("bias_v", handed_on)):
        if getattr(layer, name) is not None:
            set_tensor(layer, name, getattr(layer, name).detach().index_select(2, kept))
    _narrow_out(layer.out_proj, handed_on, outputs.to(made.device))
    layer.embed_dim, layer.head_dim = narrow, narrow // heads
    if layer._qkv_same_embed_dim:
        layer.kdim = layer.vdim = narrow


def in_weights(layer: nn.MultiheadAttention) -> dict[str, Tensor]:
    """Return the weights, (channels inside, channels read), by which query, key and value go in.

    Where they are one parameter these are parts of it, by the letters q, k and v.
    """
    if layer._qkv_same_embed_dim:
        return dict(zip("qkv", layer.in_proj_weight.detach().chunk(3), strict=True))
    names = [f"{letter}_proj_weight" for letter in "qkv"]
    return {name: getattr(layer, name).detach() for name in names}


def _norms(weight: Tensor, dim: int) -> Tensor:
    norms: Tensor = weight.detach().float().norm(dim=dim)
    return norms


def _heaviest(weights: Tensor, heads: int, count: int) -> Tensor:
    """Return the channels that weigh most, as many of each head, in order."""
    each = weights.unflatten(0, (heads, -1))
    first = torch.arange(heads, device=each.device)[:, None] * each.shape[1]
    kept: Tensor = each.topk(count).indices.sort().values + first
    return kept.flatten()


def _narrow_in(
    layer: nn.MultiheadAttention, rows: Sequence[Tensor], inputs: Tensor | None, scale: float
) -> None:
    """Restrict the weights and the bias by which query, key and value go in.

    Args:
        layer: The attention.
        rows: The channels inside to keep, of query, key and value.
        inputs: The channels that are read to keep; None: all.
        scale: What the query is multiplied by.
    """
    scales = (scale, 1.0, 1.0)
    packed, narrow = layer._qkv_same_embed_dim, {}
    for (name, weight), kept, by in zip(in_weights(layer).items(), rows, scales, strict=True):
        narrow[name] = weight.index_select(0, kept) * by
        if inputs is not None and (packed or name.startswith("q")):
            narrow[name] = narrow[name].index_select(1, inputs.to(weight.device))
    if packed:
        narrow = {"in_proj_weight": torch.cat([*narrow.values()])}
    for name, weight in narrow.items():
        set_tensor(layer, name, weight)
    if layer.in_proj_bias is not None:
        parts = zip(layer.in_proj_bias.detach().chunk(3), rows, scales, strict=True)
        bias = torch.cat([part.index_select(0, kept) * by for part, kept, by in parts])
        set_tensor(layer, "in_proj_bias", bias)


def _narrow_out(layer: nn.Linear, inputs: Tensor, outputs: Tensor) -> None:
    """Restrict the layer behind the heads."""
    weight = layer.weight.detach().index_select(0, outputs).index_select(1, inputs)
    set_tensor(layer, "weight", weight)
    if layer.bias is not None:
        set_tensor(layer, "bias", layer.bias.detach().index_select(0, outputs))
    for name, size in linear_sizes(layer, weight, 1).items():
        setattr(layer, name, size)
