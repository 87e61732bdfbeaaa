"""The end of a run: both models as files for a runtime, and how good and fast they are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from branchprune.artifacts.export import export
from branchprune.artifacts.export_formats import format_named
from branchprune.artifacts.exported import Exported
from branchprune.artifacts.file_format import INT8, FileFormat
from branchprune.artifacts.parity import outputs_of
from branchprune.artifacts.quantization import JUDGED
from branchprune.errors import PruneError
from branchprune.experiments.run.folder import EXPORTED
from branchprune.experiments.run.one_line import said
from branchprune.experiments.run.settings import ExportConfig, RunSettings
from branchprune.experiments.run.stages import Stages
from branchprune.runtimes.in_runtime import InRuntime
from branchprune.runtimes.latency import step_latencies

FLOAT = 32
"""Bits of the numbers in files that are not quantised."""


def check_export(settings: RunSettings, task: LightningModule) -> None:
    """Raise PruneError where files could not be written or judged, if some are asked for."""
    if settings.export is None:
        return
    format_named(settings.export.format).check_installed()
    if not isinstance(getattr(task, "model", None), nn.Module):
        raise PruneError(
            f"export: the task (a {type(task).__name__}) must have its network as .model, where a "
            "file takes its place to be judged"
        )


def export_models(
    settings: RunSettings, stages: Stages, models: Mapping[str, nn.Module], example: Tensor
) -> dict[str, Any] | None:
    """Write, judge and time files of the models of a run.

    Args:
        settings: The run.
        stages: Judge models.
        models: By what they are called, on the CPU.
        example: Input of one example.

    Returns:
        What result.json says of it, and of a file that cannot be written, why not. None: none is
        asked for.
    """
    asked = settings.export
    if asked is None:
        return None
    kind = format_named(asked.format)
    folder = settings.output / EXPORTED
    folder.mkdir(parents=True, exist_ok=True)
    exporting = _Exporting(settings, asked, stages, kind, example)
    if stages.rehearsed:
        path = _path(folder, "dense", FLOAT, kind)
        export(models["dense"], example, path, overwrite=True)
        exporting.judged(models["dense"], path)
        return None
    bits = [FLOAT] if asked.quantize is None else [FLOAT, asked.quantize]
    files = [exporting.file(name, model, each) for name, model in models.items() for each in bits]
    runtime = kind.runtime(asked.threads)
    written = [file for file in files if "failed" not in file]
    steps = [runtime.opened(folder / file["file"], file["file"])(example) for file in written]
    seconds = 0.0 if settings.fast else 1.0 * len(steps)
    times = step_latencies(steps, len(example), seconds) if steps else []
    for file, latency in zip(written, times, strict=True):
        file["latency"] = asdict(latency)
    return {
        "format": kind.name,
        "runtime": f"{runtime.name} {runtime.version()}",
        "precision": kind.precision(),
        "threads": asked.threads,
        "files": files,
    }


def _path(folder: Path, name: str, bits: int, kind: FileFormat) -> Path:
    return folder / f"{name}{'' if bits == FLOAT else f'_{bits}_bits'}{kind.suffix}"


@dataclass
class _Exporting:
    """What the files of a run have in common."""

    settings: RunSettings
    asked: ExportConfig
    stages: Stages
    kind: FileFormat
    example: Tensor

    def file(self, name: str, model: nn.Module, bits: int) -> dict[str, Any]:
        """Write a file of a model, and judge it; return what became of it."""
        path = _path(self.settings.output / EXPORTED, name, bits, self.kind)
        about = {"model": name, "bits": bits, "file": path.name}
        quantized: dict[str, Any] = {} if bits == FLOAT else {"quantize": bits}
        if bits == INT8:
            quantized |= {
                "calibration": self._images(),
                "samples": self.asked.samples,
                "max_drop": self.asked.max_drop,
                "score": partial(self._points, model),
            }
        self.stages.say(f"writing {path}")
        try:
            written = export(model, self.example, path, overwrite=True, **quantized)
            return {**about, **_found(written), **self.judged(model, path)}
        except (
            Exception
        ) as error:  # of a user's task, too: what has been trained is not lost for it
            self.stages.say(f"export: {said(error)}")
            return {**about, "failed": said(error)}

    def judged(self, model: nn.Module, path: Path) -> dict[str, float]:
        """Return the metric of the run in validation and test, as the runtime computes."""
        opened = self.kind.runtime(self.asked.threads).opened(path, path.name)
        module = InRuntime(opened, outputs_of(model, self.example), largest=self.kind.largest)
        task = self._task(model, module)
        return self.stages.pick(self.stages.judge(task))

    def _task(self, model: nn.Module, module: nn.Module) -> LightningModule:
        """Return the task of the dense training with a module in place of its network."""
        task = self.settings.task(model)
        task.model = module
        return task

    def _points(self, model: nn.Module, module: nn.Module) -> float:
        """Return the metric in validation, in points of which more are better."""
        metric = self.settings.metric
        value = self.stages.score(self._task(model, module))
        sign = 1 if metric.mode == "max" else -1
        if metric.format == "percent":
            return 100 * sign * value
        return 100 * sign * value / (abs(self.stages.score(self._task(model, model))) or 1.0)

    def _images(self) -> Tensor:
        """Return training images: some set ranges, the others judge whether outputs agree."""
        wanted, found, keys = self.asked.samples + JUDGED, list[Tensor](), self.stages.keys
        for batch in self.settings.data.train_dataloader():
            found.append(keys.input_of(batch))
            if sum(map(len, found)) >= wanted:
                break
        return torch.cat(found)[:wanted].cpu()


def _found(written: Exported) -> dict[str, Any]:
    """Return what there is to say of a file."""
    found: dict[str, Any] = {"bytes": written.bytes, "parity": max(written.parity.values())}
    judged = written.quantized
    if judged is None:
        return found
    return found | {
        "agreement": asdict(judged.judged),
        "rounded": judged.rounded,
        "products": judged.products,
        "kept": [*judged.kept],
        "errors": dict(judged.errors),
    }
