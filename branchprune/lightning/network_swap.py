"""Putting a blended model into a LightningModule in place of the network, and a small one back."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from branchprune.blending.blended import Blended
from branchprune.errors import PruneError
from branchprune.graph.layers import CONVOLUTIONS, TRANSPOSED

PRUNABLE = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


class NetworkSwap:
    """The place of the network in a LightningModule.

    Args:
        module: The LightningModule.
        target: Path of the network in it; "" for the module's own `forward`; None: the only
            child that has layers to prune, or the module's own `forward` if there are several.

    Raises:
        PruneError: The module has no such attribute.
    """

    def __init__(self, module: nn.Module, target: str | None = None) -> None:
        self.module = module
        self.target = _find(module) if target is None else target
        if self.target:
            try:
                module.get_submodule(self.target)
            except AttributeError:
                raise PruneError(
                    f"target (={self.target!r}) is no module of {type(module).__name__}"
                ) from None

    @property
    def network(self) -> nn.Module:
        """The network as a module of its own."""
        return self.module.get_submodule(self.target) if self.target else _shell(self.module)

    def insert(self, blended: Blended) -> None:
        """Put the blended model in place of the network.

        Where the network is the module's own `forward`, parameters and buffers of the module
        itself are from then on those of `blended.model`: both hold them, as one.
        """
        if self.target:
            self._set(blended)
            return
        _share_tensors(self.module, blended.model)
        for name in _children(blended):
            delattr(self.module, name)
        self.module.add_module("blended", blended)
        vars(self.module)["forward"] = blended

    def restore(self, small: nn.Module) -> None:
        """Put the collapsed network in place of the blended one."""
        place = self.target or "blended"
        refuse = partial(_refuse_blended, type(self.module).__name__, place)
        self.module.register_load_state_dict_pre_hook(refuse)
        if self.target:
            self._set(small)
            return
        blended = self.module.get_submodule("blended")
        assert isinstance(blended, Blended)
        del vars(self.module)["forward"]
        del self.module.blended
        for name in _children(blended):
            self.module.add_module(name, getattr(small, name))
        _share_tensors(self.module, small)

    def _set(self, network: nn.Module) -> None:
        parent, _, name = self.target.rpartition(".")
        setattr(self.module.get_submodule(parent), name, network)


def _refuse_blended(
    owner: str, place: str, module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any
) -> None:
    """Raise a PruneError for a state of the time before the collapse."""
    alphas = state.get(f"{prefix}{place}.alphas")
    blended = any(path == place and isinstance(m, Blended) for path, m in module.named_modules())
    if alphas is not None and not blended:
        levels = ", ".join(f"{level:.4g}" for level in sorted(set(alphas.tolist())))
        raise PruneError(
            f"the checkpoint holds {owner} with a blended network in `{place}` (alpha {levels}), "
            "which is collapsed now: test what was collapsed, with ckpt_path=None, or make a small "
            "model of it by BranchPruning.load_collapsed(path, model)"
        )


def _find(module: nn.Module) -> str:
    with_layers = [
        name
        for name, child in module.named_children()
        if any(isinstance(m, PRUNABLE) for m in child.modules())
    ]
    alone = len(with_layers) == 1 and not isinstance(getattr(module, with_layers[0]), PRUNABLE)
    return with_layers[0] if alone else ""


def _shell(module: nn.Module) -> nn.Module:
    """Return a shallow copy that shares the layers and knows no trainer."""
    shell = copy.copy(module)
    shell._modules = dict(module._modules)
    for name in ("_trainer", "_fabric"):
        if hasattr(shell, name):
            shell.__dict__[name] = None
    shell.__dict__.pop("log", None)
    shell._load_state_dict_pre_hooks = OrderedDict()  # which know the module by a weak reference
    return shell


def _share_tensors(module: nn.Module, network: nn.Module) -> None:
    """Let a module hold the parameters and buffers that a network of its class holds itself.

    The dictionaries are shared, not the tensors alone: moved to a device, a buffer is a new one.
    """
    for store in ("_parameters", "_buffers"):
        vars(module)[store] = vars(network)[store]


def _children(blended: Blended) -> list[str]:
    """Return the top-level modules that the network's forward uses.

    With `inside` those are all with weights or statistics: losses and metrics stay in the module.
    """
    if blended.plan.structure.inside:
        return [
            name for name, m in blended.model._modules.items() if m is not None and m.state_dict()
        ]
    used: dict[str, None] = {}
    for graph in blended.plan.structure.graphs.values():
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr"):
                used[str(node.target).split(".")[0]] = None
    return [name for name in used if name in blended.model._modules]
