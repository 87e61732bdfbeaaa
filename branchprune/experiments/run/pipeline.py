"""What turns a dense model into a small one: blending or removal at once, then fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from pytorch_lightning import LightningModule, seed_everything
from torch import Tensor, nn

from branchprune.criteria.named import LABELLED, MADE
from branchprune.errors import PruneError
from branchprune.experiments.run.budget import CostConfig, Epoch, longest_last_stage
from branchprune.experiments.run.calibration import accumulate_gradients, criterion_of_data
from branchprune.experiments.run.config import RunConfig
from branchprune.experiments.run.criterion import CriterionConfig
from branchprune.experiments.run.depth import settled, shallower
from branchprune.experiments.run.finetune import finetune, reset
from branchprune.experiments.run.rounds import RoundsConfig
from branchprune.experiments.run.shrinking import Pruned, Setup
from branchprune.experiments.run.sparsity_training import make_penalty, sparsify
from branchprune.experiments.run.stages import Stages
from branchprune.experiments.run.student import student_task
from branchprune.experiments.run.widths import WidthsConfig
from branchprune.graph.inputs import copied
from branchprune.planning.plan import Plan
from branchprune.planning.residual_blocks import without
from branchprune.targets.plan import DEFAULT
from branchprune.targets.target_plan import beside_dense, with_outcome_of
from branchprune.training.task import Task

DRY = 2
"""Rounds of a dry run."""
WIDTHS = "widths"
"""The stage in which widths are chosen for a target."""


class Pruning:
    """Prunes a trained model as a configuration says.

    Args:
        config: The configuration of the run.
        example: Input of one example.
    """

    def __init__(self, config: RunConfig, example: Tensor) -> None:
        self.config, self.settings, self.example = config, config.prune, example
        criterion = config.prune.criterion or CriterionConfig()
        self.setup = Setup(config, config.prune.widths, criterion, example)

    def check(self) -> Plan:
        """Find every mistake that can be found before training, and return the first plan."""
        model, settings = self.config.model, self.settings
        self._check_features(student_task(self.config.prune_task, model, model))
        if settings.widths.target and not (settings.few_images or self.setup.criterion.calibration):
            raise PruneError(
                f"widths.target (={settings.widths.target.asked}) needs criterion.calibration (=0) "
                "batches, on which the change of the output is measured: set at least 1"
            )
        start, whole = model, None
        if settings.depth is not None:
            whole = self._whole(model)
            self._use(settings.widths.of_dense(whole))
            named = settings.widths.named
            start = without(model, settings.depth.some(model, self.example, named), self.example)
        planned = self.settings.widths.plan(start, self.example)  # nothing can be measured yet
        settings.algorithm.check(self.setup, planned)
        if settings.few_images is None:
            self.setup.criterion.check_batches()
        if settings.finetune is not None and settings.finetune.fresh:
            copied(model).apply(reset)
        if settings.sparsify is not None and settings.sparsify.penalty != "soft":
            make_penalty(settings.sparsify, copied(start), planned)
        if settings.cost is not None:
            self._stages(model, start, self._plans(start, planned), 1)
        return planned if whole is None else beside_dense(planned, whole.before)

    def _check_features(self, task: LightningModule) -> None:
        settings, weight = self.settings, getattr(task, "feature_weight", 0)
        others = settings.finetune or settings.sparsify or settings.rounds
        if weight and (settings.blend is None or others):
            raise PruneError(
                f"prune.task.feature_weight (={weight}): only branches learn features, and of a "
                "dense model, so blend must be set, and finetune, sparsify and rounds be null"
            )

    def prune(self, dense: nn.Module, stages: Stages, score: float) -> Pruned:
        """Prune a trained model, whose validation score is known."""
        start, whole = dense, None
        if self.settings.depth is not None:
            whole = self._whole(dense)
            depth, algorithm = self.settings.depth, self.settings.algorithm
            choose = partial(depth.chosen, self.setup, algorithm, dense, whole.structure, stages)
            depth = settled(depth, stages, choose)
            self.settings = replace(self.settings, depth=depth if depth.blocks else None)
            if depth.blocks:
                start = shallower(depth, dense, self.example, stages)
        planned = self._planned(start, whole, stages)
        if self.settings.cost is not None:
            self._keep_to(self.settings.cost, dense, start, planned, stages)
        wide = start
        if self.settings.sparsify is not None:
            wide = sparsify(self.settings.sparsify, dense, start, planned, stages)
        if self.settings.rounds is not None:
            found = self._prune_in_rounds(self.settings.rounds, dense, wide, stages, score)
            return replace(found, plan=with_outcome_of(planned, found.plan))
        narrowed = self._narrow("prune", dense, wide, planned, stages)
        small = self._finetune("finetune", dense, narrowed.small, stages)
        if whole is not None:
            narrowed.plan = beside_dense(narrowed.plan, whole.before)
        return replace(narrowed, small=small)

    def _whole(self, dense: nn.Module) -> Plan:
        """Return a plan of the dense model, whatever its widths."""
        return replace(self.config.prune.widths, keep=None, target=None).plan(dense, self.example)

    def _use(self, widths: WidthsConfig) -> None:
        self.settings = replace(self.settings, widths=widths)
        self.setup = replace(self.setup, widths=widths)

    def _planned(self, dense: nn.Module, whole: Plan | None, stages: Stages) -> Plan:
        """Return the first plan; a target is then settled, and told beside the whole model."""
        widths = self.settings.widths
        if widths.target is None:
            return widths.plan(dense, self.example)
        found = stages.finished(WIDTHS)
        if found is not None:  # times would differ
            planned = widths.planned_again(dense, self.example, found)
        else:
            planned = self._measured(dense, stages)
            stages.finish(WIDTHS, **widths.decision(planned))
        told = planned if whole is None else beside_dense(planned, whole.before)
        stages.say(f"widths for the target:\n{told}")
        self._use(widths.settled(planned))
        return planned

    def _measured(self, dense: nn.Module, stages: Stages) -> Plan:
        """Return the plan for a target, measured on what the algorithm sees."""
        seed_everything(self.config.seed, workers=True, verbose=False)  # the order of the data
        planned = self.settings.widths.plan(dense, self.example)
        graded, setup = dense, self.setup
        if callable(setup.init) or setup.init in LABELLED:  # before more batches are drawn
            graded, setup = self._judged(dense, dense, planned)
        seen = self.settings.algorithm.seen(setup, stages)
        given = (graded, self.example, seen, setup.init, self.config.seed)
        return self.settings.widths.plan(*given)

    def _keep_to(
        self, cost: CostConfig, dense: nn.Module, start: nn.Module, planned: Plan, stages: Stages
    ) -> None:
        """Make the last stage as long as the cost allows."""
        stages_with = partial(self._stages, dense, start, self._plans(start, planned))
        epochs = longest_last_stage(cost, stages_with, dense, stages)
        self.settings = self.settings.with_last_stage(epochs)

    def _stages(
        self, dense: nn.Module, start: nn.Module, plans: list[Plan], epochs: int
    ) -> list[Sequence[Epoch]]:
        """Return what each epoch of each stage trains, the last stage having so many epochs."""
        settings = self.settings.with_last_stage(epochs)
        found = [settings.algorithm.epochs_to_train(self.config.metric, start, plans[-1])]
        if settings.sparsify is not None:
            found.insert(0, settings.sparsify.epochs_to_train(start))
        if settings.depth is not None:
            named = settings.widths.named
            found.insert(0, settings.depth.epochs_to_train(dense, self.example, named))
        if settings.finetune is not None:
            found += [settings.finetune.epochs_to_train(start, planned) for planned in plans]
        return found

    def _judged(self, dense: nn.Module, wide: nn.Module, planned: Plan) -> tuple[nn.Module, Setup]:
        """Let the criterion see what it needs of the calibration batches.

        Returns:
            The wide model with their gradients, and what algorithms work with, with the criterion
            if it is made of them.
        """
        criterion, batches = self.setup.init, self.setup.criterion.calibration
        if not batches:
            return wide, self.setup
        wide = copied(wide)
        task = student_task(self.config.prune_task, dense, wide)
        if isinstance(task, Task):
            task.feature_weight = 0.0  # the wide model has no branches
        state = {name: value.clone() for name, value in wide.state_dict().items()}
        made = None
        if isinstance(criterion, str) and criterion in MADE:
            made = criterion_of_data(criterion, task, wide, planned, self.config.data, batches)
        else:
            accumulate_gradients(task, self.config.data, batches)
        wide.load_state_dict(state)  # the norms' statistics have moved
        return wide, replace(self.setup, made=made)

    def _narrow(
        self, stage: str, dense: nn.Module, wide: nn.Module, planned: Plan, stages: Stages
    ) -> Pruned:
        seed_everything(self.config.seed, workers=True, verbose=False)  # a random choice, too
        wide, setup = self._judged(dense, wide, planned)
        return self.settings.algorithm.narrow(setup, stage, dense, wide, planned, stages)

    def _finetune(
        self, stage: str, dense: nn.Module, small: nn.Module, stages: Stages
    ) -> nn.Module:
        config = self.settings.finetune
        return small if config is None else finetune(config, stage, dense, small, stages)

    def _prune_in_rounds(
        self, rounds: RoundsConfig, dense: nn.Module, wide: nn.Module, stages: Stages, score: float
    ) -> Pruned:
        """Prune until the validation score has fallen too far, or nothing can shrink further."""
        sign = 1 if self.config.metric.mode == "max" else -1
        small, widths = wide, dict[str, int]()
        done: list[dict[str, Any]] = []
        for number in range(1, rounds.count + 1):
            planned = self._plan_round(rounds, number, dense, small)
            if planned is None and rounds.gradual:
                continue  # its widths are those of the round before
            if planned is None or (self.config.fast and len(done) == DRY):
                break
            narrower, found = self._round(number, dense, small, planned, stages)
            kept = rounds.keeps(sign * (score - found["val"]))
            done.append(found | {"kept": kept})
            lost = "" if kept else f"; it lost more than max_drop (={rounds.max_drop}), taken back"
            stages.say(f"round {number}: {found['macs']:,} MACs left, {found['val']:.4g}{lost}")
            if not kept:
                break
            small, widths = narrower, widths | found["widths"]
        if not widths:
            raise PruneError(
                f"round 1 lost more than max_drop (={rounds.max_drop}): {score:.4g} -> "
                f"{done[0]['val']:.4g}; keep more than {self.settings.widths.keep or DEFAULT}"
            )
        error, own = (max(each[key] for each in done) for key in ("collapse_error", "own_error"))
        return Pruned(small, self._overall(dense, widths), error, own, rounds=done)

    def _plans(self, dense: nn.Module, planned: Plan) -> list[Plan]:
        """Return the plans that lead from the dense model to the end of each round."""
        rounds, widths = self.settings.rounds, self.settings.widths
        if rounds is None:
            return [planned]
        numbers = range(1, rounds.count + 1)
        wanted = [{}, *(rounds.shares(planned, planned, number) for number in numbers)]
        new = [each for before, each in pairwise(wanted) if each != before]
        return [widths.plan_shares(dense, self.example, each) for each in new]

    def _plan_round(
        self, rounds: RoundsConfig, number: int, dense: nn.Module, wide: nn.Module
    ) -> Plan | None:
        """Plan a round; None where it would leave all as it is."""
        widths, example = self.settings.widths, self.example
        try:
            now = widths.plan(wide, example)
            if not rounds.gradual:
                return now
            wanted = rounds.shares(widths.plan(dense, example), now, number)
            return widths.plan_shares(wide, example, wanted) if wanted else None
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
            score = {"val": stages.score(task)}
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
        config = self.settings.widths
        before = {group.name: group.width for group in config.plan(dense, self.example).groups}
        wanted = {name: width / before[name] for name, width in widths.items()}
        return config.plan_shares(dense, self.example, wanted)
