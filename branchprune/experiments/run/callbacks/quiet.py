"""What Lightning says that a run does not need to hear."""

from __future__ import annotations

import logging
import warnings


def quiet_lightning() -> None:
    """Silence notes that do not concern a run whose data set lives in memory."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        "does not have many workers",
        "exists and is not empty",
        "`isinstance.treespec, LeafSpec.`",
    ):
        warnings.filterwarnings("ignore", f".*{message}.*")
