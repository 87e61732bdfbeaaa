"""The pruning section of a configuration: it joins what its components take."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

from branchprune.errors import PruneError
from branchprune.experiments.run.blend import BlendConfig
from branchprune.experiments.run.budget import CostConfig
from branchprune.experiments.run.criterion import CriterionConfig
from branchprune.experiments.run.cut import CutConfig
from branchprune.experiments.run.depth import AUTO, DepthConfig
from branchprune.experiments.run.few_images import FewImagesConfig
from branchprune.experiments.run.finetune import FinetuneConfig
from branchprune.experiments.run.rounds import RoundsConfig
from branchprune.experiments.run.shrinking import Algorithm
from branchprune.experiments.run.sparsity_training import SparsifyConfig
from branchprune.experiments.run.torch_pruning import TorchPruningConfig
from branchprune.experiments.run.widths import WidthsConfig


@dataclass
class PruneConfig:
    """Pruning: how wide, which channels, by which algorithm, what comes before and after.

    Args:
        widths: How many channels stay, and where.
        criterion: Which channels stay; null: those of the largest L1 norm. Torch-Pruning has its
            own.
        blend: Algorithm, one of four: blend branches in while α falls from 1 to 0.
        cut: Algorithm, one of four: remove the channels at once.
        torch_pruning: Algorithm, one of four: let Torch-Pruning remove them.
        few_images: Algorithm, one of four: match the dense model on a few images without labels.
        depth: Leave residual blocks out first; null: not.
        sparsify: Train the wide model with a penalty first; null: not.
        finetune: Train the small model afterwards; null: not.
        rounds: Prune in rounds, each from the small model of the one before; null: once.
        cost: What all of this may cost: decides `blend.final_hold`, or `finetune.epochs`.
        task: Arguments of the task that differ from those of the dense training; null: none.
    """

    widths: WidthsConfig = field(default_factory=WidthsConfig)
    criterion: CriterionConfig | None = None
    blend: BlendConfig | None = None
    cut: CutConfig | None = None
    torch_pruning: TorchPruningConfig | None = None
    few_images: FewImagesConfig | None = None
    depth: DepthConfig | None = None
    sparsify: SparsifyConfig | None = None
    finetune: FinetuneConfig | None = None
    rounds: RoundsConfig | None = None
    cost: CostConfig | None = None
    task: dict[str, Any] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._choice()
        self._check_algorithm()
        self._check_cost()

    @property
    def algorithm(self) -> Algorithm:
        """The one algorithm that is set."""
        return self._choice()[1]

    @property
    def algorithm_key(self) -> str:
        """The key of the one algorithm that is set."""
        return self._choice()[0]

    def _choice(self) -> tuple[str, Algorithm]:
        """Return the algorithm that is set, and its key."""
        sections = {section.name: getattr(self, section.name) for section in fields(self)}
        chosen = [(name, each) for name, each in sections.items() if isinstance(each, Algorithm)]
        if len(chosen) == 1:
            return chosen[0]
        given, known = " and ".join(name for name, _ in chosen), ", ".join(algorithms())
        if not chosen:
            raise PruneError(
                f"prune needs one algorithm of {known}, and none is set: such as "
                "`blend: {}`, or --prune.cut {}"
            )
        raise PruneError(
            f"prune needs one algorithm of {known}, and {given} are set: unset all but one, "
            f"such as by `{chosen[0][0]}: null`, or --prune.{chosen[0][0]} null"
        )

    def _check_algorithm(self) -> None:
        if self.torch_pruning is not None and self.criterion is not None:
            raise PruneError(
                f"criterion (={self.criterion.name}): torch_pruning "
                f"(={self.torch_pruning.pruner}) chooses channels by its own, and fits nothing: "
                "`criterion: null`, or --prune.criterion null"
            )
        if self.rounds is not None and self.depth is not None:
            raise PruneError("depth and rounds exclude each other: set one of both to null")
        if self.depth is not None and self.depth.blocks == AUTO and self.widths.target is None:
            raise PruneError(
                f"depth.blocks (={AUTO!r}) are chosen for a target: set widths.target, or say how "
                "many"
            )
        if self.rounds is not None and self.cut is not None and self.cut.rewind is not None:
            raise PruneError(
                f"cut.rewind (={self.cut.rewind}) is of the dense model, which rounds leave: "
                "set `rounds: null`"
            )
        fresh = self.finetune is not None and self.finetune.fresh
        if fresh and self.cut is not None and self.cut.rewind is not None:
            raise PruneError(
                "finetune.fresh (=true) would throw away the weights of cut.rewind "
                f"(={self.cut.rewind}): set one of both to null"
            )
        if self.blend is not None and fresh:
            raise PruneError(
                "finetune.fresh (=true) would throw away what is blended: set cut instead of blend"
            )

    def _check_cost(self) -> None:
        if self.cost is None:
            return
        rounds = self.rounds
        if rounds is not None and (not rounds.foreseeable or self.blend is not None):
            raise PruneError(
                f"cost: what rounds cost is not known before, unless gradual (={rounds.gradual}) "
                f"is true, max_drop (={rounds.max_drop}) is null, and blend is not set"
            )
        if self.cost.train_macs and self.blend is not None and self.blend.mixing == "step":
            raise PruneError(
                "cost.train_macs: what an epoch costs depends on what blend.mixing (='step') draws"
            )

    def with_last_stage(self, epochs: int) -> PruneConfig:
        """Return a copy whose last stage lasts `epochs` epochs.

        Raises:
            PruneError: Nothing is trained, or how long depends on a metric.
        """
        if self.finetune is not None:
            return replace(self, finetune=replace(self.finetune, epochs=epochs))
        name, algorithm = self._choice()
        changed: dict[str, Any] = {name: algorithm.with_last_stage(epochs)}
        return replace(self, **changed)

    def hyperparameters(self) -> dict[str, Any]:
        """Return the sections that are set, as TensorBoard's table shows them."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {"algorithm": self._choice()[0], **given}


NESTED = ("depth",)
"""Sections that the help shows as one option each, as few set them."""


def prune_sections() -> dict[str, type]:
    """Return the dataclass of each section of `prune` whose keys are options, by its key."""
    hints = get_type_hints(PruneConfig)
    kinds = {name: get_args(hint) or (hint,) for name, hint in hints.items()}
    return {
        name: kind
        for name, (kind, *_) in kinds.items()
        if isinstance(kind, type) and is_dataclass(kind) and name not in NESTED
    }


def algorithms() -> list[str]:
    """Return the keys of the sections that are an `Algorithm`, one of which must be set."""
    return [name for name, kind in prune_sections().items() if issubclass(kind, Algorithm)]
