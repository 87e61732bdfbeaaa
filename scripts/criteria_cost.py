"""What each criterion costs, beside a step of training on the same images.

```
python scripts/criteria_cost.py --output runs/criteria_cost.json
```

Channels of a ResNet-18 are chosen by each criterion: what it sees of the images, such as gradients,
and `attach`, which scores every group and cuts the branches out. The L2 norm needs no images; what
it takes is the cost of `attach`. A step of training, forward and backward over all images, is timed
in turns with each. Quotients are of medians.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from recorded_rows import RecordedRows
from torch import Tensor, nn
from torchvision import models  # type: ignore[import-untyped]

import branchprune as bp
from branchprune.benchmarks.options import options_parser
from branchprune.criteria.named import CALIBRATED, CRITERIA, GRADED, MADE
from branchprune.graph.inputs import copied
from branchprune.planning.plan import Plan

BATCH = 16
"""Images that are seen at a time."""


@dataclass
class Options:
    """Options of the script.

    Args:
        model: Name of a classifier of torchvision, with random weights.
        image_size: Height and width of an image.
        images: Random images, and classes.
        turns: So often each criterion is timed.
        threads: Of the processor.
        output: File for the result as JSON; rows that it holds are kept.
        record: Write it to the committed results instead.
    """

    model: str = "resnet18"
    image_size: int = 32
    images: int = 64
    turns: int = 3
    threads: int = 1
    output: Path | None = None
    record: bool = False


@dataclass
class Row:
    """What a criterion costs.

    Attributes:
        criterion: Its name.
        seconds: Median time of choosing by it.
        step: Median time of a step of training on the same images.
    """

    criterion: str
    seconds: float
    step: float


def main(args: Sequence[str] | None = None) -> int:
    """Time every criterion, print a line for each, and write the result."""
    parser = options_parser("criteria_cost.py", Options, description=__doc__.split("\n", 1)[0])
    options = Options(**vars(parser.parse_args(args)))
    torch.set_num_threads(options.threads)
    fixed = ("model", "image_size", "images", "turns", "threads")
    rows = RecordedRows("criteria_cost.json", options, fixed, ("criterion",))
    model, images, labels = network(options)
    planned = bp.plan(model, images[:1])
    for name in (*CRITERIA, *MADE):
        steps = [partial(chosen, name, model, planned, images, labels)]
        steps.append(partial(gradients, model, images, labels))
        times: list[list[float]] = [[], []]
        for _ in range(options.turns):
            for step, found in zip(steps, times, strict=True):
                found.append(seconds(step))
        row = Row(name, *map(statistics.median, times))
        rows.add(asdict(row))
        print(json.dumps(asdict(row)), flush=True)
    return 0


def network(options: Options) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network in evaluation mode, images (N, 3, H, W) and classes (N,)."""
    torch.manual_seed(0)
    model: nn.Module = models.get_model(options.model, weights=None, num_classes=10).eval()
    images = torch.randn(options.images, 3, options.image_size, options.image_size)
    return model, images, torch.arange(options.images) % 10


def seconds(step: Callable[[], object]) -> float:
    """Return how long a step takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    """Return a copy of a model with the gradients of its loss on all images."""
    found = copied(model)
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        F.cross_entropy(found(x), y).backward()
    return found


def chosen(name: str, model: nn.Module, planned: Plan, images: Tensor, labels: Tensor) -> nn.Module:
    """Return a blended model whose branches start from the channels that a criterion chooses."""
    batches = [*images.split(BATCH)] if name in CALIBRATED else []
    if name in GRADED:
        return bp.attach(gradients(model, images, labels), planned, name)
    if name == "fisher":
        alone = zip(images[:, None], labels[:, None], strict=True)
        one = (F.cross_entropy(model(x), y) for x, y in alone)
        return bp.attach(model, planned, bp.fisher(model, one))
    pairs = [*zip(images.split(BATCH), labels.split(BATCH), strict=True)]
    if name == "obd":
        losses = (F.cross_entropy(model(x), y) for x, y in pairs)
        return bp.attach(model, planned, bp.obd(model, losses))
    if name == "discrimination":
        made = bp.discrimination(model, planned, pairs)
        return bp.attach(model, planned, made, batches=batches)
    return bp.attach(model, planned, name, batches=batches)


if __name__ == "__main__":
    sys.exit(main())
