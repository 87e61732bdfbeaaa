"""Which rule applies to which module, function or method: the place to teach an operation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from branchprune import rules, shape_rules
from branchprune.rules import CONVOLUTIONS, TRANSPOSED, Rule

MODULE_RULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys((*CONVOLUTIONS, *TRANSPOSED, nn.Linear), rules.linear),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), rules.norm),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), rules.norm),
    nn.GroupNorm: rules.group_norm,
    nn.LayerNorm: rules.layer_norm,
    nn.RMSNorm: rules.layer_norm,
    nn.PReLU: rules.prelu,
    nn.Flatten: shape_rules.reshape,
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
        rules.same,
    ),
    **dict.fromkeys(
        (
            *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
            *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
            *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
            *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
            *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
        ),
        rules.pad,
    ),
}

_POOL_FUNCTIONS = (
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
    *(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, torch.adaptive_avg_pool1d),
    *(torch.avg_pool1d, torch.adaptive_max_pool1d),
)

FUNCTION_RULES: dict[Callable[..., Any], Rule] = {
    **dict.fromkeys(
        (
            *(F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish),
            *(F.sigmoid, F.logsigmoid, F.tanh, F.hardtanh, F.hardswish, F.hardsigmoid),
            *(F.softplus, F.softsign, F.softshrink, F.hardshrink, F.tanhshrink, F.threshold),
            *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.interpolate),
            *(F.feature_alpha_dropout, F.local_response_norm, F.instance_norm),
            *(torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.abs, torch.sqrt),
            *(torch.clamp, torch.square, torch.neg, torch.clone, operator.neg, torch.sin),
            *_POOL_FUNCTIONS,
        ),
        rules.same,
    ),
    **dict.fromkeys(
        (
            *(operator.add, operator.sub, operator.mul, operator.truediv, operator.pow),
            *(torch.add, torch.sub, torch.mul, torch.div, torch.pow, torch.maximum, torch.minimum),
        ),
        rules.elementwise,
    ),
    F.pad: rules.pad,
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), rules.concatenate),
    **dict.fromkeys((torch.flatten, torch.reshape), shape_rules.reshape),
    torch.permute: shape_rules.permute,
    torch.transpose: shape_rules.transpose,
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin), shape_rules.reduce_dims),
    torch.unsqueeze: shape_rules.unsqueeze,
    torch.squeeze: shape_rules.squeeze,
    operator.getitem: shape_rules.getitem,
    getattr: shape_rules.size_of,
}

METHOD_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        "relu sigmoid tanh exp abs sqrt clamp square neg clone contiguous detach sin".split(),
        rules.same,
    ),
    **dict.fromkeys("to float half double bfloat16 type_as cuda cpu".split(), rules.cast),
    **dict.fromkeys("add sub mul div pow expand_as".split(), rules.elementwise),
    **dict.fromkeys("view reshape flatten".split(), shape_rules.reshape),
    "permute": shape_rules.permute,
    "transpose": shape_rules.transpose,
    **dict.fromkeys("mean sum amax amin".split(), shape_rules.reduce_dims),
    "unsqueeze": shape_rules.unsqueeze,
    "squeeze": shape_rules.squeeze,
    **dict.fromkeys("size dim numel".split(), shape_rules.size_of),
}
