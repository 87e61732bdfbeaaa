"""Do the optimizers of a training hold what is to be trained?"""

from __future__ import annotations

from pytorch_lightning import Trainer

from branchprune.blending.blended import Blended
from branchprune.errors import PruneError


def check_optimizers(trainer: Trainer, blended: Blended) -> None:
    """Check that every parameter is in an optimizer; one built from some layers would miss some.

    Args:
        trainer: The trainer, once it has its optimizers.
        blended: The blended model.

    Raises:
        PruneError: A parameter that is to be trained is in none.
    """
    trained = {
        id(parameter)
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in blended.named_parameters():
        if parameter.requires_grad and id(parameter) not in trained:
            raise PruneError(
                f"no optimizer holds the parameter {name} of the blended model: build it "
                "from self.parameters()"
            )
