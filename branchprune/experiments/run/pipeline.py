"""What turns a dense model into a small one: blending or removal at once, then fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pytorch_lightning import LightningModule, seed_everything
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from branchprune.artifacts.serialization import save
from branchprune.errors import PruneError
from branchprune.experiments.run.budget import within_budget
from branchprune.experiments.run.calibration_gradients import accumulate_gradients
from branchprune.experiments.run.config import RunConfig
from branchprune.experiments.run.load_weights import load_weights
from branchprune.experiments.run.shrinking import Narrowed, choose_narrowing, reset
from branchprune.experiments.run.sparsity_training import make_penalty, sparsify
from branchprune.experiments.run.stages import Stages, student_task
from branchprune.graph.inputs import copied
from branchprune.lightning import Vitals
from branchprune.lightning.ema import averaging
from branchprune.planning.plan import Plan, plan
from branchprune.training.task import Task


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
        rounds = settings.rounds
        known = rounds is None or (rounds.gradual and rounds.max_drop is None)
        if settings.budget and rounds and (not known or settings.levels is not None):
            raise PruneError(
                f"budget: what rounds cost is not known before, unless gradual (={rounds.gradual}) "
                f"is true, and max_drop (={rounds.max_drop}) and levels are null"
            )
        if settings.budget and settings.budget.train_macs and settings.mixing == "step":
            raise PruneError(
                "budget.train_macs: what an epoch costs depends on what mixing (='step') draws"
            )
        if settings.finetune and settings.finetune.fresh and settings.levels is not None:
            raise PruneError(
                "finetune.fresh (=true) would throw away what is blended: levels: null"
            )
        if settings.pruner is not None and settings.levels is not None:
            raise PruneError(f"pruner (={settings.pruner!r}) blends nothing: levels: null")
        if settings.pruner is not None and settings.fit:
            raise PruneError(f"fit (={settings.fit}): pruner (={settings.pruner!r}) fits nothing")
        if settings.init == "reconstruction" and not settings.calibration:
            raise PruneError("init (='reconstruction') sees calibration (=0) batches: set some")
        self.config, self.example = config, example
        self.narrowing = choose_narrowing(config, example)

    def check(self) -> Plan:
        """Find every mistake that can be found before training, and return the first plan."""
        model, sparse = self.config.model, self.config.prune.sparsify
        self._check_features(student_task(self.config.prune_task, model, model))
        planned = self._plan(model)
        self.narrowing.check(planned)
        if self.config.prune.finetune and self.config.prune.finetune.fresh:
            copied(model).apply(reset)
        if sparse is not None:
            make_penalty(sparse, copied(model), planned)
        return planned

    def _check_features(self, task: LightningModule) -> None:
        settings, weight = self.config.prune, getattr(task, "feature_weight", 0)
        others = settings.finetune or settings.sparsify or settings.rounds
        if weight and (settings.levels is None or others):
            raise PruneError(
                f"prune.task.feature_weight (={weight}): only branches learn features, and of a "
                "dense model, so levels must be given, and finetune, sparsify and rounds be null"
            )

    def prune(self, dense: nn.Module, stages: Stages, score: float) -> Pruned:
        """Prune a trained model, whose validation score is known."""
        settings, planned = self.config.prune, self._plan(dense)
        if settings.budget is not None:
            plans = self._plans(dense, planned)
            self.config = within_budget(self.config, settings.budget, dense, plans, stages)
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
        batches = self.config.prune.calibration
        seed_everything(self.config.seed, workers=True, verbose=False)  # a random choice, too
        if batches:
            wide = copied(wide)
            task = student_task(self.config.prune_task, dense, wide)
            if isinstance(task, Task):
                task.feature_weight = 0.0  # the wide model has no branches
            state = {name: value.clone() for name, value in wide.state_dict().items()}
            accumulate_gradients(task, self.config.data, batches)
            wide.load_state_dict(state)  # the norms' statistics have moved
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
        epochs, average = settings.epochs, averaging(self.config.prune.average)
        stages.fit(stage, task, 1 if self.config.fast else epochs, Vitals(), *average)
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
        count = min(2, settings.count) if self.config.fast else settings.count
        for number in range(1, count + 1):
            planned = self._plan_round(number, dense, small)
            if planned is None:
                break
            narrower, found = self._round(number, dense, small, planned, stages)
            lost = sign * (score - found["val"])
            kept = settings.max_drop is None or lost <= settings.max_drop
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

    def _plans(self, dense: nn.Module, planned: Plan) -> list[Plan]:
        """Return the plans that lead from the dense model to the end of each round."""
        rounds = self.config.prune.rounds
        if rounds is None:
            return [planned]
        steps = range(1, rounds.count + 1)
        shares = [_shares(planned, planned, number / rounds.count) for number in steps]
        return [self._plan_shares(dense, each) for each in shares]

    def _plan_round(self, number: int, dense: nn.Module, wide: nn.Module) -> Plan | None:
        """Plan a round; None where an earlier one has left nothing that can shrink."""
        rounds = self.config.prune.rounds
        assert rounds is not None
        try:
            now = self._plan(wide)
            if not rounds.gradual:
                return now
            shares = _shares(self._plan(dense), now, number / rounds.count)
            return self._plan_shares(wide, shares)
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
        groups = plan(dense, self.example, **self._without_keep()).groups
        before = {group.name: group.width for group in groups}
        return self._plan_shares(dense, {name: w / before[name] for name, w in widths.items()})

    def _plan_shares(self, wide: nn.Module, shares: dict[str, float]) -> Plan:
        return plan(wide, self.example, shares, **self._without_keep())

    def _without_keep(self) -> dict[str, Any]:
        options = self.config.prune.plan_options()
        return {name: options[name] for name in ("exclude", "inside", "opaque")}


def _shares(whole: Plan, now: Plan, progress: float) -> dict[str, float]:
    """Return what to keep of each group as it is now, to have gone a part of the whole way.

    Args:
        whole: From the dense model to the last round.
        now: Of the model as it is.
        progress: The part, in (0, 1]; widths fall by equal factors.
    """
    widths = {group.name: group.width for group in now.groups}
    shares = {}
    for group in (whole.groups[i] for i in whole.pruned):
        width = round(group.width * (group.kept / group.width) ** progress)
        if width < widths[group.name]:
            shares[group.name] = width / widths[group.name]
    return shares
