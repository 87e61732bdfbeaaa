"""The collapse: every branch at α = 0 is folded into its neighbours, and the result is checked."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

from torch import Tensor, nn

from branchprune.blending.blended import Blended
from branchprune.blending.float64 import exact as exact_tensor
from branchprune.blending.float64 import sharing_copy, widen
from branchprune.blending.path_norms import norms_behind
from branchprune.blending.projections import Expand, LinearEnd, Reduce
from branchprune.collapsing.collapse_check import called_modules, folds, verify
from branchprune.collapsing.own_dtype import check_own_dtype
from branchprune.errors import PruneError
from branchprune.graph.exclusive import one_at_a_time
from branchprune.graph.folding import Fold, flush_subnormals, fold_bias, fold_weight
from branchprune.graph.full_shapes import remember_full_shapes
from branchprune.graph.inputs import set_modes
from branchprune.graph.layers import become, put_parameters, set_linear_width, set_path
from branchprune.graph.saved_numbers import remember_followed
from branchprune.graph.structure import LinearLayer, Pieces, Structure
from branchprune.graph.width_attributes import (
    followed_attributes,
    listed,
    set_attributes,
    width_attributes,
)
from branchprune.planning.trial import try_widths

LOGGER = logging.getLogger("branchprune")


def collapse(blended: Blended) -> nn.Module:
    """Fold every branch into the layers around it.

    Groups at α = 0 become narrow, groups at α = 1 stay as they were, so parts of a model can be
    collapsed one after another. The folds are computed in float64, and the result is compared
    with the blended model in float64, layer by layer on the plan's example, and once more in
    the dtype in which it is returned.

    Args:
        blended: The trained model, every α at 0 or 1 and at least one at 0; it is not changed.

    Returns:
        A model of the user's own class with the same `state_dict` keys and smaller layers.

    Raises:
        PruneError: An α is neither 0 nor 1, the optimizer trained another model, or the
            collapsed model does not compute what the blended one does (the layer is named), or
            its numbers do not fit into its dtype.
    """
    small, _ = collapse_with_error(blended)
    return small


@one_at_a_time
def collapse_with_error(blended: Blended) -> tuple[nn.Module, float]:
    """Collapse, and return the small model with its relative error in float64; see `collapse`."""
    if not isinstance(blended, Blended):
        raise PruneError(f"blended (a {type(blended).__name__}) must be made by bp.attach")
    _check_alphas(blended)
    _check_trained(blended)
    exact = _in_float64(blended)
    small = _fold(exact)
    _update_attributes(blended, small)
    error, outputs = verify(exact, small)
    del exact  # its float64 copies go one by one as the small model's are cast back
    small = _like(small, blended)
    check_own_dtype(blended, small, outputs)
    remember_full_shapes(small, blended.model)
    return small, error


def _check_alphas(blended: Blended) -> None:
    """Raise unless each α is 0 or 1, one is 0, and groups that share a norm or parameter agree."""
    for name, alpha in blended.alpha.items():
        if alpha not in (0.0, 1.0):
            raise PruneError(f"alpha of {name} is {alpha}: set blended.alpha = 0 before collapse")
    if all(blended.alpha.values()):
        raise PruneError("every alpha is 1: set blended.alpha = 0 before collapse")
    zero = {i for i, a in zip(blended.plan.pruned, blended._alpha, strict=True) if a == 0}
    for name, pieces in _meetings(blended.plan.structure):
        pruned = {p.group for p in pieces} & set(blended.plan.pruned)
        if pruned & zero and pruned - zero:
            names = ", ".join(blended.plan.groups[i].name for i in sorted(pruned))
            raise PruneError(f"groups {names} meet in {name}: bring all to alpha = 0")


def _meetings(structure: Structure) -> Iterator[tuple[str, Pieces]]:
    """Yield where several groups have one twin, and the channels of all of them."""
    for layer in structure.channelwise.values():
        yield layer.name, layer.pieces
    for twin in structure.twins.values():
        yield twin.name, twin.pieces
    for parameter in structure.parameters.values():
        yield parameter.name, parameter.pieces
    for found in structure.contractions.values():
        for name, contraction in found.items():
            yield name, contraction.pieces + contraction.outputs


def _check_trained(blended: Blended) -> None:
    """Raise, or warn, if there are gradients and yet no parameter has ever been updated."""
    trained = any(parameter.grad is not None for parameter in blended.parameters())
    start = blended.at_attach
    if start is None or not trained or not start.matches(blended):
        return
    found = "gradients were computed but no parameter has changed since attach"
    if start.optimizer_stepped():
        raise PruneError(
            f"{found}: the optimizer was built before it, from the parameters of another model"
        )
    warnings.warn(f"{found}, and no optimizer has made a step", stacklevel=4)


def _in_float64(blended: Blended) -> Blended:
    """Return a copy on the CPU in float64 and evaluation mode, without gradients.

    The parameters of modules that are called, which are most of a model, stay as they are and
    become float64 when they are used.
    """
    exact_copy = sharing_copy(blended)
    widen(exact_copy, but=called_modules(exact_copy, exact_copy.model))
    return exact_copy.eval()


def _fold(exact: Blended) -> nn.Module:
    """Return the small model: weights folded, norms and parameters those of the twin."""
    # What is not folded is shared: folding replaces tensors and writes into none.
    small = sharing_copy(exact.model)
    structure = exact.plan.structure
    for layer in structure.linears.values():
        _fold_layer(exact, small, layer)
    for other in structure.channelwise.values():
        if folds(exact, other.pieces):
            twin = copy.deepcopy(exact.twin.get_submodule(other.name))
            if other.name in structure.inplace:
                twin.inplace = True  # type: ignore[assignment]
            become(small.get_submodule(other.name), twin)
    for layer_name in exact.path_mixing.apart:
        _take_private_norms(exact, small, structure.linears[layer_name])
    for parameter in structure.parameters.values():
        if folds(exact, parameter.pieces):
            set_path(small, parameter.name, attrgetter(parameter.name)(exact.twin))
    for layer_with_twin in structure.twins.values():
        if folds(exact, layer_with_twin.pieces):
            twin = copy.deepcopy(exact.twin.get_submodule(layer_with_twin.name))
            become(small.get_submodule(layer_with_twin.name), twin)
    return small


def _take_private_norms(exact: Blended, small: nn.Module, layer: LinearLayer) -> None:
    """Let the norms behind a layer be those of the path that it reads, where only one is left."""
    narrow = folds(exact, layer.outputs)
    if folds(exact, layer.inputs) != narrow:
        for name in norms_behind(exact.plan.structure, layer.name):
            path = f"{'twin' if narrow else 'model'}.{name}"
            if path in dict(exact.private.named_modules()):
                become(small.get_submodule(name), copy.deepcopy(exact.private.get_submodule(path)))


def _update_attributes(blended: Blended, small: nn.Module) -> None:
    """Let the numbers that users' modules keep of widths follow; warn of those that cannot."""
    plan, model = blended.plan, blended.model
    zero = {i for i, a in zip(plan.pruned, blended._alpha, strict=True) if a == 0}
    kept = [g.kept if i in zero else g.width for i, g in enumerate(plan.groups)]
    read = followed_attributes(model, plan.structure, kept)
    attributes = width_attributes(model, plan.structure, kept)
    if attributes:
        try:
            attributes = try_widths(model, plan.structure, kept, plan.example, plan.whole)
        except PruneError:  # it was converted since, or the check that follows says what is wrong
            attributes = tuple(replace(attribute, after=None) for attribute in attributes)
    attributes = (*read, *(attribute for attribute in attributes if attribute not in read))
    remember_followed(small, read)
    set_attributes(small, [a for a in attributes if a.after is not None], after=True)
    if stale := listed([a for a in attributes if a.after is None]):
        LOGGER.warning("attributes of the collapsed model that name a width of before: %s", stale)


