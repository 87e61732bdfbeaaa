"""What a person sees of a stage: a line an epoch, and a bar within epochs that take long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

STAGE_WIDTH, EPOCH_WIDTH, NUMBER_WIDTH, LABEL_WIDTH = 14, 9, 9, 12
"""Columns of a line, which has at most 80 with one space between them."""
BAR_AFTER = 3.0
"""Seconds of an epoch after which it gets a bar."""


class StageProgress(Callback):
    """A line an epoch: stage, epoch, α, loss, metric, that of the branch alone, time left.

    Lines have at most 80 columns and stand below a line of headings. On a terminal, a bar shows how
    far an epoch is that takes more than a few seconds, and goes away with it.

    Args:
        stage: Name of the stage.
        metric: Validation metric to show.
        console: Where to write.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        stage: str,
        metric: str,
        console: Console,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.stage, self.metric, self.console, self.clock = stage, metric, console, clock
        self.loss, self.headings = 0.0, ""
        self.bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when the training begins, or goes on."""
        self.began, self.first = self.clock(), trainer.current_epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when the epoch begins."""
        self.epoch_began = self.clock()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar."""
        loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
        self.loss += (loss - self.loss) / (batch_idx + 1)  # the mean of the epoch so far
        self._move(trainer, "training", batch_idx + 1, trainer.num_training_batches)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say on the bar that validation has begun."""
        self._move(trainer, "validating", 0, sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar."""
        before = sum(trainer.num_val_batches[:dataloader_idx])
        total = sum(trainer.num_val_batches)
        self._move(trainer, "validating", before + batch_idx + 1, total)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line of the epoch, below headings where they are new."""
        self._remove_bar()
        cells = self._cells(trainer)
        headings = " ".join(_fit(heading, width) for heading, (_, width) in cells.items())
        if headings != self.headings:
            self.headings = headings
            self._say(headings, style="bold")
        self._say(" ".join(_fit(text, width) for text, width in cells.values()))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say if the schedule took fewer epochs than it might have."""
        done = trainer.current_epoch
        if done < (trainer.max_epochs or 0):
            self._say(f"{self.stage}: the schedule ended after {done} epochs")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._remove_bar()

    def _say(self, line: str, style: str | None = None) -> None:
        self.console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)

    def _cells(self, trainer: Trainer) -> dict[str, tuple[str, int]]:
        """Return the texts of a line and the widths of their columns, by heading."""
        values = trainer.callback_metrics
        epoch = trainer.current_epoch + 1
        cells = {
            "stage": (self.stage, -STAGE_WIDTH),
            "epoch": (f"{epoch}/{trainer.max_epochs}", EPOCH_WIDTH),
        }
        alphas = [float(value) for name, value in values.items() if name.startswith("alpha/")]
        if alphas:
            cells["α"] = _range(alphas), NUMBER_WIDTH
        cells["loss"] = _number(self.loss), NUMBER_WIDTH
        label = self.metric.split("/")[-1]
        for heading, name in ((label, self.metric), ("branch alone", f"{self.metric}_branch")):
            if name in values:
                cells[heading] = _number(float(values[name])), LABEL_WIDTH
        each = (self.clock() - self.began) / (epoch - self.first)
        left = each * ((trainer.max_epochs or epoch) - epoch)
        cells["time left"] = _duration(left), NUMBER_WIDTH
        return cells

    def _move(self, trainer: Trainer, doing: str, done: float, total: float) -> None:
        """Move the bar, if the epoch takes long enough for one."""
        if not self.console.is_terminal or trainer.sanity_checking:
            return
        if self.bar is None:
            if self.clock() - self.epoch_began < BAR_AFTER:
                return
            self.bar = self._make_bar()
            self.bar.add_task("")
            self.bar.start()
        [task] = self.bar.tasks
        what = f"{_fit(self.stage, -STAGE_WIDTH)} {trainer.current_epoch + 1:4} {doing:10}"
        if what != task.description:
            self.bar.reset(task.id, total=total, description=what)
        self.bar.update(task.id, completed=done)

    def _make_bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
        )

    def _remove_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _number(value: float) -> str:
    return f"{value:.4f}" if not value or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


def _range(values: list[float]) -> str:
    low, high = (f"{round(value, 3):g}" for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def _fit(text: str, width: int) -> str:
    """Return a text of a width, on the right; on the left where the width is negative."""
    room = abs(width)
    text = text if len(text) <= room else f"{text[: room - 1]}…"
    return text.ljust(room) if width < 0 else text.rjust(room)


def _duration(seconds: float) -> str:
    """Return hours, minutes and seconds, as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
