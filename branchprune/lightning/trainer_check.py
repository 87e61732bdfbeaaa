"""Settings of a Trainer with which pruning cannot work."""

from __future__ import annotations

from pytorch_lightning import Trainer

from branchprune.errors import PruneError

_SHARDING = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy")


def check_trainer(trainer: Trainer) -> None:
    """Raise a PruneError for a precision or strategy by which layers do not stay what they are."""
    if str(trainer.precision).startswith("transformer-engine"):
        raise PruneError(
            f"precision (={trainer.precision!r}) replaces layers by its own, which cannot be "
            "folded: use 'bf16-mixed', 'bf16-true' or another"
        )
    kind = next((k.__name__ for k in type(trainer.strategy).__mro__ if k.__name__ in _SHARDING), "")
    if kind:
        raise PruneError(
            f"strategy (a {kind}) cuts weights into pieces, and pruning needs whole ones: use "
            "strategy='ddp'"
        )
