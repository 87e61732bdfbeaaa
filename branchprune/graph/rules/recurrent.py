"""Rule of the recurrent layers: LSTM, GRU, RNN."""

from __future__ import annotations

from torch import fx, nn

from branchprune.graph.channels import Channels, Known, Layout, Segment
from branchprune.graph.layer_records import Twin
from branchprune.graph.state import Analysis


def recurrent(analysis: Analysis, node: fx.Node) -> Known:
    """LSTM, GRU, RNN: the hidden state, one width in all its layers and directions, shrinks.

    What it returns is a pair, of the last layer's states and of what has to be given to go on.
    """
    module, operand = analysis.module(node), analysis.operand(node)
    if not isinstance(module, nn.RNNBase) or module.proj_size or not analysis.is_tensor(operand):
        return analysis.unknown(node, "it is given a packed sequence, or projects its state")
    source, rank = analysis.layout(operand), len(analysis.shape(operand))
    if source is not None and source.dim != rank - 1:
        analysis.unknown(node, "it acts on another dimension than the channels")
        source = None
    hidden = Channels(module.hidden_size)
    state = Layout(rank - 1, (Segment(hidden),))
    made = Layout(rank - 1, state.segments * (2 if module.bidirectional else 1))
    lasting = (state, state) if isinstance(module, nn.LSTM) else state
    layer = analysis.twin(node, Twin((made, lasting), made), source)
    if len(node.all_input_nodes) > 1:
        layer.made.freeze(f"{node.target} is given an initial state of its width")
    return layer.outputs
