"""Is a latency that was asked for reached? Ten models of torchvision in a runtime.

```
python scripts/target_latency.py --output runs/target_latency.json
```

Of each model, with random weights, a plan for half of its latency is made, as a user makes it. Then
the model is made small, and both are timed anew, in turns, in the same runtime: that is what is
written, as a share of what was asked. On a machine that others use the times are of no account:
`spread` says how far they lie apart.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from recorded_rows import RecordedRows
from torchvision import models  # type: ignore[import-untyped]

import branchprune as bp
from branchprune.benchmarks.options import options_parser
from branchprune.runtimes.named import runtime_of
from branchprune.targets.layer_times import in_blocks, spread_of
from branchprune.targets.target_plan import TargetPlan

MODELS = (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0"),
    *("shufflenet_v2_x1_0", "squeezenet1_1", "vgg11_bn", "regnet_y_400mf", "densenet121"),
)


@dataclass
class Options:
    """Options of the script.

    Args:
        models: Names of torchvision's classifiers; empty: ten of them.
        share: What is asked for, of the latency of the dense model.
        image_size: Height and width of images.
        images: Random images on which changes of the output are measured.
        runtime: Where: pytorch, torch-compile, onnxruntime, openvino or executorch.
        threads: Its threads.
        seconds: How long both models are timed at last.
        seed: Of weights and images.
        output: File for the result as JSON; rows that it holds are kept.
        record: Write it to the committed results instead.
    """

    models: list[str] = field(default_factory=list)
    share: float = 0.5
    image_size: int = 64
    images: int = 8
    runtime: str = "onnxruntime"
    threads: int = 1
    seconds: float = 4.0
    seed: int = 0
    output: Path | None = None
    record: bool = False


@dataclass
class Row:
    """What became of one model.

    Attributes:
        model: Its name.
        dense_ms: The latency of the dense model.
        planned: That of the plan, as a share of what was asked.
        predicted: That which was predicted of it, likewise.
        used: That which the collapsed model has, timed anew, likewise.
        macs: Multiply-adds that are left.
        spread: Interquartile range of the last times, as a share of their median.
        seconds: How long the plan took.
    """

    model: str
    dense_ms: float
    planned: float
    predicted: float
    used: float
    macs: float
    spread: float
    seconds: float


def main(args: Sequence[str] | None = None) -> int:
    """Measure, print a line a model, and write the result."""
    parser = options_parser("target_latency.py", Options, description=__doc__.split("\n", 1)[0])
    options = Options(**vars(parser.parse_args(args)))
    torch.set_num_threads(options.threads)
    fixed = ("share", "image_size", "images", "runtime", "threads", "seed")
    rows = RecordedRows("target_latency.json", options, fixed, ("model",))
    for model in options.models or MODELS:
        row = asdict(measure(model, options))
        rows.add(row)
        print(json.dumps(row), flush=True)
    return 0


def measure(name: str, options: Options) -> Row:
    """Return what becomes of a model."""
    torch.manual_seed(options.seed)
    model = models.get_model(name, weights=None).eval()
    images = torch.randn(options.images, 3, options.image_size, options.image_size)
    runtime = runtime_of(options.runtime, options.threads)
    assert runtime is not None, "it has a name"
    began = time.perf_counter()
    plan = bp.plan(
        model,
        images[:1],
        target={"latency": options.share},
        batches=[images],
        runtime=runtime,
        multiple_of="auto",
    )
    seconds = time.perf_counter() - began
    assert isinstance(plan, TargetPlan)
    (reached,) = plan.reached
    blended = bp.attach(model, plan)
    blended.alpha = 0.0
    small = bp.collapse(blended).eval()
    steps = [runtime.prepared(each, images[:1]) for each in (model, small)]
    dense, narrow = in_blocks(steps, options.seconds)
    return Row(
        name,
        1000 * min(dense),
        reached.after / reached.most,
        reached.predicted / reached.most,
        min(narrow) / min(dense) / options.share,
        plan.after.macs / plan.before.macs,
        max(map(spread_of, (dense, narrow))),
        seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
