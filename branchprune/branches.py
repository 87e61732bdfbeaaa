"""The blended model: a network with a narrow twin beside every group that is to shrink.

Source: Gschossmann, "Model Pruning" (TUM, 2021); generalised from chains of layers to channel
groups.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.criteria import Criterion, GroupWeights, l1, random_choice, rows_by_output, select
from branchprune.ends import EndPiece, Expand, Reduce
from branchprune.errors import PruneError
from branchprune.planning import Plan
from branchprune.program import Program, compile_program
from branchprune.structure import Pieces, Structure
from branchprune.trace import call, tensors, training_mode
from branchprune.widths import narrow_channelwise

Init = str | Criterion
INITS: dict[str, Criterion] = {"l1": l1}


class Blended(nn.Module):
    """A model whose consumers read `α · wide + (1 − α) · branch`; made by `attach`.

    Call it as the original model. `alpha` reads as a dictionary from group to value and is set
    to a number for all groups, or to a dictionary from groups, layers or modules to numbers.

    Attributes:
        model: The original layers, copied.
        reduce: For each producer in a pruned group, its linear end.
        expand: For each tensor that a consumer reads, its linear end, by the first consumer.
        twin: The channelwise layers (norms, …) of the branch.
        plan: The plan it was built from.
    """

    alphas: Tensor

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.model = model
        self.reduce, self.expand, self.twin, self.plain = (nn.Module() for _ in range(4))
        for name in sorted(self._structure.inplace):
            module = copy.deepcopy(model.get_submodule(name))
            module.inplace = False  # type: ignore[assignment]
            set_path(self.plain, name, module)
        self.register_buffer("alphas", torch.ones(len(plan.pruned), dtype=torch.float32))
        self._alpha = (1.0,) * len(plan.pruned)
        self.updates_at_start = -1
        self._programs: dict[tuple[object, ...], Program] = {}
        self.register_load_state_dict_post_hook(_read_alphas)

    @property
    def _structure(self) -> Structure:
        return self.plan.structure

    @property
    def alpha(self) -> dict[str, float]:
        """α of each pruned group, by group name."""
        names = [self.plan.groups[i].name for i in self.plan.pruned]
        return dict(zip(names, self._alpha, strict=True))

    @alpha.setter
    def alpha(self, value: float | Mapping[str, float]) -> None:
        new = list(self._alpha)
        for name, number in value.items() if isinstance(value, Mapping) else [(None, value)]:
            if not 0 <= number <= 1:
                raise PruneError(f"alpha (={number}) must be in [0, 1]")
            for i in range(len(new)) if name is None else self._branches_of(name):
                new[i] = float(number)
        with torch.no_grad():
            self.alphas.copy_(torch.tensor(new))
        self._alpha = tuple(new)
        self._refresh()

    def _branches_of(self, name: str) -> list[int]:
        """Return the branches of a group, or of all groups made within a module."""
        found = []
        for branch, group in enumerate(self.plan.groups[i] for i in self.plan.pruned):
            makers = (group.name, *group.layers)
            if any(maker == name or maker.startswith(f"{name}.") for maker in makers):
                found.append(branch)
        if not found:
            raise PruneError(f"alpha names {name!r}: no pruned group lies there")
        return found

    def branch_only(self) -> _AlphaOverride:
        """Return a context in which every α is 0, to judge the branch alone."""
        return _AlphaOverride(self, 0.0)

    def program(self, training: bool, fold: bool = True) -> Program:
        """Return the forward function for the current α."""
        state = tuple(a if a in (0.0, 1.0) else 0.5 for a in self._alpha)
        key = (training, fold, state)
        if key not in self._programs:
            alphas = dict(zip(self.plan.pruned, state, strict=True))
            self._programs[key] = compile_program(self._structure, training, alphas, fold)
        return self._programs[key]

    def _refresh(self) -> None:
        self._run = {training: self.program(training) for training in (False, True)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the blended output; arguments and result are those of the original model."""
        return self._run[self.training](self, *args, **kwargs)

    def extra_repr(self) -> str:
        """Say what α is."""
        values = sorted(set(self._alpha))
        return f"groups={len(self._alpha)}, alpha={values[0] if len(values) == 1 else values}"


