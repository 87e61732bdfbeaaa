"""The blended model: a network with a narrow twin beside every group that is to shrink.

Source: Gschossmann, "Model Pruning" (TUM, 2021); generalised from chains of layers to channel
groups.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor, nn

from branchprune.blending.alpha_buffer import AlphaBuffer, Alphas
from branchprune.blending.bn_recalibration import recalibrated
from branchprune.blending.ddp_gradients import with_ddp_gradients
from branchprune.blending.path_norms import layers_of
from branchprune.blending.path_sampling import Mixing, Norms, PathMixing, drawn_together
from branchprune.blending.programs import Program, compile_program
from branchprune.blending.weight_snapshot import WeightSnapshot
from branchprune.errors import PruneError
from branchprune.graph.inputs import Example, copied, example_inputs, on_device
from branchprune.graph.layers import set_path
from branchprune.graph.sharding import refuse_sharded
from branchprune.graph.structure import Structure
from branchprune.graph.tracing.guards import as_many_arguments, same_modes
from branchprune.graph.tracing.modes import differing_modules, take_modes
from branchprune.planning.plan import Plan


class Blended(nn.Module):
    """A model whose consumers read `α · wide + (1 − α) · branch`; made by `attach`.

    Call it as the original model. `alpha` reads as a dictionary from group to value and is set
    to a number for all groups, or to a dictionary from groups, layers or modules to numbers. It
    lives in the buffer `alphas`: a pass computes what that says, whoever has written it.

    Attributes:
        model: The original layers, copied.
        reduce: For each producer in a pruned group, its linear end.
        expand: For each tensor that a consumer reads, its linear end, by the first consumer.
        twin: The channelwise layers (norms, …) of the branch.
        private: With private norms, the norm of the other path for each of `model` and `twin`.
        plan: The plan it was built from.
        mixing: How training mixes the paths; see `attach`. Can be set, as `matching`.
        matching: Weight of feature matching; see `attach`.
        path_mixing: Both of these, and `norms`.
        matching_loss: The last value of what feature matching adds to the loss, for logging.
        originals_held: Whether a DDP training keeps the original layers as they are.
    """

    alphas: Tensor
    matching_loss: Tensor

    def __init__(self, model: nn.Module, plan: Plan, mixing: PathMixing) -> None:
        super().__init__()
        layers = layers_of(mixing.norms, model, plan.structure, plan.pruned)
        self.plan, self.path_mixing = plan, replace(mixing, layers=layers)
        self.model = model
        self.reduce, self.expand, self.twin = (nn.Module() for _ in range(3))
        self.plain, self.private = nn.Module(), nn.Module()
        for name in sorted(self._structure.inplace):
            module = copied(model.get_submodule(name), sharing=True)
            module.inplace = False  # type: ignore[assignment]
            set_path(self.plain, name, module)
        self.constants = nn.Module()
        for name, constant in self._structure.constants.items():
            last = name.rpartition(".")[2]
            self.constants.register_buffer(last, constant.clone(), persistent=False)
        self.register_buffer("alphas", torch.ones(len(plan.pruned), dtype=torch.float32))
        self.register_buffer("matching_loss", torch.zeros(()), persistent=False)
        self._alphas = AlphaBuffer((1.0,) * len(plan.pruned))
        self.made_from: list[weakref.ref[nn.Parameter]] = []
        self.at_attach: WeightSnapshot | None = None
        self.originals_held = False
        self._moded = differing_modules(self._structure.graphs)
        self._programs: dict[tuple[object, ...], Program] = {}
        self._features: dict[str, Tensor] | None = None
        self._compiled: Callable[[Program], Program] | None = None
        nn.Module.register_load_state_dict_post_hook(self, _load_alphas)

    @property
    def _structure(self) -> Structure:
        return self.plan.structure

    @property
    def mixing(self) -> Mixing:
        """How training mixes the paths."""
        return self.path_mixing.mixing

    @mixing.setter
    def mixing(self, value: Mixing) -> None:
        self.path_mixing = replace(self.path_mixing, mixing=value)
        self._refresh()

    @property
    def matching(self) -> float:
        """Weight of feature matching in training."""
        return self.path_mixing.matching

    @matching.setter
    def matching(self, value: float) -> None:
        self.path_mixing = replace(self.path_mixing, matching=value)
        self._refresh()

    @property
    def norms(self) -> Norms:
        """What norms behind a weighted sum do; see `attach`."""
        return self.path_mixing.norms

    def _groups(self) -> list[str]:
        return [self.plan.groups[i].name for i in self.plan.pruned]

    @property
    def _alpha(self) -> Alphas:
        return self._alphas.read(self.alphas, self.part_of_model.training, self._groups)

    @property
    def alpha(self) -> dict[str, float]:
        """α of each pruned group, by group name."""
        return dict(zip(self._groups(), self._alpha, strict=True))

    @alpha.setter
    def alpha(self, value: float | Mapping[str, float]) -> None:
        new = list(self._alpha if isinstance(value, Mapping) else self._alphas.values)
        for name, number in value.items() if isinstance(value, Mapping) else [(None, value)]:
            if not isinstance(number, Real | Tensor) or not 0 <= number <= 1:
                raise PruneError(f"alpha (={number}) must be in [0, 1]")
            for i in range(len(new)) if name is None else self.plan.branches_within(name):
                new[i] = float(number)
        self._alphas.write(self.alphas, tuple(new))
        self._refresh()

    @contextmanager
    def branch_only(self, batches: Iterable[Example] = ()) -> Iterator[None]:
        """Force α to 0 for a `with` block, to judge the branch alone.

        Groups at α = 1, whose turn has not come, stay there unless all are.

        Args:
            batches: Training inputs (each a tensor, or a tuple or dictionary of arguments) from
                which BatchNorm takes its statistics for the block. Those that training leaves
                belong to the blend, and with them a branch looks far worse than it is. Not used
                where forcing α to 0 changes nothing.
        """
        if isinstance(batches, Tensor):
            raise PruneError("batches must be several inputs of forward, such as [batch]")
        before = self.alpha
        begun = {name: 0.0 for name, alpha in before.items() if alpha < 1}
        try:
            self.alpha = begun or 0.0
            changed = self.alpha != before
            seen = (example_inputs(on_device(b, self)) for b in (batches if changed else ()))
            with recalibrated(self, seen):
                yield
        finally:
            self.alpha = before

    @contextmanager
    def branch_features(self) -> Iterator[dict[str, Tensor]]:
        """Collect the twin's tensor that each `expand` reads, for a `with` block, by its name.

        Those of the last forward pass; none where all channels are of groups at α = 1.
        """
        self._features = found = dict[str, Tensor]()
        try:
            yield found
        finally:
            self._features = None

    def program(
        self,
        training: bool,
        fold: bool = True,
        alpha: tuple[float, ...] | None = None,
        features: bool = False,
    ) -> Program:
        """Return the forward function for an α of each group, by default the current one."""
        values = self._alpha if alpha is None else alpha
        state = tuple(a if a in (0.0, 1.0) else 0.5 for a in values)
        mixing = self.path_mixing if training else self.path_mixing.in_evaluation
        key = (training, fold, state, features, mixing)
        if key not in self._programs:
            alphas = dict(zip(self.plan.pruned, state, strict=True))
            options = (fold, self.plan.numbers, mixing, features)
            program = compile_program(self._structure, training, alphas, *options)
            self._programs[key] = self._compiled(program) if self._compiled else program
        return self._programs[key]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the forward code of every α that comes; arguments are those of torch.compile.

        While α moves between 0 and 1 nothing is compiled again. A copy is not compiled. A
        `torch.compile` around the blended model follows an α that is assigned or loaded, but not
        one that is written into the buffer.
        """
        self._compiled = partial(torch.compile, *args, **kwargs)
        self._programs = {}
        self._refresh()

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_programs", "_run", "_run_at", "_compiled", "_features", "made_from")
        return {k: v for k, v in self.__dict__.items() if k not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)
        self._programs, self._compiled, self._features, self.made_from = {}, None, None, []
        self._refresh()

    def _refresh(self) -> None:
        self._run_at = self._alpha
        self._run = {training: self.program(training) for training in (False, True)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the blended output; arguments and result are those of the original model."""
        return self.run(self.part, *args, **kwargs)

    def run(self, part: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the output with another function in place of the part that was planned."""
        refuse_sharded(self)
        if not self._structure.inside:
            return part(*args, **kwargs)
        with self._replaced(part):
            return self.model(*args, **kwargs)

    def part(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output of the part that was planned; that is all of it without `inside`.

        Raises:
            PruneError: Other arguments are given than in the plan's example, or a module is in
                another mode than the whole, though its forward depends on the mode.
        """
        same_modes(self.model, self._moded, self.part_of_model.training)
        as_many_arguments(len(args) + len(kwargs), self._structure.arguments)
        program = self._program_of_call(self.part_of_model.training)
        output = program(self, *args, **kwargs)
        if self._features is not None:
            output, found = output
            self._features.update(found)
        return with_ddp_gradients(self, self.part_of_model, vars(program)["reads"], output)

    def _program_of_call(self, training: bool) -> Program:
        """Return the forward function for one call; it is drawn if all groups draw together."""
        collects = self._features is not None
        if not torch.compiler.is_compiling() and self._alpha is not self._run_at:
            self._refresh()
        if training and self.mixing == "step":
            alpha = drawn_together(self._alphas.values)
            return self.program(training, alpha=alpha, features=collects)
        return self.program(training, features=True) if collects else self._run[training]

    @property
    def part_of_model(self) -> nn.Module:
        """The module that was planned."""
        inside = self._structure.inside
        return self.model.get_submodule(inside) if inside else self

    @contextmanager
    def _replaced(self, forward: Callable[..., Any]) -> Iterator[None]:
        """Let the part be computed by another function, for a `with` block."""
        part = vars(self.part_of_model)
        part["forward"] = forward
        try:
            yield
        finally:
            del part["forward"]

    def train(self, mode: bool = True) -> Self:
        """Set the mode as the model does; the branch follows its layers, such as a frozen norm."""
        super().train(mode)
        take_modes((self.twin, self.plain, *self.private.children()), self.model)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("model")
            if not hasattr(model, name):
                raise
            raise AttributeError(
                f"{name!r} is in `blended.model`; optimizers are built from `blended.parameters()`"
            ) from None

    def __repr__(self) -> str:
        levels = sorted(set(self._alpha))
        alpha = levels[0] if len(levels) == 1 else levels
        name = type(self.model).__name__
        return f"{type(self).__name__}({name}, groups={len(self.plan.pruned)}, alpha={alpha})"


def _load_alphas(blended: nn.Module, _: object) -> None:
    assert isinstance(blended, Blended)
    blended._refresh()
