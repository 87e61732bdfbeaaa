"""What Lightning and torch say that a run does not need to hear."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Silence notes that do not concern a run: its data may live in memory, and it needs no GPU."""
    lightning = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")
    for name in (*lightning, "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        "does not have many workers",
        "exists and is not empty",
        "`isinstance.treespec, LeafSpec.`",
    ):
        warnings.filterwarnings("ignore", f".*{message}.*")