class _AlphaOverride:
    """Sets every α for the length of a `with` block."""

    def __init__(self, blended: Blended, value: float) -> None:
        self.blended, self.value = blended, value

    def __enter__(self) -> None:
        self.before = self.blended.alpha
        self.blended.alpha = self.value

    def __exit__(self, *_: object) -> None:
        self.blended.alpha = self.before


def _read_alphas(blended: nn.Module, _: object) -> None:
    assert isinstance(blended, Blended)
    blended._alpha = tuple(round(value, 6) for value in blended.alphas.tolist())
    blended._refresh()


def attach(model: nn.Module, plan: Plan, init: Init = "l1") -> Blended:
    """Give every group that is to shrink a narrow twin beside it, at α = 1.

    ```python
    blended = bp.attach(model, bp.plan(model, example, keep=0.5), init="l1")
    blended.alpha = 0.7
    ```

    Args:
        model: The model that was planned, or one of the same architecture; it is not changed.
        plan: The widths.
        init: How the branch starts. "l1": the channels with the largest L1 norm; a function
            `scores(GroupWeights) -> Tensor` of shape (C,): those with the highest scores;
            "random": random linear ends and fresh norms, as in the paper.

    Returns:
        A module whose output at α = 1 is the model's own. Build the optimizer after this call,
        from the parameters of the result.

    Raises:
        PruneError: The model is not the one that was planned, `init` is unknown, or the model
            does something that the blended one cannot repeat.
    """
    if isinstance(init, str) and init not in {"random", *INITS}:
        raise PruneError(f"init (={init!r}) must be 'random', 'l1' or a function of GroupWeights")
    _check_same_model(model, plan)
    blended = Blended(copy.deepcopy(model), plan)
    criterion = init if callable(init) else INITS.get(init, random_choice)
    chosen = {i: _choose(blended, i, criterion) for i in plan.pruned}
    builder = _Builder(blended, chosen, random=init == "random")
    builder.build()
    _match(blended, model)
    blended._refresh()
    _check_outputs(model, blended)
    blended.updates_at_start = updates(blended)
    return blended


def _check_same_model(model: nn.Module, plan: Plan) -> None:
    widths = plan.structure.groups
    for layer in plan.structure.linears.values():
        try:
            weight = model.get_submodule(layer.name).weight
        except AttributeError:
            raise PruneError(
                f"the plan is of another model: layer {layer.name} is missing"
            ) from None
        assert isinstance(weight, Tensor)
        planned = sum(widths[piece.group].width for piece in layer.outputs)
        module = model.get_submodule(layer.name)
        found = getattr(module, "out_channels", getattr(module, "out_features", None))
        if found != planned:
            raise PruneError(
                f"the plan is of another model: layer {layer.name} has {found} outputs, "
                f"planned were {planned}"
            )


