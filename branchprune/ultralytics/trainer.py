"""Parts of a trainer of ultralytics: one keeps the widths of a small model, one makes it small."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from branchprune.blending.attach import Init, attach
from branchprune.blending.blended import Blended
from branchprune.blending.path_sampling import Mixing
from branchprune.blending.schedules import Schedule
from branchprune.blending.stand_in import stand_in
from branchprune.collapsing.collapse import collapse
from branchprune.errors import PruneError
from branchprune.graph.full_shapes import full_shapes
from branchprune.planning.plan import plan

LEAST = 64
"""Height and width of the example: the coarsest maps of a YOLO are a 32nd, and norms want two."""
UNTRIED = {
    "compile": False,
    "distill_model": None,
    "quantize": None,
    "resume": False,
    "time": None,
}
"""Options of its trainers that change the model or the epochs, and what they are without."""


class KeepWidths:
    """Lets a trainer of ultralytics train a small model as it is.

    Its trainers build the model anew from its YAML, at full width, and load what fits of the
    weights: of a collapsed model nearly nothing, without an error. Put this before the trainer:

    ```python
    class Trainer(KeepWidths, DetectionTrainer):
        pass


    YOLO("small.pt").train(trainer=Trainer, data="data.yaml", epochs=20)
    ```

    Other models are built as ever.
    """

    data: dict[str, Any]

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
        """Return a copy of a collapsed model; of any other what the trainer makes of it.

        Args:
            cfg: Name or content of the YAML.
            weights: The model.
            verbose: Whether to print layers.

        Raises:
            PruneError: The collapsed model has another number of classes than the data.
        """
        if weights is None or full_shapes(weights) is None:
            trainer: Any = super()
            model: nn.Module = trainer.get_model(cfg, weights, verbose)
            return model
        names, wanted = weights.names, self.data["nc"]
        if len(names) != wanted:
            raise PruneError(
                f"the model was collapsed with {len(names)} classes and the data has {wanted}: "
                "train the dense model on this data first, and prune that"
            )
        small: nn.Module = copy.deepcopy(weights)
        return small.float().requires_grad_(True)


class BranchPruning(KeepWidths):
    """Lets a trainer of ultralytics prune the model while it trains.

    ```python
    class Trainer(BranchPruning, DetectionTrainer):
        schedule = bp.Schedule(bp.steps(0.1), final_hold=10)
        keep = 0.5


    yolo = YOLO("dense.pt")
    yolo.train(trainer=Trainer, data="data.yaml", epochs=Trainer.schedule.max_epochs)
    yolo.val()  # the small model, as are the files best.pt and last.pt
    ```

    α follows the schedule; at its end it stays 0 as long as the trainer goes on. From α = 0 on
    checkpoints are written where the fitness is the best so far, and at the end. They hold the
    collapsed average of the weights: a plain model of ultralytics. Metrics of the epochs before
    are those of the blended average. A `Plateau` watches
    the trainer's fitness. Such a training cannot be resumed; a small model is trained further with
    `KeepWidths`.

    Attributes:
        schedule: α of every epoch.
        keep: The fraction of channels that stay; see `branchprune.plan`.
        init: How the branch starts; see `branchprune.attach`.
        mixing: How training mixes both paths; see there.
    """

    schedule = Schedule(final_hold=10)
    keep: float | dict[str, float] = 0.5
    init: Init = "l1"
    mixing: Mixing = "sum"
    args: Any
    model: Any
    ema: Any
    stopper: Any
    epochs: int
    world_size: int
    best_fitness: float | None
    fitness: float | None
    stop: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trainer: Any = self
        self.schedule = copy.deepcopy(self.schedule)
        self.schedule.reset()
        _check(self.args, self.world_size, self.epochs, self.schedule)
        trainer.add_callback("on_train_epoch_start", _set_alpha)
        trainer.add_callback("on_train_epoch_end", _set_alpha)
        trainer.add_callback("on_fit_epoch_end", _advance)

    def attach(self, model: nn.Module) -> Blended:
        """Return the blended model; where the attributes do not say enough, write your own.

        Args:
            model: The dense model, built for the data.
        """
        channels = self.data.get("channels", 3)
        example = torch.rand(2, channels, LEAST, LEAST)
        planned = plan(model, example, keep=self.keep)
        return attach(model, planned, self.init, mixing=self.mixing)

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
        """Return the model that is trained: blended, of the class that the trainer expects."""
        model: Any = super().get_model(cfg, weights, verbose)
        if hasattr(model, "end2end"):  # as the validator will set it
            model.end2end = self.args.nms is False
        return stand_in(self.attach(model), "predict")

    def save_model(self) -> bool:
        """Write checkpoints of the collapsed average: the best from α = 0 on, and the last."""
        average = self.ema.ema
        due = self.stop or self.fitness == self.best_fitness
        if not due or any(average.blended.alpha.values()):
            return False
        self.ema.ema = collapsed(average)
        trainer: Any = super()
        try:
            written: bool = trainer.save_model()
            return written
        finally:
            self.ema.ema = average


def collapsed(model: nn.Module) -> nn.Module:
    """Return the small model of a stand-in, with what a trainer has set on that."""
    small = collapse(model.blended)  # type: ignore[arg-type]
    own = vars(nn.Module()).keys()
    for name, value in vars(model).items():
        if name not in own and name != "criterion":
            setattr(small, name, value)
    return small


def _check(args: Any, world_size: int, epochs: int, schedule: Schedule) -> None:
    """Raise if a trainer is asked for what has not been tried, or ends before α is 0."""
    for name, without in UNTRIED.items():
        if (value := getattr(args, name, without)) != without:
            raise PruneError(f"{name} (={value!r}) must be {without!r} while a model is pruned")
    if world_size > 1:
        raise PruneError(f"device (={args.device!r}) must be one device while a model is pruned")
    if epochs < schedule.max_epochs:
        raise PruneError(
            f"epochs (={epochs}) must be at least {schedule.max_epochs}, which the schedule takes"
        )


def _set_alpha(trainer: BranchPruning) -> None:
    """Set α of the model and of its average, which would be an average of α."""
    for model in (trainer.model, trainer.ema.ema):
        model.blended.alpha = trainer.schedule.alpha


def _advance(trainer: BranchPruning) -> None:
    """End an epoch; what is best, and when to stop, is judged from α = 0 on."""
    if trainer.fitness is not None:
        trainer.schedule.report(trainer.fitness)
    if any(trainer.ema.ema.blended.alpha.values()):
        trainer.best_fitness, trainer.stopper.best_fitness = None, 0.0
    if not trainer.schedule.done:
        trainer.schedule.advance()
