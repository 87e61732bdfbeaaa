"""Checkpoints from which a killed training continues as if nothing had happened."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from branchprune.artifacts.torch_checkpoint import damage, is_zip
from branchprune.errors import Failed

NAMES = ("last.ckpt", "previous.ckpt")


class EpochCheckpoint(Checkpoint):
    """Write a checkpoint when an epoch begins, keep the one before, and continue from either.

    A checkpoint is written beside the last one and then takes its name, so that a full disk or a
    kill in the middle of writing costs no more than the epoch. With the states of all random
    generators, a training on a CPU continues bit for bit. Nothing is written before the first
    epoch, which is begun anew.

    Lightning's own record of its loops is left out: it is made for checkpoints in other places,
    and the number of the epoch and the steps say all there is to say between two epochs.

    Args:
        folder: Where to write last.ckpt and previous.ckpt.

    Raises:
        PruneError: A checkpoint cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, 0.0
        self.place: dict[str, int] = {}
        self.generators: dict[str, Any] | None = None
        self.since = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go to the epoch of the checkpoint."""
        if self.generators is None:
            return
        loop, epoch = trainer.fit_loop, self.place["epoch"]
        progress: Any = loop.epoch_progress.current
        progress.ready = progress.started = progress.processed = progress.completed = epoch
        inner = loop.epoch_loop
        inner._batches_that_stepped = self.place["batches"]
        steps = self.place["steps"]
        inner.automatic_optimization.optim_progress.optimizer.step.total.completed = steps
        inner.manual_optimization.optim_step_progress.total.completed = steps

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint; in a training that continues, first take up the generators."""
        if self.generators is not None:
            _set_generators(self.generators)
            self.generators = None
        elif trainer.current_epoch:
            self.place = {
                "epoch": trainer.current_epoch,
                "batches": trainer.fit_loop.epoch_loop._batches_that_stepped,
                "steps": trainer.global_step,
            }
            for logger in trainer.loggers:
                logger.save()
            self._write(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave out the state of the loops."""
        checkpoint.pop("loops", None)

    def _write(self, trainer: Trainer) -> None:
        last, previous = (self.folder / name for name in NAMES)
        part = self.folder / "part.ckpt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(part)
            if last.exists():
                last.replace(previous)
            part.replace(last)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise Failed(f"checkpoint {last} cannot be written: {error}") from error

    def spent(self) -> float:
        """Return the seconds of the training so far, those before a kill included."""
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now
        return self.seconds

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the random generators, and the time spent."""
        return {"generators": _get_generators(), "seconds": self.spent(), "place": self.place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue."""
        self.generators, self.seconds = state_dict["generators"], state_dict["seconds"]
        self.place, self.since = state_dict["place"], time.perf_counter()


def find_checkpoint(folder: Path) -> tuple[Path | None, str]:
    """Find the newest checkpoint in a folder that is whole.

    Returns:
        Its path, None if there is none, and what has to be said about torn ones.
    """
    notes: list[str] = []
    for path in (folder / name for name in NAMES):
        if not path.exists():
            continue
        torn = damage(path) if is_zip(path) else "it is no zip file"
        if torn is None:
            return path, "; ".join(notes)
        notes.append(f"{path} is torn ({torn}): one epoch more is lost")
    return None, "; ".join(notes)


def _get_generators() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
    }


def _set_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"].cpu())
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    version, state, gauss = states["python"]
    random.setstate((version, tuple(state), gauss))
    np.random.set_state(states["numpy"])
