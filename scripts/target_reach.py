"""How much of a target's budget plans use, on every model of torchvision.

```
python scripts/target_reach.py --output runs/target_reach.json
```

Of each model the structure is found, and its widths are solved for a share of its multiply-adds and
of its parameters, or, where so much stays whatever the widths, for half of what can go. What the
groups lose is drawn at random, since no weights are trained: the larger the share that goes, the
more. A model of these widths is then built, and counted by itself: that is what is written, as a
share of what was asked. Beside it stands the largest share of all channels that is within it.
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
from torch import Tensor, nn

import branchprune as bp
from branchprune.benchmarks.options import options_parser
from branchprune.benchmarks.zoo_models import torchvision_families, torchvision_model
from branchprune.graph.inputs import tensors
from branchprune.graph.structure import Structure
from branchprune.planning.cost_model import params_and_macs
from branchprune.planning.costs import amounts
from branchprune.planning.profiling import count_macs, count_params
from branchprune.planning.traced import Traced
from branchprune.planning.width_solver import Limit, Solver
from branchprune.targets.choices import Choices
from branchprune.targets.plan import FLOOR

SIZES = (64, 224)
"""Height and width of images: the first that a model takes, else its own."""


@dataclass
class Options:
    """Options of the script.

    Args:
        share: What is to be left, of multiply-adds and of parameters.
        models: Models; empty: all of torchvision.
        seed: Of what the groups lose.
        threads: Threads; 0: as many as torch chooses.
        output: File for the result as JSON.
        record: Write it to the committed results instead.
    """

    share: float = 0.5
    models: list[str] = field(default_factory=list)
    seed: int = 0
    threads: int = 1
    output: Path | None = None
    record: bool = False


@dataclass
class Row:
    """What one target came to.

    Attributes:
        model: Name of the model.
        what: What the target is of.
        groups: Groups of channels that may shrink.
        asked: The share that is to be left.
        used: What the built model has, as a share of what was asked.
        one_share: The same where all groups keep one share of their channels.
        seconds: How long solving took, of the processor's time.
    """

    model: str
    what: str
    groups: int
    asked: float
    used: float
    one_share: float
    seconds: float


def main(args: Sequence[str] | None = None) -> int:
    """Measure, print a line a target, and write the result."""
    parser = options_parser("target_reach.py", Options, description=__doc__.split("\n", 1)[0])
    options = Options(**vars(parser.parse_args(args)))
    torch.set_num_threads(options.threads or torch.get_num_threads())
    fixed = ("share", "seed", "threads")
    rows = RecordedRows("target_reach.json", options, fixed, ("model", "what"))
    found = []
    for model in options.models or torchvision_families():
        for row in measure(model, options):
            found.append(row)
            rows.add(asdict(row))
            print(json.dumps(asdict(row)), flush=True)
    return int(any(row.used > 1 for row in found))


def measure(name: str, options: Options) -> list[Row]:
    """Return what both targets came to on a model."""
    torch.manual_seed(options.seed)
    model, example, structure = _planned(name)
    traced = Traced(model, structure, example)
    choices = Choices.of(structure, FLOOR, {}, (), 1)
    solver = Solver(choices.widths, drawn_losses(choices, options.seed))
    costs = params_and_macs(amounts(model, structure), len(structure.groups))
    rows = []
    for what, cost in zip(("params", "macs"), costs, strict=True):
        groups = sum(len(each) > 1 for each in choices.widths)
        least = cost.total(choices.narrowest) / cost.total(choices.widest)
        asked = options.share if least < options.share else (1 + least) / 2
        limit = Limit(cost, asked * cost.total(choices.widest))
        began = time.process_time()
        kept = solver.solve([limit])
        seconds = round(time.process_time() - began, 3)
        assert kept is not None, "it was seen that less can stay"
        both = kept, choices.at_one_share([limit])
        used, one_share = (counted(traced, what, each) / limit.most for each in both)
        rows.append(Row(name, what, groups, asked, used, one_share, seconds))
    return rows


def _planned(name: str, sizes: Sequence[int] = SIZES) -> tuple[nn.Module, Tensor, Structure]:
    try:
        model, shape = torchvision_model(name, sizes[0] if sizes else None)
        example = torch.randn(1, *shape)
        return model, example, bp.plan(model.eval(), example, keep=0.5).structure
    except (bp.PruneError, AssertionError):  # it takes no images of that size
        if not sizes:
            raise
        return _planned(name, sizes[1:])


def drawn_losses(choices: Choices, seed: int) -> list[list[float]]:
    """Return for each group a multiple, drawn at random, of the square of the share that goes."""
    draw = torch.Generator().manual_seed(seed)
    scales = torch.randn(len(choices.widths), generator=draw).double().exp()
    return [
        [float(scale) * (1 - width / row[-1]) ** 2 for width in row]
        for scale, row in zip(scales, choices.widths, strict=True)
    ]


def counted(traced: Traced, what: str, kept: Tensor) -> int:
    """Return what a model of some widths has, counted by itself."""
    small = traced.narrowed([int(width) for width in kept])
    return (
        count_params(small) if what == "params" else count_macs(small, tensors(traced.example)[0])
    )


if __name__ == "__main__":
    sys.exit(main())
