"""One progress bar a stage, with what matters: α, loss, metric, time left."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class StageProgress(Callback):
    """A bar over all batches of a stage; where there is no terminal, a line an epoch.

    Args:
        stage: Name of the stage.
        metric: Validation metric to show.
        console: Where to write.
    """

    def __init__(self, stage: str, metric: str, console: Console) -> None:
        self.stage, self.metric, self.console = stage, metric, console
        self.loss = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        total = (trainer.max_epochs or 1) * float(trainer.num_training_batches)
        self.task = self.bar.add_task(f"[bold]{self.stage}", total=total, state="")
        self.bar.start()

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
        self.bar.update(self.task, advance=1, state=self._state(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a line where there is no bar."""
        if not self.console.is_terminal:
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.console.print(f"{self.stage:6} {epoch}  {self._state(trainer)}", highlight=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar at its end."""
        self.bar.update(self.task, completed=self.bar.tasks[0].total, state=self._state(trainer))
        self.bar.stop()
        done = trainer.current_epoch
        if done < (trainer.max_epochs or 0):
            self.console.print(f"{self.stage}: the schedule ended after {done} epochs")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        if hasattr(self, "bar"):
            self.bar.stop()

    def _state(self, trainer: Trainer) -> str:
        values = trainer.callback_metrics
        alphas = sorted({round(float(v), 3) for k, v in values.items() if k.startswith("alpha/")})
        parts = [f"α {'–'.join(f'{a:g}' for a in (alphas[0], alphas[-1]))}"] if alphas[1:] else []
        parts += [f"α {alphas[0]:g}"] if len(alphas) == 1 else []
        parts.append(f"loss {self.loss:.4f}")
        for label, name in (
            (self.metric.split("/")[-1], self.metric),
            ("branch alone", f"{self.metric}_branch"),
        ):
            if name in values:
                parts.append(f"{label} {float(values[name]):.4f}")
        return "  ".join(parts)