def _fold_layer(exact: Blended, small: nn.Module, layer: LinearLayer) -> None:
    """Fold the linear ends behind and before a layer into its weight and bias in `small`."""
    module = small.get_submodule(layer.name)
    reduce = expand = None
    if folds(exact, layer.outputs):
        reduce = _endfolds(exact, Reduce, exact.reduce.get_submodule(layer.name))
    if folds(exact, layer.inputs):
        expand = _endfolds(exact, Expand, exact.expand.get_submodule(layer.expand))
    if reduce is None and expand is None:
        return
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    new_bias = exact_tensor(bias) if isinstance(bias, Tensor) else None
    if reduce is not None and new_bias is not None:
        new_bias = fold_bias(module, new_bias, reduce)
    set_linear_width(module, fold_weight(module, exact_tensor(weight), reduce, expand), new_bias)


def _endfolds(exact: Blended, kind: type[LinearEnd], end: nn.Module) -> list[Fold]:
    """Return the matrices of a linear end, without those of groups that stay at α = 1."""
    assert isinstance(end, kind)
    folds: list[Fold] = []
    for piece, matrix in end.each():
        if matrix is not None and piece.branch is not None and exact._alpha[piece.branch] == 0:
            matrix = exact_tensor(matrix)
        else:
            matrix = None
        folds.append((piece.wide, piece.repeat, matrix))
    return folds


def _like(small: nn.Module, blended: Blended) -> nn.Module:
    """Give every tensor of the collapsed model the dtype, device and flags of the blended one."""
    seen: dict[Tensor, nn.Parameter] = {}
    modes: dict[nn.Module, bool] = {}
    for name, module in small.named_modules():
        original = blended.model.get_submodule(name)
        modes[module] = original.training
        for key, buffer in module._buffers.items():
            old = dict(original._buffers).get(key)
            if buffer is not None and old is not None:
                module._buffers[key] = buffer.to(old.device, old.dtype)
        for key, parameter in module._parameters.items():
            old = dict(original._parameters).get(key)
            if parameter is not None and old is not None:
                new = nn.Parameter(_cast(f"{name}.{key}", parameter, old), old.requires_grad)
                put_parameters(module, {key: seen.setdefault(parameter, new)})
    set_modes(modes)
    return small


def _cast(name: str, exact: Tensor, like: Tensor) -> Tensor:
    """Return an exact weight in the dtype and on the device of another."""
    value = exact.detach().to(like.device, like.dtype)
    if value.is_floating_point() and bool((~value.isfinite()).sum() > (~exact.isfinite()).sum()):
        raise PruneError(
            f"{name} of the collapsed model reaches {float(exact.abs().max()):.1e}, which "
            f"{str(like.dtype).removeprefix('torch.')} cannot hold: collapse blended.float() (or "
            ".bfloat16()) instead"
        )
    return flush_subnormals(value)