def group_weights(blended: Blended, index: int) -> GroupWeights:
    """Collect the weights that make the channels of a group."""
    structure = blended.plan.structure
    producers = [
        rows_by_output(blended.model.get_submodule(layer.name)).narrow(0, start, width)
        for layer in structure.linears.values()
        for start, width in _runs(layer.outputs, index)
    ]
    norms = []
    for other in structure.channelwise.values():
        weight = getattr(blended.model.get_submodule(other.name), "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1 and other.axis == 0:
            runs = [
                run for run in _runs(other.pieces, index) if run[1] == structure.groups[index].width
            ]
            norms += [weight.detach().narrow(0, start, width) for start, width in runs]
    group = structure.groups[index]
    return GroupWeights(group.name, group.width, tuple(producers), tuple(norms))


def _runs(pieces: Pieces, group: int) -> Iterable[tuple[int, int]]:
    """Yield start and length of every run of a group's channels in a dimension."""
    start = 0
    for piece in pieces:
        if piece.group == group:
            yield start, piece.width * piece.repeat
        start += piece.width * piece.repeat


def _choose(blended: Blended, index: int, criterion: Criterion) -> Tensor:
    group, planned = blended.plan.structure.groups[index], blended.plan.groups[index]
    scores = criterion(group_weights(blended, index))
    if not isinstance(scores, Tensor) or scores.shape != (group.width,):
        shape = tuple(getattr(scores, "shape", ()))
        raise PruneError(f"init returned scores of shape {shape} for {group.name} ({group.width},)")
    if scores.isnan().any():
        raise PruneError(f"init returned NaN scores for {group.name}")
    return select(scores, planned.kept, group.blocks)


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
                ends = self._ends(layer.outputs)
                weights = self._weights(layer.outputs, layer.groups, expand=False)
                end = Reduce(ends, layer.dim, layer.groups, weights)
                set_path(self.blended.reduce, layer.name, end)
            if layer.expand == layer.name and self._any_live(layer.inputs or ()):
                pieces = layer.inputs or ()
                weights = self._weights(pieces, layer.groups, expand=True)
                end = Expand(self._ends(pieces), layer.dim, layer.groups, weights)
                set_path(self.blended.expand, layer.name, end)
        for other in self.structure.channelwise.values():
            if self._any_live(other.pieces):
                module = self.blended.model.get_submodule(other.name)
                index = self._index(other.pieces)
                twin = narrow_channelwise(module, other.axis, other.times, index)
                if self.random:
                    _reset(twin)
                set_path(self.blended.twin, other.name, twin)

    def _any_live(self, pieces: Pieces) -> bool:
        return any(piece.group in self.branch for piece in pieces)

    def _ends(self, pieces: Pieces) -> list[EndPiece]:
        kept = self.blended.plan.groups
        return [
            EndPiece(p.width, kept[p.group].kept, p.repeat, self.branch.get(p.group))
            for p in pieces
        ]

    def _weights(self, pieces: Pieces, groups: int, expand: bool) -> list[Tensor]:
        """Return the matrices of a linear end: a selection (or its transpose), or random."""
        weights = []
        for piece in pieces:
            if piece.group not in self.branch:
                continue
            index = self.chosen[piece.group]
            matrix = torch.zeros(len(index), piece.width)
            matrix[torch.arange(len(index)), index] = 1
            matrix = matrix.T if expand else matrix
            blocks = matrix.unflatten(0, (groups, -1)).unflatten(2, (groups, -1))
            diagonal = torch.stack([blocks[g, :, g] for g in range(groups)]).flatten(0, 1)
            if self.random:
                nn.init.kaiming_uniform_(diagonal, a=math.sqrt(5))
            weights.append(diagonal.contiguous())
        return weights

    def _index(self, pieces: Pieces) -> Tensor:
        """Return which entries of a dimension are kept."""
        parts, start = [], 0
        for piece in pieces:
            chosen = self.chosen.get(piece.group, torch.arange(piece.width))
            entries = chosen[:, None] * piece.repeat + torch.arange(piece.repeat)
            parts.append(entries.flatten() + start)
            start += piece.width * piece.repeat
        return torch.cat(parts)


def _reset(module: nn.Module) -> None:
    for method in ("reset_parameters", "reset_running_stats"):
        reset: Callable[[], None] | None = getattr(module, method, None)
        if reset is not None:
            reset()


def set_path(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path, making the modules on the way."""
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    if last in root._modules:
        root._modules[last] = module
    else:
        root.add_module(last, module)


def _match(blended: Blended, model: nn.Module) -> None:
    """Bring the new parts to the model's device, dtype and mode."""
    weight = next(p for p in model.parameters() if p.is_floating_point())
    for part in (blended.reduce, blended.expand):
        part.to(weight.device, weight.dtype)
    blended.alphas = blended.alphas.to(weight.device)
    blended.training = model.training


def _check_outputs(model: nn.Module, blended: Blended) -> None:
    """Run the blended model at α = 1 and α = 0; compare the former with the model."""
    example = blended.plan.example
    with torch.no_grad(), training_mode(model, False), training_mode(blended, False):
        expected, found = call(model, example), call(blended, example)
        try:
            with blended.branch_only():
                call(blended, example)
        except Exception as error:
            raise PruneError(
                f"the branch does not run at its widths, so forward names a width that cannot "
                f"follow ({str(error).splitlines()[0]}); exclude the layers around it"
            ) from error
    for a, b in zip(tensors(expected), tensors(found), strict=True):
        if not torch.equal(a.nan_to_num(), b.nan_to_num()):
            raise PruneError("the blended model at alpha = 1 differs from the model")


def updates(blended: Blended) -> int:
    """Return a count that grows whenever an optimizer changes a parameter."""
    return sum(parameter._version for parameter in blended.parameters())
