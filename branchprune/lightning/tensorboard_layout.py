"""TensorBoard's custom scalar charts, which show several curves in one."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Trainer

CHARTS = {
    "alpha": {"all groups": ["Multiline", ["alpha/.*"]]},
    "share": {"of the branch, by layer": ["Multiline", ["share/.*"]]},
    "metric": {"blended and branch alone": ["Multiline", ["metric/.*"]]},
}


def add_charts(trainer: Trainer) -> None:
    """Put all α curves on one chart, all shares on another, and both metrics on a third."""
    for logger in trainer.loggers:
        writer: Any = getattr(logger, "experiment", None)
        if hasattr(writer, "add_custom_scalars"):
            writer.add_custom_scalars(CHARTS)
