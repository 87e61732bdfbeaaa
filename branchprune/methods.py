"""What turns a dense model into a small one: blending or removal at once, then fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pytorch_lightning import seed_everything
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from branchprune.artifact import save
from branchprune.budget import within_budget
from branchprune.calls import copied
from branchprune.checkpoints import load_weights
from branchprune.config import RunConfig
from branchprune.errors import PruneError
from branchprune.lightning import Vitals
from branchprune.narrowing import Narrowed, choose_narrowing, reset
from branchprune.planning import Plan, plan
from branchprune.sparsifying import make_penalty, sparsify
from branchprune.stages import Stages, student_task


@dataclass
class Pruned:
    """What a pruning made of a dense model.

    Attributes:
        small: The small model.
        plan: From the dense to the small model.
        collapse_error: Relative error of the collapse in float64, the largest of all rounds.
        own_dtype_error: The same in the model's own dtype.
        scores: Validation scores on the way, by name.
        rounds: For each round its score, what is left, and whether it is kept, if there are rounds.
        loggers: Those of the blending.
    """

    small: nn.Module
    plan: Plan
    collapse_error: float
    own_dtype_error: float
    scores: dict[str, float] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    loggers: list[Logger] = field(default_factory=list)


class Pruning:
    """Prunes a trained model as a configuration says.

    Args:
        config: The configuration of the run.
        example: Input of one example.
    """

    def __init__(self, config: RunConfig, example: Tensor) -> None:
        settings = config.prune
        if settings.rounds is not None and settings.budget is not None:
            raise PruneError("budget: how much rounds cost is not known before; leave out one")
        if settings.finetune and settings.finetune.fresh and settings.levels is not None:
            raise PruneError(
                "finetune.fresh (=true) would throw away what is blended: levels: null"
            )
        if settings.pruner is not None and settings.levels is not None:
            raise PruneError(f"pruner (={settings.pruner!r}) blends nothing: levels: null")
        self.config, self.example = config, example
        self.narrowing = choose_narrowing(config, example)

    def check(self) -> Plan:
        """Find every mistake that can be found before training, and return the first plan."""
        model, sparse = self.config.model, self.config.prune.sparsify
        student_task(self.config.prune_task, model, model)
        planned = self._plan(model)
        self.narrowing.check(planned)
        if sparse is not None:
            make_penalty(sparse, copied(model), planned)
        return planned

    def prune(self, dense: nn.Module, stages: Stages, score: float) -> Pruned:
        """Prune a trained model, whose validation score is known."""
        settings, planned = self.config.prune, self._plan(dense)
        if settings.budget is not None:
            self.config = within_budget(self.config, settings.budget, dense, planned, stages)
            self.narrowing = choose_narrowing(self.config, self.example)
        wide = dense
        if settings.sparsify is not None:
            wide = sparsify(self.config, settings.sparsify, dense, planned, stages)
        if settings.rounds is not None:
            return self._prune_in_rounds(dense, wide, stages, score)
        narrowed = self._narrow("prune", dense, wide, planned, stages)
        small = self._finetune("finetune", dense, narrowed.small, stages)
        return Pruned(
            small,
            narrowed.plan,
            narrowed.collapse_error,
            narrowed.own_dtype_error,
            narrowed.scores,
            loggers=narrowed.loggers,
        )

    def _plan(self, wide: nn.Module) -> Plan:
        return plan(wide, self.example, **self.config.prune.plan_options())

    def _narrow(
        self, stage: str, dense: nn.Module, wide: nn.Module, planned: Plan, stages: Stages
    ) -> Narrowed:
        seed_everything(self.config.seed, workers=True, verbose=False)  # a random choice, too
        return self.narrowing.narrow(stage, dense, wide, planned, stages)

    def _finetune(
        self, stage: str, dense: nn.Module, small: nn.Module, stages: Stages
    ) -> nn.Module:
        """Train a small model, or read what an earlier run made of it."""
        settings, path = (
            self.config.prune.finetune,
            self.config.output / stage / "small.safetensors",
        )
        if settings is None:
            return small
        if stages.finished(stage) is not None:
            load_weights(small, path)
            return small
        if settings.fresh:
            small.apply(reset)
        task = student_task(self.config.prune_task, dense, small)
        if self.config.compile:
            small.compile()
        stages.fit(stage, task, 1 if self.config.fast else settings.epochs, Vitals())
        small = copied(small).cpu()  # a copy is not compiled
        save(small, path)
        stages.finish(stage)
        return small

    def _prune_in_rounds(
        self, dense: nn.Module, wide: nn.Module, stages: Stages, score: float
    ) -> Pruned:
        """Prune until the validation score has fallen too far, or nothing can shrink further."""
        settings = self.config.prune.rounds
        assert settings is not None
        sign = 1 if self.config.metric.mode == "max" else -1
        small, widths = wide, dict[str, int]()
        rounds: list[dict[str, Any]] = []
        for number in range(1, (2 if self.config.fast else settings.count) + 1):
            planned = self._plan_round(number, small)
            if planned is None:
                break
            narrower, found = self._round(number, dense, small, planned, stages)
            kept = sign * (score - found["val"]) <= settings.max_drop
            rounds.append(found | {"kept": kept})
            if not kept:
                break
            small, widths = narrower, widths | found["widths"]
        if not widths:
            raise PruneError(
                f"round 1 lost more than max_drop (={settings.max_drop}): {score:.4g} -> "
                f"{rounds[0]['val']:.4g}; keep more than keep (={self.config.prune.keep})"
            )
        error, own = (max(each[key] for each in rounds) for key in ("collapse_error", "own_error"))
        return Pruned(small, self._overall(dense, widths), error, own, rounds=rounds)

    def _plan_round(self, number: int, wide: nn.Module) -> Plan | None:
        """Plan a round; None where an earlier one has left nothing that can shrink."""
        try:
            return self._plan(wide)
        except PruneError:
            if number == 1:
                raise
            return None

    def _round(
        self, number: int, dense: nn.Module, wide: nn.Module, planned: Plan, stages: Stages
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Narrow and fine-tune a model, and judge it."""
        stage = f"round_{number:02}"
        narrowed = self._narrow(f"{stage}_prune", dense, wide, planned, stages)
        small = self._finetune(stage, dense, narrowed.small, stages)
        score = stages.finished(f"{stage}_score")
        if score is None:
            task = student_task(self.config.prune_task, dense, small)
            score = {"val": stages.score(task, test=False)["val"]}
            stages.finish(f"{stage}_score", **score)
        return small, {
            "round": number,
            "val": score["val"],
            "params": planned.after.params,
            "macs": planned.after.macs,
            "channels": planned.after.channels,
            "widths": {planned.groups[i].name: planned.groups[i].kept for i in planned.pruned},
            "collapse_error": narrowed.collapse_error,
            "own_error": narrowed.own_dtype_error,
        }

    def _overall(self, dense: nn.Module, widths: dict[str, int]) -> Plan:
        """Return the plan that leads from the dense model to some widths at once."""
        options = self.config.prune.plan_options()
        options = {name: options[name] for name in ("exclude", "inside", "opaque")}
        before = {group.name: group.width for group in plan(dense, self.example, **options).groups}
        shares = {name: width / before[name] for name, width in widths.items()}
        return plan(dense, self.example, shares, **options)
