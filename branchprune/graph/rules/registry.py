"""Which rule applies to which module, function or method; what has none is tried out.

Libraries that need not be installed are named by the path of the function or class.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from branchprune.graph.layers import CONVOLUTIONS, TRANSPOSED, has_own_forward
from branchprune.graph.rules import contract, elementwise, join, norm, regroup, shape, split
from branchprune.graph.rules.factories import factory
from branchprune.graph.rules.functional import functional
from branchprune.graph.rules.linear import linear
from branchprune.graph.rules.multihead import multihead
from branchprune.graph.rules.recurrent import recurrent
from branchprune.graph.rules.teach import TAUGHT, TAUGHT_CLASSES, TAUGHT_METHODS
from branchprune.graph.state import Rule

MODULE_RULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys((*CONVOLUTIONS, *TRANSPOSED, nn.Linear), linear),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), norm.norm),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), norm.norm),
    nn.GroupNorm: norm.group_norm,
    nn.LayerNorm: norm.layer_norm,
    nn.RMSNorm: norm.layer_norm,
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), recurrent),
    nn.MultiheadAttention: multihead,
    nn.PReLU: norm.prelu,
    nn.Flatten: regroup.reshape,
    nn.Unflatten: regroup.unflatten,
    nn.GLU: split.halve,
    nn.PixelShuffle: regroup.pixel_shuffle,
    nn.PixelUnshuffle: regroup.pixel_shuffle,
    nn.ChannelShuffle: regroup.channel_shuffle,
    **dict.fromkeys(
        (
            *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
            *(nn.AlphaDropout, nn.FeatureAlphaDropout, nn.LocalResponseNorm),
            *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU),
            *(nn.SiLU, nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish),
            *(nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink),
            *(nn.Tanhshrink, nn.Threshold),
            *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
            *(nn.LPPool1d, nn.LPPool2d, nn.LPPool3d),
            *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
            *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
            *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
        ),
        elementwise.same,
    ),
    **dict.fromkeys(
        (
            *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
            *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
            *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
            *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
            *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
        ),
        elementwise.pad,
    ),
}

_POOL_FUNCTIONS = (
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
    *(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, torch.adaptive_avg_pool1d),
    *(torch.avg_pool1d, torch.adaptive_max_pool1d),
)

FUNCTION_RULES: dict[Callable[..., Any] | str, Rule] = {
    **dict.fromkeys(
        (
            *(F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish),
            *(F.sigmoid, F.logsigmoid, F.tanh, F.hardtanh, F.hardswish, F.hardsigmoid),
            *(F.softplus, F.softsign, F.softshrink, F.hardshrink, F.tanhshrink, F.threshold),
            *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.interpolate),
            *(F.feature_alpha_dropout, F.local_response_norm, F.rrelu, torch.rrelu),
            *(torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.abs, torch.sqrt),
            *(torch.clamp, torch.square, torch.neg, operator.neg, torch.clone, torch.detach),
            *(torch.sin, torch.cos, torch.log, torch.log1p, torch.erf, torch.selu),
            *(torch.rsqrt, torch.reciprocal, torch.nan_to_num, torch.dropout),
            *("torchvision.ops.stochastic_depth.stochastic_depth", "timm.layers.drop.drop_path"),
            *_POOL_FUNCTIONS,
        ),
        elementwise.same,
    ),
    **dict.fromkeys(
        (
            *(operator.add, operator.sub, operator.mul, operator.truediv, operator.pow),
            *(torch.add, torch.sub, torch.mul, torch.div, torch.pow, torch.maximum, torch.minimum),
            *(torch.where, torch.lerp, torch.addcmul, torch.masked_fill, operator.iadd),
            *(operator.imul, operator.isub, torch.true_divide, torch.addcdiv),
            *(operator.gt, operator.lt, operator.ge, operator.le, operator.eq, operator.ne),
            *(torch.gt, torch.lt, torch.ge, torch.le, torch.eq, torch.ne),
        ),
        elementwise.elementwise,
    ),
    F.pad: elementwise.pad,
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), join.concatenate),
    **dict.fromkeys((F.batch_norm, F.instance_norm), norm.batch_norm),
    **dict.fromkeys((F.group_norm, torch.group_norm), norm.functional_group_norm),
    **dict.fromkeys((F.layer_norm, F.rms_norm, torch.layer_norm), norm.functional_layer_norm),
    torch.rms_norm: norm.functional_layer_norm,
    **dict.fromkeys(
        (
            *(torch.zeros, torch.ones, torch.full, torch.empty, torch.rand, torch.randn),
            torch.randint,
        ),
        factory,
    ),
    **dict.fromkeys(
        (
            *(torch.rand_like, torch.randn_like, torch.randint_like, torch.empty_like),
            *(torch.bernoulli, torch.poisson),
        ),
        elementwise.elementwise,
    ),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.unflatten), regroup.reshape),
    **dict.fromkeys((torch.chunk, torch.split, torch.tensor_split), split.divide),
    torch.unbind: split.unbind,
    torch.narrow: split.narrow,
    F.glu: split.halve,
    **dict.fromkeys((F.pixel_shuffle, F.pixel_unshuffle), regroup.pixel_shuffle),
    **dict.fromkeys((torch.channel_shuffle, F.channel_shuffle), regroup.channel_shuffle),
    **dict.fromkeys((torch.matmul, operator.matmul, torch.bmm, torch.mm), contract.matmul),
    torch.einsum: contract.einsum,
    **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d), functional),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), functional),
    F.scaled_dot_product_attention: contract.attention,
    torch.stack: join.stack,
    torch.permute: shape.permute,
    **dict.fromkeys((torch.transpose, torch.swapaxes, torch.swapdims), shape.transpose),
    torch.flip: shape.flip,
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin), shape.reduce_dims),
    torch.unsqueeze: shape.unsqueeze,
    torch.squeeze: shape.squeeze,
    operator.getitem: shape.getitem,
    getattr: shape.size_of,
    "branchprune.graph.tracing.aliases.written": elementwise.written,
    "branchprune.graph.tracing.aliases.replaced": elementwise.elementwise,
}

METHOD_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        "relu sigmoid tanh exp abs sqrt clamp square neg clone contiguous detach sin cos rsqrt log "
        "log1p erf reciprocal nan_to_num".split(),
        elementwise.same,
    ),
    **dict.fromkeys("to float half double bfloat16 type_as cuda cpu".split(), elementwise.cast),
    **dict.fromkeys(
        "add sub mul div pow expand_as where lerp addcmul masked_fill true_divide gt lt ge le "
        "eq ne".split(),
        elementwise.elementwise,
    ),
    **dict.fromkeys("new_zeros new_ones new_full new_empty".split(), factory),
    **dict.fromkeys(
        "bernoulli normal_ uniform_ random_ exponential_ geometric_ log_normal_ cauchy_".split(),
        elementwise.elementwise,
    ),
    **dict.fromkeys("view reshape flatten unflatten".split(), regroup.reshape),
    **dict.fromkeys("chunk split tensor_split".split(), split.divide),
    "unbind": split.unbind,
    "narrow": split.narrow,
    "expand": shape.expand,
    **dict.fromkeys("view_as reshape_as".split(), regroup.reshape_as),
    "permute": shape.permute,
    **dict.fromkeys("transpose swapaxes swapdims".split(), shape.transpose),
    "flip": shape.flip,
    "repeat": shape.repeat,
    **dict.fromkeys("mean sum amax amin".split(), shape.reduce_dims),
    **dict.fromkeys("matmul bmm mm".split(), contract.matmul),
    "unsqueeze": shape.unsqueeze,
    "squeeze": shape.squeeze,
    **dict.fromkeys("size dim numel".split(), shape.size_of),
}

_CHECKED = (linear, norm.norm, norm.group_norm, norm.layer_norm, norm.prelu)


def rule_of(node: fx.Node, module: nn.Module | None) -> Rule | None:
    """Return the rule of a node; `module` is what it calls, if it calls one."""
    if module is not None:
        return module_rule(module)
    target = node.target
    if node.op == "call_method":
        return TAUGHT_METHODS.get(str(target)) or METHOD_RULES.get(str(target))
    if node.op != "call_function" or not callable(target):
        return None
    path = f"{target.__module__}.{getattr(target, '__qualname__', '')}"
    known_as = getattr(target, "autograd_function", target)
    taught = TAUGHT.get(known_as) or TAUGHT_METHODS.get(_method_of(target))
    return taught or FUNCTION_RULES.get(target) or FUNCTION_RULES.get(path)


def _method_of(target: Callable[..., Any]) -> str:
    """Return the method of tensors that an operator stands for; "" for what is no operator."""
    if target.__module__ != "_operator":
        return ""
    name = target.__name__.strip("_")
    name = {"truediv": "div", "mod": "remainder"}.get(name, name)
    return name if hasattr(torch.Tensor, name) else f"__{name}__"


def _known_class(module: nn.Module) -> type[nn.Module] | None:
    kinds = type(module).__mro__
    return next((kind for kind in kinds if kind in TAUGHT_CLASSES or kind in MODULE_RULES), None)


def module_rule(module: nn.Module) -> Rule | None:
    """Return the rule of a module's class, or of the nearest class that it is made from."""
    kind = _known_class(module)
    return None if kind is None else TAUGHT_CLASSES.get(kind) or MODULE_RULES[kind]


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is known as a whole and is not looked into.

    That is what users have taught, and convolutions, norms and fully connected layers, even if a
    class replaces their forward.
    """
    return _is_taught(module) or to_be_checked(module)


def _is_taught(module: nn.Module) -> bool:
    return _known_class(module) in TAUGHT_CLASSES


def to_be_checked(module: nn.Module) -> bool:
    """Return whether a module may not be what its rule takes it for.

    That is so where a user has said it, and where a known layer has a forward of a user's.
    """
    rule = module_rule(module)
    if _is_taught(module):
        return rule in (elementwise.same, norm.channelwise, *_CHECKED)
    return has_own_forward(module) and rule in _CHECKED
