"""Attaching the branches: linear ends and twins, started from chosen channels or at random."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter

import torch
from torch import Tensor, nn

from branchprune.blending.attach_check import check_collapse, check_outputs, tell_lost_checkpoints
from branchprune.blending.blended import Blended
from branchprune.blending.optimizer_watch import begin_training
from branchprune.blending.path_norms import add_private_norms
from branchprune.blending.path_sampling import Mixing, Norms, PathMixing
from branchprune.blending.projections import EndPiece, Expand, Reduce
from branchprune.criteria.activations import statistic_of
from branchprune.criteria.group_weights import group_weights
from branchprune.criteria.input_statistics import Reading, read
from branchprune.criteria.named import criterion_of
from branchprune.criteria.selection import Criterion, graded_for, scored, select
from branchprune.errors import PruneError
from branchprune.graph.exclusive import one_at_a_time
from branchprune.graph.folding import spanned
from branchprune.graph.inputs import Example, copied
from branchprune.graph.layers import describe, narrow_channelwise, set_path
from branchprune.graph.provenance import Origin, Own, index_of
from branchprune.graph.structure import (
    ChannelParameter,
    LinearLayer,
    Piece,
    Pieces,
    TwinLayer,
    size_of,
)
from branchprune.graph.twin_layers import narrow_layer
from branchprune.planning.plan import Plan

Init = str | Criterion


@one_at_a_time
def attach(
    model: nn.Module,
    plan: Plan,
    init: Init = "l1",
    *,
    batches: Iterable[Example] = (),
    mixing: Mixing = "sum",
    matching: float = 0.0,
    norms: Norms = "batch",
) -> Blended:
    """Give every group that is to shrink a narrow twin beside it, at α = 1.

    ```python
    blended = bp.attach(model, bp.plan(model, example, keep=0.5), init="l1")
    blended.alpha = 0.7
    ```

    Args:
        model: The model that was planned, or one of the same architecture; it is not changed.
        plan: The widths.
        init: How the branch starts. "random": random linear ends and fresh norms, as in the paper.
            Else from some of the channels. By weights: "l1", "l2", "linf": those of the largest
            norm; "l0": of the most weights that are not 0; "bn_scale": that norms scale up most;
            "geometric_median": that differ most from the others; "cosine": that repeat no other. By
            what layers read in `batches`: "apoz": those that are 0 least often; "entropy": whose
            means tell images apart; "hrank": whose maps have the largest rank; "reconstruction":
            from which a linear map could best reconstruct what is read of all. By the gradients in
            the model: "taylor": those that the loss needs most. What `fisher`, `obd` and
            `discrimination` make of losses or classes; or a function
            `scores(GroupWeights) -> Tensor` of shape (C,): those with the highest scores.
        batches: Inputs, each a tensor, or a tuple or dictionary of arguments, on which `init` sees
            what layers read (`GroupWeights.readings`).
        mixing: What training does where α is between 0 and 1. "sum": the weighted sum of both
            paths, as in the paper. The others draw, with torch's generator on the CPU (under DDP
            that of the first rank), either the wide path, with probability α, or the branch;
            evaluation computes the weighted sum, which is what they mix on average. "group": each
            group draws in each forward pass; both paths are computed. "step": all groups draw
            together, and only one path is computed, so the other has no gradient. "sample": each
            example, along dimension 0 of every tensor, and each group draw. Channels that stay
            beside others in a concatenation are mixed by the mean draw of those.
        matching: Weight of feature matching. While it trains with α between 0 and 1, the branch
            `B ũ` of every tensor `u` that a consumer reads is pulled towards it: the gradient of
            `matching · mean(‖B ũ − u‖² / ‖u‖²)`, where u is held fixed, is added in every
            backward pass, beside that of the loss. A GradScaler does not scale it, and a loss
            that is divided, as for accumulated gradients, does not divide it.
        norms: What training does, where α is between 0 and 1, with the norms of the original
            layers. One with the statistics of the batch, behind a layer `W` that reads the sum,
            undoes a small α. "batch": nothing is done about it, as in the paper. "kept": every
            BatchNorm of the original layers takes its running statistics, which stay as they are;
            those of the branch take the batch's. "private": where only norms follow `W` and it
            reads one group, each path has a norm of its own, mixed behind it:
            `α · BN(W u) + (1 − α) · BN'(W B ũ)`, in evaluation too; so it is in the branch, behind
            `reduce`. Such layers compute twice. BatchNorm, InstanceNorm and GroupNorm are such
            norms; other layers read the sum. At α = 0 only the branch's norm is left. Both need
            mixing "sum".

    Returns:
        A module whose output at α = 1 is the model's own. Build the optimizer after this call,
        from the parameters of the result.

    Raises:
        PruneError: The model is not the one that was planned, `init`, `mixing`, `matching` or
            `norms` is unknown, or the model does something that the blended or the collapsed one
            cannot repeat.
    """
    if not isinstance(plan, Plan):
        raise PruneError(f"plan (a {type(plan).__name__}) must be made by bp.plan")
    criterion = criterion_of(init)
    how = PathMixing(mixing, matching, norms)
    _check_same_model(model, plan)
    blended = Blended(copied(model), plan, how)
    _match(blended, model)
    blended._refresh()
    asked = statistic_of(criterion)
    readings = read(blended.model, plan.structure, plan.pruned, blended, batches, asked)
    graded = graded_for(criterion, model, "init")
    chosen = {i: _choose(blended, graded, i, criterion, readings[i]) for i in plan.pruned}
    _Builder(blended, chosen, random=init == "random").build()
    add_private_norms(blended, plan.structure, blended.path_mixing.apart)
    check_outputs(model, blended)
    check_collapse(blended)
    tell_lost_checkpoints(plan.structure)
    begin_training(blended, model)
    return blended


def _check_same_model(model: nn.Module, plan: Plan) -> None:
    for name, planned in plan.structure.modules.items():
        try:
            found = describe(model.get_submodule(name))
        except AttributeError:
            raise PruneError(f"the plan is of another model: layer {name} is missing") from None
        if found != planned:
            raise PruneError(
                f"the plan is of another model: layer {name} is {found}, planned was {planned}"
            )
    inside = plan.structure.inside
    for name, module in model.get_submodule(inside).named_modules(prefix=inside):
        if module._parameters and name not in plan.structure.modules:
            raise PruneError(f"the plan is of another model: it has no layer {name}")


def _choose(
    blended: Blended,
    graded: nn.Module,
    index: int,
    criterion: Criterion,
    readings: Sequence[Reading],
) -> Tensor:
    structure = blended.plan.structure
    group, planned = structure.groups[index], blended.plan.groups[index]
    weights = group_weights(blended.model, structure, index, graded, readings, planned.kept)
    return select(scored(criterion, weights, "init"), planned.kept, group.blocks, group.strata)


class _Builder:
    """Builds the linear ends and twins of a blended model from the chosen channels."""

    def __init__(self, blended: Blended, chosen: dict[int, Tensor], random: bool) -> None:
        self.blended, self.chosen, self.random = blended, chosen, random
        self.structure = blended.plan.structure
        self.branch = {group: i for i, group in enumerate(blended.plan.pruned)}

    def build(self) -> None:
        """Add every linear end and every twin."""
        for layer in self.structure.linears.values():
            if self._any_live(layer.outputs):
                ends = self._ends(layer.outputs, layer.groups)
                weights = self._weights(layer.outputs, ends, layer, expand=False)
                behind = Reduce(ends, layer.dim, weights)
                set_path(self.blended.reduce, layer.name, behind)
            if layer.expand == layer.name and self._any_live(layer.inputs or ()):
                pieces = layer.inputs or ()
                ends = self._ends(pieces, layer.groups)
                weights = self._weights(pieces, ends, layer, expand=True)
                before = Expand(ends, layer.dim, weights)
                set_path(self.blended.expand, layer.name, before)
        for other in self.structure.channelwise.values():
            if self._any_live(other.pieces):
                module = self.blended.model.get_submodule(other.name)
                index, width = self._known_index(other.pieces, other.origin), size_of(other.pieces)
                twin = narrow_channelwise(module, other.axis, other.times, width, index)
                if other.name in self.structure.inplace:
                    twin.inplace = False  # type: ignore[assignment]
                if self.random:
                    _reset(twin)
                set_path(self.blended.twin, other.name, twin)
        for parameter in self.structure.parameters.values():
            if self._any_live(parameter.pieces):
                self._add_parameter(parameter)
        for twin_layer in self.structure.twins.values():
            if self._any_live(twin_layer.pieces):
                self._add_twin(twin_layer)

    def _add_parameter(self, parameter: ChannelParameter) -> None:
        """Add the narrow form of a parameter or buffer that forward itself reads."""
        wide: Tensor = attrgetter(parameter.name)(self.blended.model)
        narrow = wide.detach()
        for axis, pieces in parameter.axes.items():
            narrow = narrow.index_select(axis, self._index(pieces, None).to(wide.device))
        if self.random and len(parameter.axes) > 1:
            nn.init.kaiming_uniform_(narrow, a=math.sqrt(5))
        if isinstance(wide, nn.Parameter):
            narrow = nn.Parameter(narrow, wide.requires_grad)
        set_path(self.blended.twin, parameter.name, narrow)

    def _add_twin(self, layer: TwinLayer) -> None:
        """Add the narrow form of a layer whose twin is one of its own."""
        inputs = self._known_index(layer.inputs, layer.origin) if layer.inputs else None
        module = self.blended.model.get_submodule(layer.name)
        twin = narrow_layer(module, inputs, self._index(layer.outputs, None))
        if self.random:
            _reset(twin)
        set_path(self.blended.twin, layer.name, twin)

    def _any_live(self, pieces: Pieces) -> bool:
        return any(piece.group in self.branch for piece in pieces)

    def _ends(self, pieces: Pieces, groups: int) -> list[EndPiece]:
        length = size_of(pieces) // groups
        return [
            EndPiece(
                p.width, self._kept(p), p.repeat, self.branch.get(p.group), spanned(p.size, length)
            )
            for p in pieces
        ]

    def _weights(
        self, pieces: Pieces, ends: Sequence[EndPiece], layer: LinearLayer, expand: bool
    ) -> list[Tensor]:
        """Return the matrices of a linear end: a selection (or its transpose), or random."""
        weights = []
        like = self.blended.model.get_submodule(layer.name).weight
        assert isinstance(like, Tensor)
        index = self._index(pieces, layer.origin if expand else None)
        start = kept = 0
        for piece, end in zip(pieces, ends, strict=True):
            size = end.kept
            chosen = index[kept : kept + size * piece.repeat : piece.repeat] - start
            start, kept = start + piece.size, kept + size * piece.repeat
            if piece.group not in self.branch:
                continue
            chosen = chosen.div(piece.repeat, rounding_mode="floor")
            known = ((chosen >= 0) & (chosen < piece.width)).nonzero()[:, 0]
            matrix = torch.zeros(size, piece.width)
            matrix[known, chosen[known]] = 1
            matrix = matrix.T if expand else matrix
            blocks = matrix.unflatten(0, (end.blocks, -1)).unflatten(2, (end.blocks, -1))
            diagonal = torch.stack([blocks[g, :, g] for g in range(end.blocks)]).flatten(0, 1)
            if self.random:
                nn.init.kaiming_uniform_(diagonal, a=math.sqrt(5))
            weights.append(diagonal.contiguous().to(like.device, like.dtype))
        return weights

    def _kept(self, piece: Piece) -> int:
        return self.blended.plan.groups[piece.group].kept

    def _index(self, pieces: Pieces, origin: Origin | None) -> Tensor:
        """Return which entry of a wide dimension each narrow entry stands for, -1 for none."""
        return index_of(origin or Own(pieces), self._own_index)[0]

    def _known_index(self, pieces: Pieces, origin: Origin | None) -> Tensor:
        """Return such an index in which those without one stand for what is at their place."""
        index = self._index(pieces, origin)
        return torch.where(index < 0, self._index(pieces, None), index)

    def _own_index(self, pieces: Pieces) -> tuple[Tensor, int]:
        parts, start = [], 0
        for piece in pieces:
            chosen = self.chosen.get(piece.group, torch.arange(piece.width))
            entries = chosen[:, None] * piece.repeat + torch.arange(piece.repeat)
            parts.append(entries.flatten() + start)
            start += piece.size
        return torch.cat(parts), start


def _reset(module: nn.Module) -> None:
    for part in (*module.children(), module):
        for name in ("reset_parameters", "_reset_parameters"):  # the latter of attention
            reset: Callable[[], None] | None = getattr(part, name, None)
            if reset is not None:
                reset()


def _match(blended: Blended, model: nn.Module) -> None:
    """Bring the blended model to the model's device and mode."""
    device = next(model.parameters()).device
    blended.alphas = blended.alphas.to(device)
    blended.matching_loss = blended.matching_loss.to(device)
    blended.training = model.training
