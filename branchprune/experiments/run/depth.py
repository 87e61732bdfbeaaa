"""Depth: residual blocks that are left out before channels go, at once or by a falling α."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from branchprune.blending.block_skipping import Shallowing
from branchprune.criteria.named import LABELLED
from branchprune.errors import PruneError, whole
from branchprune.experiments.run.blend import levels_of
from branchprune.experiments.run.budget import Epoch
from branchprune.experiments.run.shrinking import Algorithm, Setup
from branchprune.experiments.run.stages import Stages
from branchprune.experiments.run.student import train_student
from branchprune.graph.structure import Structure
from branchprune.planning.residual_blocks import blocks, holding_none, without
from branchprune.targets.depth import ranked, shortened
from branchprune.targets.error_curves import RECONSTRUCTION

STAGE = "depth"
AUTO = "auto"
"""Asks for as many blocks as serve a target best."""


@dataclass
class DepthConfig:
    """Leave residual blocks out before channels go; what is left is pruned.

    Args:
        blocks: Paths of the blocks; or how many: those without which the output changes least for
            their multiply-adds, of all in which the widths name nothing; "auto": as many of these
            as serve the target of the widths best.
        levels: α of these blocks beside their shortcuts, as `blend.levels`; [0.0]: at once.
        hold: Epochs at each level above 0.
        final_hold: Epochs without them.
        calibration: Training batches on which blocks are chosen, if the criterion sees fewer.
    """

    blocks: int | list[str] | Literal["auto"] = 1
    levels: dict[str, float] | list[float] = field(default_factory=lambda: {"steps": 0.25})
    hold: int = 1
    final_hold: int = 1
    calibration: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.blocks, list) and self.blocks != AUTO:
            whole("depth.blocks", self.blocks, 1)
        for name in ("hold", "calibration"):
            whole(f"depth.{name}", getattr(self, name), 1)
        whole("depth.final_hold", self.final_hold)
        levels_of(self.levels)  # finds what is wrong

    @property
    def alphas(self) -> list[float]:
        """α by epoch."""
        falling = [alpha for alpha in levels_of(self.levels) if alpha > 0]
        return [alpha for alpha in falling for _ in range(self.hold)] + [0.0] * self.final_hold

    @property
    def pending(self) -> str:
        """What a first plan says of blocks that are chosen later; empty: nothing."""
        if isinstance(self.blocks, list):
            return ""
        shown = "none" if isinstance(self.blocks, str) else f"the last {self.blocks}"
        return f"blocks: which go is measured later; left out here: {shown}"

    def some(self, model: nn.Module, example: Tensor, stay: Sequence[str] = ()) -> list[str]:
        """Return the blocks that are named, else as many, before they are chosen; "auto": none.

        Args:
            model: The dense model.
            example: Input of one example.
            stay: Paths of modules whose blocks stay.

        Raises:
            PruneError: A name is no block, or there are not so many.
        """
        if isinstance(self.blocks, list):
            without(model, self.blocks, example)  # finds what is wrong
            return self.blocks
        known = [each.name for each in holding_none(blocks(model, example), stay)]
        auto = isinstance(self.blocks, str)
        count = 1 if isinstance(self.blocks, str) else self.blocks
        if len(known) < count:
            inside = f", in which widths name none of {', '.join(stay)}" if stay else ""
            way_out = f"ask for fewer of {', '.join(known)}" if known else "set prune.depth to null"
            raise PruneError(
                f"depth.blocks (={self.blocks!r}): the model has {len(known)} residual blocks that "
                f"can be left out{inside}: {way_out}"
            )
        return [] if auto else known[-count:]

    def chosen(
        self,
        setup: Setup,
        algorithm: Algorithm,
        dense: nn.Module,
        structure: Structure,
        stages: Stages,
    ) -> list[str]:
        """Return the blocks to leave out, where they are not named, by what an algorithm sees.

        Args:
            setup: What it works with.
            algorithm: By which what is left is pruned.
            dense: The trained model.
            structure: Its structure.
            stages: They know what batches are like.
        """
        seed, own = setup.settings.seed, setup.criterion
        seed_everything(seed, workers=True, verbose=False)  # the order of the data
        more = replace(own, calibration=max(own.calibration, self.calibration))
        seen = algorithm.seen(replace(setup, criterion=more), stages)
        free = holding_none(blocks(dense, setup.example), setup.widths.named)
        if isinstance(self.blocks, int):
            return [each.name for each in ranked(dense, structure, free, seen)[: self.blocks]]
        # Of shallower models there are no gradients.
        criterion = RECONSTRUCTION if setup.init in LABELLED else setup.init
        widths = partial(
            setup.widths.plan,
            example=setup.example,
            batches=seen,
            criterion=criterion,
            seed=seed,
        )
        return [*shortened(dense, structure, free, widths, seen, criterion).left_out]

    def epochs_to_train(
        self, dense: nn.Module, example: Tensor, stay: Sequence[str] = ()
    ) -> Sequence[Epoch]:
        """Return one `Epoch` per training epoch, to count its cost."""
        names = self.some(dense, example, stay)

        def fading(alpha: float) -> nn.Module:
            found = Shallowing(dense, names, example)
            found.alpha = alpha
            return found

        kinds = [alpha if alpha in (0.0, 1.0) else 0.5 for alpha in self.alphas]
        return [Epoch((STAGE, kind), partial(fading, kind)) for kind in kinds]


def settled(config: DepthConfig, stages: Stages, choose: Callable[[], list[str]]) -> DepthConfig:
    """Return what names the blocks, chosen now or by an earlier run.

    Args:
        config: Which blocks, or how many.
        stages: Where to train.
        choose: Chooses them, where they are not named.
    """
    found = stages.finished(f"{STAGE}_blocks")
    if found is None:
        names = config.blocks if isinstance(config.blocks, list) else choose()
        stages.finish(f"{STAGE}_blocks", blocks=names)
    else:
        names = found["blocks"]
    stages.say(f"left out: {', '.join(names) or 'no block'}")
    return replace(config, blocks=names)


def shallower(config: DepthConfig, dense: nn.Module, example: Tensor, stages: Stages) -> nn.Module:
    """Return the model without some blocks, trained meanwhile, or what an earlier run made of it.

    Args:
        config: Which blocks, by name, and how.
        dense: The trained model; it is not changed.
        example: Input of one example.
        stages: Where to train.
    """
    fading = Shallowing(dense, config.some(dense, example), example)
    if config.alphas:
        fade = _Fade(fading, config)
        train_student(stages, f"{STAGE}/shallow", dense, fading, len(config.alphas), fade)
    fading.alpha = 0.0
    return fading.collapsed().cpu()


class _Fade(Callback):
    """Sets α at the start of every epoch."""

    def __init__(self, fading: Shallowing, config: DepthConfig) -> None:
        self.fading, self.alphas = fading, config.alphas

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set it, and log it."""
        self.fading.alpha = self.alphas[min(trainer.current_epoch, len(self.alphas) - 1)]
        pl_module.log("alpha/depth", self.fading.alpha)
