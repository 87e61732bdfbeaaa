"""What every stage of a run may know: where it runs, its model, data and tasks, its metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytorch_lightning import LightningDataModule, LightningModule
from torch import nn

from branchprune.artifacts.export_checks import checked_options
from branchprune.artifacts.export_formats import format_named
from branchprune.artifacts.quantization import SAMPLES
from branchprune.errors import PruneError, not_negative, whole

TaskFactory = Callable[[nn.Module], LightningModule]
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


@dataclass
class MetricConfig:
    """The metric that a run is judged by.

    Args:
        val: Name under which the task logs it at validation.
        test: Name under which the task logs it at the test.
        label: What reports call it.
        mode: Whether it is to be large or small.
        format: How reports show it: "percent" for a fraction, "number" for anything else.
    """

    val: str = "metric/val_acc"
    test: str = "metric/test_acc"
    label: str = "accuracy"
    mode: Literal["max", "min"] = "max"
    format: Literal["percent", "number"] = "percent"


@dataclass
class DenseConfig:
    """Training of the dense model.

    Args:
        epochs: Number of epochs; 0 needs a checkpoint.
        checkpoint: Weights to start from: a .safetensors file, or a state_dict or Lightning
            checkpoint, which is read without running any code in it.
    """

    epochs: int = 10
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        whole("dense.epochs", self.epochs)


@dataclass
class ExportConfig:
    """Write the dense and the small model as files for a runtime, and judge and time them there.

    Args:
        format: As `branchprune export` has them: "onnx", "openvino", "torch-export", "executorch".
        quantize: Bits of the numbers in files beside those of float32, 8 or 16; null: none are.
        samples: Training images that set the ranges of 8 bits.
        max_drop: Points that 8 bits may lose in validation: of a metric in percent, or percent of
            another; null: any. Layers that would cost more stay float32.
        threads: Of the processor, for the times.
    """

    format: str = "onnx"
    quantize: int | None = None
    samples: int = SAMPLES
    max_drop: float | None = 0.5
    threads: int = 1

    def __post_init__(self) -> None:
        checked_options(format_named(self.format), quantize=self.quantize)
        whole("export.samples", self.samples, 1)
        whole("export.threads", self.threads, 1)
        if self.max_drop is not None:
            not_negative("export.max_drop", self.max_drop)


@dataclass
class RunSettings:
    """All of a run's configuration but the pruning, checked and built.

    Attributes:
        name: Name of the experiment.
        method: Label of this way to prune in result lines; None: its algorithm's key.
        preset: Label of the size of the experiment in result lines.
        output: Folder to write.
        results: File to which a finished run adds a line.
        resume: Continue a run that was broken off.
        overwrite: Replace an existing folder.
        seed: Seed of all random numbers.
        fast: Two batches an epoch, one epoch a level: a dry run.
        accelerator: Device, as Lightning names it.
        precision: As Lightning names it; weights are float32.
        compile: Whether to use torch.compile.
        model: The network.
        data: The data module.
        task: Makes the task of the dense training from a network.
        prune_task: Makes the task of the pruning.
        metric: What the run is judged by.
        dense: The dense training.
        export: Files for a runtime, at the end; None: none.
        text: The configuration as YAML.
    """

    name: str
    method: str | None
    preset: str
    output: Path
    results: Path | None
    resume: bool
    overwrite: bool
    seed: int
    fast: bool
    accelerator: str
    precision: Precision
    compile: bool
    model: nn.Module
    data: LightningDataModule
    task: TaskFactory
    prune_task: TaskFactory
    metric: MetricConfig
    dense: DenseConfig
    export: ExportConfig | None
    text: str

    def __post_init__(self) -> None:
        nowhere = {"", ".", ".."} & {*self.name.split("/")} or "\\" in self.name
        if nowhere or not self.name.isprintable():
            raise PruneError(f"name (={self.name!r}) must be one of a file, as x or folder/x")

    @property
    def dataset(self) -> str:
        """What result lines call the data."""
        return str(getattr(self.data, "name", "") or type(self.data).__name__)

    @property
    def results_file(self) -> Path:
        """The file to which a finished run adds a line."""
        return self.results or self.output.parent / "results" / f"{self.name}.jsonl"
