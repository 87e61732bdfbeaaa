"""Networks in the formats that they are exported to: agreement, size, latency, also in 8 bits.

```
python scripts/exports.py --output runs/exports.json
```

Each network, with random weights and norms that have seen random images, is pruned to half of its
channels. Dense and small are exported to each format, in float32 and, where the format has them, in
8 bits, and timed in its runtime in turns. What fails says why. On a machine that others use, the
times are of no account; `spread` says how far they lie apart.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from recorded_rows import RecordedRows
from torch import Tensor, nn
from torchvision import models  # type: ignore[import-untyped]

import branchprune as bp
from branchprune.artifacts.export_formats import FORMATS, format_named
from branchprune.artifacts.exported import Exported
from branchprune.artifacts.file_format import INT8
from branchprune.benchmarks.options import options_parser
from branchprune.models import VGG, Autoencoder, UNet
from branchprune.runtimes.latency import step_latencies
from branchprune.runtimes.runtime import needed

SHAPE = (3, 64, 64)
YOLO = "yolo11n"
OF_ONE_IMAGE = (YOLO,)
"""Networks of which files take one image: the head compares the batch with the one before."""
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "digits CNN": (
        lambda: VGG([[64, 64], [128, 128]], classes=10, in_channels=1),
        (1, 8, 8),
    ),
    "VGG-16": (VGG, (3, 32, 32)),
    "U-Net": (UNet, (1, 64, 64)),
    "autoencoder": (Autoencoder, SHAPE),
    YOLO: (lambda: yolo(), SHAPE),
    **{
        name: (partial(models.get_model, name, weights=None), SHAPE)
        for name in (
            *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0"),
            *("densenet121", "convnext_tiny", "squeezenet1_1", "regnet_y_400mf"),
        )
    },
}


def yolo() -> nn.Module:
    """Return the network of a YOLO11n."""
    package = needed("ultralytics", "yolo11n", "yolo")
    made: nn.Module = package.YOLO(f"{YOLO}.yaml", verbose=False).model
    return made


@dataclass
class Options:
    """Options of the script.

    Args:
        networks: Their names; empty: all.
        formats: Their names; empty: all.
        keep: Share of the channels to keep, in multiples of 8.
        images: Random images, half of which set the ranges of 8 bits.
        threads: Of the runtimes.
        seconds: How long files are timed, together.
        seed: Of weights and images.
        output: File for the result as JSON; rows that it holds are kept.
        record: Write it to the committed results instead.
    """

    networks: list[str] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    keep: float = 0.5
    images: int = 64
    threads: int = 1
    seconds: float = 4.0
    seed: int = 0
    output: Path | None = None
    record: bool = False


@dataclass
class Row:
    """What became of a network in a format; of each file by whether it is dense, and in 8 bits.

    Attributes:
        network: Its name.
        format: The format.
        macs: Multiply-adds that are left.
        parity: max |Δ| / max |model's| in float32.
        error: Relative error of outputs in 8 bits.
        bytes: Size.
        ms: Median latency of one image.
        spread: Interquartile range of that, as a share of it.
        failed: Why there is no file.
    """

    network: str
    format: str
    macs: float
    parity: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    ms: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def main(args: Sequence[str] | None = None) -> int:
    """Export, print a line for each network and format, and write the result."""
    parser = options_parser("exports.py", Options, description=__doc__.split("\n", 1)[0])
    options = Options(**vars(parser.parse_args(args)))
    torch.set_num_threads(options.threads)
    fixed = ("keep", "images", "threads", "seed")
    rows = RecordedRows("exports.json", options, fixed, ("network", "format"))
    for network in options.networks or NETWORKS:
        dense, small, images, macs = pruned(network, options)
        for name in options.formats or FORMATS:
            row = Row(network, name, macs)
            with TemporaryDirectory() as folder:
                measure(row, {"dense": dense, "small": small}, images, Path(folder), options)
            rows.add(asdict(row))
            print(json.dumps(asdict(row)), flush=True)
    return 0


def pruned(network: str, options: Options) -> tuple[nn.Module, nn.Module, Tensor, float]:
    """Return a network, the small one made of it, images, and the share of multiply-adds left."""
    make, shape = NETWORKS[network]
    torch.manual_seed(options.seed)
    images = torch.randn(options.images, *shape)
    model = make().train()
    with torch.no_grad():
        for _ in range(8):
            model(torch.randn(options.images, *shape))
    model.eval()
    plan = bp.plan(model, images[:1], options.keep, multiple_of=8)
    blended = bp.attach(model, plan)
    blended.alpha = 0.0
    return model, bp.collapse(blended).eval(), images, plan.after.macs / plan.before.macs


def measure(
    row: Row, networks: dict[str, nn.Module], images: Tensor, folder: Path, options: Options
) -> None:
    """Export networks to a format and time the files."""
    kind = format_named(row.format)
    found: dict[str, Exported] = {}
    for name, model in networks.items():
        for what, given in asked(row.network, name, images, INT8 in kind.bits).items():
            path = folder / f"{what}{kind.suffix}"
            try:
                found[what] = bp.export(model, images[:1], path, **given)
            except bp.PruneError as error:
                row.failed[what] = str(error).replace(f"{folder}/", "")
    for what, file in found.items():
        row.parity[what], row.bytes[what] = max(file.parity.values()), file.bytes
        if file.quantized is not None:
            row.error[what] = file.quantized.judged.error
    runtime = kind.runtime(options.threads)
    steps = [runtime.opened(file.path, what)(images[:1]) for what, file in found.items()]
    times = step_latencies(steps, 1, options.seconds) if steps else []
    for what, latency in zip(found, times, strict=True):
        row.ms[what] = 1000 * latency.median_s
        row.spread[what] = (latency.iqr_s or 0.0) / latency.median_s


def no_points(model: nn.Module) -> float:
    """Say of all models that they are as good: random weights score nothing, nor lose it."""
    return 0.0


def asked(network: str, name: str, images: Tensor, whole: bool) -> dict[str, dict[str, Any]]:
    """Return what is asked of each file of a network."""
    found: dict[str, Any] = {"batch": 1} if network in OF_ONE_IMAGE else {}
    in_8_bits = found | {"quantize": 8, "calibration": images, "score": no_points}
    return {name: found} | ({f"{name}_int8": in_8_bits} if whole else {})


if __name__ == "__main__":
    sys.exit(main())
