"""Do changes of the output with single groups add up? Predicted and measured, over random widths.

```
python scripts/additivity.py --output runs/additivity.json
```

Of each network, trained by a comparison before (the first line of its file says how), 50 choices of
widths with the same multiply-adds are drawn at random. For each, the changes of the output with
every group alone are added up, as `plan` predicts them, and the change with all groups narrow at
once is measured, fitted but not trained. What counts is whether they rank the choices alike:
Spearman's rank correlation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from recorded_rows import RecordedRows
from torch import Tensor

import branchprune as bp
from branchprune.benchmarks.options import options_parser
from branchprune.experiments.run.config import parse
from branchprune.experiments.run.load_weights import load_weights
from branchprune.lightning.training_inputs import training_inputs
from branchprune.planning.cost_model import params_and_macs
from branchprune.planning.costs import amounts
from branchprune.planning.traced import Traced
from branchprune.planning.width_solver import Limit
from branchprune.targets.allocations import ALLOCATIONS, Problem
from branchprune.targets.choices import Choices
from branchprune.targets.error_curves import MeasuredErrors
from branchprune.targets.plan import FLOOR
from branchprune.training.batch_keys import keys_of

NETWORKS = {
    "VGG of 6 convolutions": "few_images_16px",
    "ResNet-56": "few_images_networks+resnet56",
    "MobileNetV2": "few_images_networks+mobilenet",
    "autoencoder": "few_images_networks+carla",
}
"""Comparisons whose dense model they are, NAME or NAME+VARIANT."""
COMPARED = ("one_share", "additive", "selected")


@dataclass
class Options:
    """Options of the script.

    Args:
        networks: Which; empty: all.
        share: Of the multiply-adds that is left.
        drawn: Choices of widths.
        images: Images on which changes are measured.
        seed: Which images, and what is drawn.
        threads: Threads.
        output: File for the result as JSON; rows that it holds are kept.
        record: Write it to the committed results instead.
    """

    networks: list[str] = field(default_factory=list)
    share: float = 0.5
    drawn: int = 50
    images: int = 500
    seed: int = 0
    threads: int = 1
    output: Path | None = None
    record: bool = False


@dataclass
class Row:
    """What was found of one network.

    Attributes:
        network: Its name.
        spearman: Rank correlation of predicted and measured changes.
        predicted: The changes that were predicted.
        measured: Those that were measured.
        compared: Measured changes of other choices of the same cost, by name.
    """

    network: str
    spearman: float
    predicted: list[float]
    measured: list[float]
    compared: dict[str, float]


def main(args: Sequence[str] | None = None) -> int:
    """Measure, print a line a network, and write the result."""
    parser = options_parser("additivity.py", Options, description=__doc__.split("\n", 1)[0])
    options = Options(**vars(parser.parse_args(args)))
    wrong = [name for name in options.networks if name not in NETWORKS]
    if wrong:
        parser.error(f"networks (={wrong}) must be of {', '.join(NETWORKS)}")
    torch.set_num_threads(options.threads)
    fixed = ("share", "drawn", "images", "seed")
    rows = RecordedRows("additivity.json", options, fixed, ("network",))
    for name in options.networks or NETWORKS:
        row = asdict(measure(name, options))
        rows.add(row)
        print(f"{name}: {row['spearman']:.3f} {row['compared']}", flush=True)
    return 0


def measure(name: str, options: Options) -> Row:
    """Return what is found of a network."""
    model, images = _network(NETWORKS[name], options)
    structure = bp.plan(model, images[:1], keep=0.5).structure
    _, macs = params_and_macs(amounts(model, structure), len(structure.groups))
    choices = Choices.of(structure, FLOOR, {}, (), 1)
    limits = [Limit(macs, options.share * macs.total(choices.widest))]
    errors = MeasuredErrors([images])
    traced = Traced(model, structure, images[:1])
    problems = [
        Problem(traced, choices, errors, limits, options.seed + i) for i in range(options.drawn)
    ]
    solver = problems[0].solver()
    drawn = [_widths("random", each) for each in problems]
    predicted, measured = [*map(solver.error, drawn)], [*map(errors.change, drawn)]
    compared = {each: errors.change(_widths(each, problems[0])) for each in COMPARED}
    return Row(name, spearman(predicted, measured), predicted, measured, compared)


def _widths(allocation: str, problem: Problem) -> Tensor:
    kept = ALLOCATIONS[allocation](problem)(problem.limits)
    assert kept is not None, "half of the multiply-adds can be reached"
    return kept


def _network(comparison: str, options: Options) -> tuple[torch.nn.Module, Tensor]:
    """Return a trained network, and training images without labels."""
    name, *variants = comparison.split("+")
    chosen = [part for variant in variants for part in ("--variant", variant)]
    config = parse(
        [
            f"configs/compare/{name}.yaml",
            *chosen,
            *("--seed", str(options.seed), "--output", "runs/additivity"),
        ]
    )
    checkpoint = Path(f"runs/compare/{comparison}/dense/dense.safetensors")
    load_weights(config.model, checkpoint)
    keys, found = keys_of(config.task(config.model)), list[Tensor]()
    while sum(map(len, found)) < options.images:
        batches = training_inputs(config.data, 2 * len(found) or 1, keys)
        if len(batches) == len(found):
            least = sum(map(len, found))
            raise bp.PruneError(f"images (={options.images}) is more than the {least} there are")
        found = batches
    return config.model.eval(), torch.cat(found)[: options.images]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the rank correlation of two lists of different numbers."""
    ranks = [torch.tensor(each).argsort().argsort().double() for each in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


if __name__ == "__main__":
    sys.exit(main())
