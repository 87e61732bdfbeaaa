"""What else can be said of learning from few images: what the comparisons vary."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from branchprune.errors import PruneError, not_negative, positive, whole
from branchprune.few_images.augmentation import VIEWS, Mixing
from branchprune.few_images.blended_start import Drawn
from branchprune.few_images.matching import Error, Match
from branchprune.few_images.optimizers import Name
from branchprune.few_images.start import RIDGE

Order = Literal["together", "input first", "robust first"]


@dataclass
class BlendedStart:
    """Blended steps before the narrow ones; see `blended_start`.

    Args:
        steps: How many.
        drawn: What is drawn in each.
        learning_rate: The largest, of one cycle.
        order: Where examples draw, α falls in all groups "together", or in one after another:
            "input first", or "robust first", see `robust_first`.
    """

    steps: int = 500
    drawn: Drawn = "sample"
    learning_rate: float = 0.01
    order: Order = "together"

    def __post_init__(self) -> None:
        whole("few_images.form.blended.steps", self.steps, 1)
        positive("few_images.form.blended.learning_rate", self.learning_rate)
        if self.drawn == "prefix" and self.order != "together":
            raise PruneError(
                f"few_images.form.blended.order (={self.order!r}) goes with drawn sample: a prefix "
                "has the order of the network"
            )


@dataclass
class Finish:
    """What is done to the narrow model when it has learnt.

    Args:
        average: Share of the steps at the end over which the weights are averaged; 0: none.
        recalibrate: Batches of views that BatchNorm takes its statistics from; 0: those it has.
        refit: Batches of views on which what leads to the head is fitted by least squares; 0: none.
    """

    average: float = 0.0
    recalibrate: int = 0
    refit: int = 0

    def __post_init__(self) -> None:
        whole("few_images.form.finish.recalibrate", self.recalibrate)
        whole("few_images.form.finish.refit", self.refit)
        not_negative("few_images.form.finish.average", self.average)
        if self.average > 1:
            raise PruneError(f"few_images.form.finish.average (={self.average}) must be at most 1")
        if self.average and not self.recalibrate:
            raise PruneError(
                f"few_images.form.finish.average (={self.average}) needs recalibrate beside it: "
                "the statistics of BatchNorm are those of other weights"
            )


@dataclass
class Form:
    """A form of learning, as far as the comparisons alone vary it.

    Args:
        folder: Other images to take, as many: files in a folder, resized to the same size.
        match: "junctions": what all layers read, and outputs that are no vectors of classes;
            "head": the same of the last layers; "maps": what is pooled before the last layer;
            "outputs": outputs alone, or the divergence of logits.
        hints_fade: Whether the weight of what layers inside read falls to 0.
        mixing_alpha: α of the Beta distribution of the shares in mixtures; 0: none is mixed.
        mixing: How images are mixed: means of two, rectangles of another, or either of it.
        views: What is made of images, one after the other: crops, colours, noise.
        error: How far features are apart: relatively, or by the mean square.
        steps_a_look: Steps for which a look of the dense model at a batch serves.
        optimizer: "adamw", "muon", or "sgd" as in MiR.
        weight_decay: That of the optimizer.
        ridge: Of the least squares that `criterion.fit` asks for; see `fit_expand`.
        fresh: Forget all weights of the narrow model but those of the head: the control of all.
        blended: Blended steps before; null: none.
        finish: What is done at the end.
    """

    folder: Path | None = None
    match: Match = "junctions"
    hints_fade: bool = True
    mixing_alpha: float = 1.0
    mixing: Mixing = "cutmix"
    views: list[str] = field(default_factory=lambda: ["crops"])
    error: Error = "relative"
    steps_a_look: int = 1
    optimizer: Name = "adamw"
    weight_decay: float = 0.0
    ridge: float = RIDGE
    fresh: bool = False
    blended: BlendedStart | None = None
    finish: Finish = field(default_factory=Finish)

    def __post_init__(self) -> None:
        whole("few_images.form.steps_a_look", self.steps_a_look, 1)
        not_negative("few_images.form.weight_decay", self.weight_decay)
        not_negative("few_images.form.ridge", self.ridge)
        not_negative("few_images.form.mixing_alpha", self.mixing_alpha)
        if self.blended and (self.match not in ("head", "junctions") or self.error != "relative"):
            raise PruneError(
                "few_images.form.blended goes with match head or junctions, and error relative: "
                f"match is {self.match}, error {self.error}"
            )
        for view in self.views:
            if view not in VIEWS:
                raise PruneError(f"few_images.form.views: {view!r} is none of {', '.join(VIEWS)}")
