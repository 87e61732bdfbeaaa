"""What a blended model computes: its multiply-adds at the α that it has."""

from __future__ import annotations

from pytorch_lightning import Trainer

from branchprune.blending.blended import Blended
from branchprune.graph.inputs import tensors
from branchprune.planning.profiling import count_macs


def blended_macs(trainer: Trainer, blended: Blended) -> int:
    """Return the multiply-adds of a forward pass of one example; at α = 0 those of the small model.

    Args:
        trainer: The trainer, which says the precision of inputs.
        blended: The blended model, which is run on the plan's example unless every α is 0.
    """
    if not any(blended.alpha.values()):
        return blended.plan.after.macs
    example = trainer.precision_plugin.convert_input(blended.plan.example)
    batch = next((len(tensor) for tensor in tensors(example) if tensor.dim()), 1)
    return count_macs(blended, example, blended.part) // batch
