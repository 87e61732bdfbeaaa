"""A YOLO from scratch, pruned in the trainer of ultralytics: mAP and cost before and after.

```
python scripts/yolo.py configs/yolo.yaml --record
```

Options are read from YAML files, with variants by `--variant`, and from the command line, which
overrides them. Shapes are drawn, a dense detector is trained on them, and pruned from there in two
ways over the same number of epochs: blended, α in steps from 1 to 0, and cut, α = 0 at once. As a
control the dense one is trained on for as many epochs. Each is saved, validated and exported by
ultralytics itself; mAP is that on the test images, which no training has seen. Latency is that of
one image, dense and small in turns. Needs the extra `yolo`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from yolo_table import DENSE, FURTHER, METHODS, table

import branchprune as bp
from branchprune.benchmarks.options import options_parser
from branchprune.data import draw_shapes
from branchprune.experiments import environment
from branchprune.experiments.arguments import files_as_options
from branchprune.experiments.files import append_line
from branchprune.planning.profiling import count_macs
from branchprune.runtimes.latency import compare_latency
from branchprune.ultralytics import BranchPruning

os.environ.setdefault("YOLO_AUTOINSTALL", "false")  # what is missing is an error, not a download

from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

RECORD = "yolo.jsonl"
LEFT_OUT = ("folder", "record")
"""Options that do not change what is measured."""


@dataclass
class Options:
    """Options of the script.

    Args:
        model: YAML of a detector of ultralytics.
        size: Height and width of the images.
        images: Number of training images.
        epochs: Epochs of the dense training.
        hold: Epochs at each of the levels 0.8, 0.6, 0.4 and 0.2.
        final_hold: Epochs at α = 0.
        keep: Fraction of the channels that stay.
        batch: Images a step.
        learning_rate: Of AdamW.
        seed: Of the images and of the trainings.
        folder: Where the runs go.
        record: Add lines to the committed results.
    """

    model: str = "yolov8n.yaml"
    size: int = 64
    images: int = 240
    epochs: int = 30
    hold: int = 2
    final_hold: int = 12
    keep: float = 0.5
    batch: int = 8
    learning_rate: float = 0.002
    seed: int = 0
    folder: Path = Path("runs/yolo")
    record: bool = False

    def schedule(self, method: str) -> bp.Schedule:
        """Return α of every epoch of a method."""
        blended = bp.Schedule(bp.steps(0.2), self.hold, self.final_hold)
        return blended if method == "blended" else bp.Schedule([0.0], blended.max_epochs)

    def epochs_of(self, method: str) -> int:
        """Return how many epochs a method trains, from the dense model on."""
        return self.epochs if method == DENSE else self.schedule(method).max_epochs


def main(args: Sequence[str] | None = None) -> int:
    """Train, prune, measure, and print the table."""
    args = sys.argv[1:] if args is None else args
    options = parse_options(args)
    output = environment.recorded(RECORD) if options.record else None
    data = draw_shapes(
        options.folder / "shapes", options.images, size=options.size, seed=options.seed
    )
    lines: list[dict[str, Any]] = []
    for method in METHODS:
        since = time.monotonic()
        yolo = trained(method, options, data)
        seconds = time.monotonic() - since
        lines.append(line(method, measured(yolo, options, data), seconds, options, args))
        if output is not None:
            append_line(output, lines[-1])
    print(table(lines))
    return 0


def parse_options(args: Sequence[str]) -> Options:
    """Return the options that YAML files, which come first, and the command line give."""
    parser = options_parser("yolo.py", Options, description=__doc__.split("\n", 1)[0])
    parser.add_argument("--config", action="config", help="YAML file; later options override it")
    try:
        found = vars(parser.parse_args(files_as_options(args)))
    except bp.PruneError as error:
        parser.error(str(error))
    return Options(**{key: value for key, value in found.items() if key != "config"})


def trained(method: str, options: Options, data: Path) -> YOLO:
    """Return a detector as its trainer leaves it: the best checkpoint, read again."""
    dense = method == DENSE
    yolo = YOLO(options.model if dense else _weights(options, DENSE))
    whole = method in (DENSE, FURTHER)
    yolo.train(
        trainer=None if whole else pruning(options, options.schedule(method)),
        data=str(data),
        epochs=options.epochs_of(method),
        imgsz=options.size,
        batch=options.batch,
        nbs=options.batch,  # an update for each batch
        optimizer="AdamW",
        lr0=options.learning_rate,
        warmup_epochs=1,
        mosaic=0.0,
        scale=0.2,
        seed=options.seed,
        name=_folder(method),
        **_quiet(options),
    )
    return yolo


def pruning(options: Options, alphas: bp.Schedule) -> type[DetectionTrainer]:
    """Return the trainer that prunes by a schedule."""

    class Trainer(BranchPruning, DetectionTrainer):  # type: ignore[misc]
        schedule = alphas
        keep = options.keep
        mixing = "group"

    return Trainer


def _quiet(options: Options) -> dict[str, Any]:
    where = {"project": str(options.folder.resolve()), "exist_ok": True}
    return where | {"plots": False, "verbose": False, "workers": 0, "device": "cpu"}


def _weights(options: Options, method: str) -> Path:
    return options.folder.resolve() / _folder(method) / "weights" / "best.pt"


def _folder(method: str) -> str:
    return "further" if method == FURTHER else method


def measured(yolo: YOLO, options: Options, data: Path) -> dict[str, Any]:
    """Return what a detector is worth and costs, and how exact its ONNX file is."""
    found = yolo.val(data=str(data), split="test", imgsz=options.size, **_quiet(options)).box
    model = yolo.model.float().eval()
    image = torch.rand(1, 3, options.size, options.size)
    dense = YOLO(_weights(options, DENSE)).model.float().eval()
    before, after, faster = compare_latency(dense, model, image)
    return {
        "map50": float(found.map50),
        "map50_95": float(found.map),
        "params": sum(p.numel() for p in model.parameters()),
        "macs": count_macs(model, image),
        "latency_s": {"dense": before.median_s, "this": after.median_s},
        "speed_up": None if faster is None else asdict(faster),
        "onnx_difference": onnx_difference(yolo, image),
    }


def onnx_difference(yolo: YOLO, image: Tensor) -> float:
    """Return how far a detector's ONNX file is from it at most, relative to its outputs."""
    import onnxruntime

    file = yolo.export(format="onnx", imgsz=image.shape[-1], device="cpu", verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": image.numpy()})[0])
    with torch.no_grad():
        wanted: Tensor = yolo.model(image)[0]
    return float((found - wanted).abs().max() / wanted.abs().max())


def line(
    method: str,
    found: dict[str, Any],
    seconds: float,
    options: Options,
    args: Sequence[str],
) -> dict[str, Any]:
    """Return the line of results of a method."""
    settings = {k: v for k, v in asdict(options).items() if k not in LEFT_OUT}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return {
        "method": method,
        "epochs": options.epochs_of(method),
        **found,
        "settings": settings,
        "configuration": digest,
        "seed": options.seed,
        "command": shlex.join(["python", "scripts/yolo.py", *args]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds),
        "hardware": environment.hardware("cpu"),
        "versions": environment.versions() | {"ultralytics": version("ultralytics")},
        "commit": environment.commit(),
    }


if __name__ == "__main__":
    sys.exit(main())
