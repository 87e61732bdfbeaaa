"""Layers whose twin is a layer of the same class at other widths, with weights of its own.

No linear end can be folded into a layer that does something between its inputs and outputs beside
a sum: a recurrent one, attention, or a convolution that standardises its weight.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from branchprune.graph.attention_layers import narrow_attention
from branchprune.graph.layers import linear_sizes, own_tensors, set_tensor


def narrow_layer(module: nn.Module, inputs: Tensor | None, outputs: Tensor) -> nn.Module:
    """Return a copy of a layer that is restricted to some of its channels.

    Args:
        module: An LSTM, GRU or RNN, a MultiheadAttention, or a convolution or fully connected
            layer of a user's class.
        inputs: The input channels to keep, in order; None: all.
        outputs: The output channels to keep, in order.
    """
    narrow = copy.deepcopy(module)
    if isinstance(narrow, nn.RNNBase):
        _narrow_recurrent(narrow, inputs, outputs)
    elif isinstance(narrow, nn.MultiheadAttention):
        narrow_attention(narrow, inputs, outputs)
    else:
        _narrow_linear(narrow, inputs, outputs)
    return narrow


def _narrow_recurrent(layer: nn.RNNBase, inputs: Tensor | None, outputs: Tensor) -> None:
    """Restrict a recurrent layer; both directions keep the same channels of the hidden state."""
    width, directions = layer.hidden_size, 2 if layer.bidirectional else 1
    hidden = outputs[: len(outputs) // directions]
    both = torch.cat([hidden + width * i for i in range(directions)])
    for name, weight in [*layer.named_parameters(recurse=False)]:
        gates = torch.arange(len(weight) // width)[:, None] * width
        rows = weight.detach().index_select(0, (gates + hidden).flatten().to(weight.device))
        read = {"weight_ih": both, "weight_hh": hidden}.get(name[:9])
        if name.startswith("weight_ih_l0"):
            read = inputs
        set_tensor(
            layer, name, rows if read is None else rows.index_select(1, read.to(rows.device))
        )
    layer.hidden_size = len(hidden)
    layer.input_size = layer.input_size if inputs is None else len(inputs)


def _narrow_linear(layer: nn.Module, inputs: Tensor | None, outputs: Tensor) -> None:
    """Restrict a layer with one weight, and what else it has with one entry an output channel."""
    weight, groups = layer.weight, int(getattr(layer, "groups", 1))
    assert isinstance(weight, Tensor)
    width = len(weight)
    for name, tensor in own_tensors(layer).items():
        if tensor.dim() and len(tensor) == width:
            rows = tensor.detach().index_select(0, outputs.to(tensor.device))
            if name == "weight" and inputs is not None:
                rows = _columns(rows, inputs.to(rows.device), groups)
            set_tensor(layer, name, rows)
    assert isinstance(layer.weight, Tensor)
    for name, size in linear_sizes(layer, layer.weight, groups).items():
        setattr(layer, name, size)


def _columns(rows: Tensor, inputs: Tensor, groups: int) -> Tensor:
    """Return those columns of a weight that read some inputs; each group reads its own."""
    blocks = zip(rows.chunk(groups), inputs.chunk(groups), strict=True)
    width = rows.shape[1]
    return torch.cat([block.index_select(1, read % width) for block, read in blocks])
