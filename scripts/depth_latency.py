"""Is a network of fewer blocks faster? The files of the runs of depth_16px, in ONNX Runtime.

```
python scripts/depth_latency.py --output runs/depth_latency.json
```

Each small model that a run of `branchprune compare configs/compare/depth_16px.yaml` has exported is
timed in turns with the dense one, an image at a time. On a machine that others use, times are of no
account.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse.typing import PositiveFloat
from recorded_rows import RecordedRows

from branchprune.benchmarks.options import options_parser
from branchprune.experiments.compare import config as compare_config
from branchprune.experiments.compare.config import Comparison
from branchprune.runtimes.latency import compare_steps
from branchprune.runtimes.onnx_runtime import OnnxRuntime

FILE = Path(__file__).resolve().parents[1] / "configs/compare/depth_16px.yaml"
NETWORKS: dict[str, list[str]] = {"ResNet-56": [], "MobileNetV2": ["mobilenet"]}
"""Variants of the comparison, by network."""


@dataclass
class Options:
    """Options of the script.

    Args:
        runs: Folder of the comparisons.
        image_size: Height and width of an image.
        threads: Threads within an operator.
        seconds: How long both models are timed in turns.
        output: File for the result as JSON; rows that it holds are kept.
        record: Write it to the committed results instead.
    """

    runs: Path = Path("runs/compare")
    image_size: int = 16
    threads: int = 1
    seconds: PositiveFloat = 5.0
    output: Path | None = None
    record: bool = False


def main(args: Sequence[str] | None = None) -> int:
    """Time the models of every run that is there, print a line each, and write the result."""
    parser = options_parser("depth_latency.py", Options, description=__doc__.split("\n", 1)[0])
    options = Options(**vars(parser.parse_args(args)))
    fixed, keys = ("image_size", "threads", "seconds"), ("network", "budget", "method", "seed")
    rows = RecordedRows("depth_latency.json", options, fixed, keys)
    runtime = OnnxRuntime(options.threads)
    image = torch.randn(1, 3, options.image_size, options.image_size)
    found = 0
    for network, variants in NETWORKS.items():
        comparison = compare_config.read(FILE, variants)
        for key, folder in exports(comparison, options.runs):
            models = [folder / f"{name}.onnx" for name in ("dense", "small")]
            steps = [runtime.opened(path, str(path))(image) for path in models]
            dense, small, faster = compare_steps(steps[0], steps[1], 1, options.seconds)
            row = dict(zip(keys, (network, *key), strict=True)) | {
                "left_out": json.loads((folder.parent / "result.json").read_text())["left_out"],
                "dense_ms": 1e3 * dense.median_s,
                "small_ms": 1e3 * small.median_s,
                "faster": faster and [faster.low, faster.median, faster.high],
                "onnxruntime": runtime.version(),
            }
            rows.add(row)
            print(json.dumps(row), flush=True)
            found += 1
    if not found:
        raise SystemExit(f"runs (={str(options.runs)!r}) has no exported model of depth_16px")
    return 0


def exports(comparison: Comparison, folder: Path) -> Iterator[tuple[tuple[str, str, int], Path]]:
    """Yield budget, method and seed of every run that is done, and where its files are."""
    for run in comparison.runs():
        made = folder / comparison.name / run.name
        if (made / "result.json").exists() and (made / "export" / "small.onnx").exists():
            yield (run.budget, run.method, run.seed), made / "export"


if __name__ == "__main__":
    raise SystemExit(main())
