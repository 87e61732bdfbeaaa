"""What masks on single weights and gates at run time come to, beside narrower layers.

```
branchprune compare configs/methods.yaml --only '*untrained/L1_norm-0'
python scripts/masks_and_gates.py --output runs/masks_and_gates.json
```

Both leave the dense layers as they are: masks set the smallest weights of all layers to 0
(torch.nn.utils.prune), gates let each image compute some channels (feature boosting and
suppression). They begin with the dense model of configs/methods.yaml, and would need as many
multiply-adds as the methods there, were nothing computed for zeros. They train for as many
multiply-adds as those methods, which are those of dense layers. Each is timed in turns with the
dense and the narrow model, one image at a time, in PyTorch and, where it can be a file, in ONNX
Runtime.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gated_network import GatedConv, gated, macs_with_gates
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from recorded_rows import RecordedRows
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import prune

import branchprune as bp
from branchprune.benchmarks.options import options_parser
from branchprune.experiments.run.callbacks.quiet import quiet_libraries
from branchprune.experiments.run.checks import check
from branchprune.experiments.run.config import RunConfig, parse
from branchprune.experiments.run.stages import Stages
from branchprune.graph.inputs import copied
from branchprune.runtimes.latency import step_latencies
from branchprune.runtimes.runtime import Runtime

LAYERS = (nn.Conv2d, nn.Linear)
MASKS, GATES = "masks", "gates"


@dataclass
class Options:
    """Options of the script.

    Args:
        methods: The comparison beside which they stand.
        variant: A variant of it, such as digits.
        dense: The dense model that it has made.
        share: With masks the share of the weights that stay, with gates of the multiply-adds.
        keep: Of the narrow model that is timed, the share of the channels.
        epochs: Of training, as many as the budget there pays of the dense model.
        seeds: Seeds.
        threads: Of the runtimes.
        seconds: How long what is beside each other is timed.
        output: File for the result as JSON; rows that it holds are kept.
        record: Write it to the committed results instead.
    """

    methods: Path = Path("configs/methods.yaml")
    variant: str | None = None
    dense: Path = Path("runs/compare/methods/dense/dense.safetensors")
    share: float = 0.1432
    keep: float = 0.375
    epochs: int = 4
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    threads: int = 1
    seconds: float = 6.0
    output: Path | None = None
    record: bool = False


@dataclass
class Row:
    """What became of a method.

    Attributes:
        method: "masks" or "gates".
        seed: Of the training.
        val: Validation score.
        test: Test score.
        nonzero: Share of the weights of layers that are not 0.
        macs: Share of the dense model's multiply-adds that an image needs, were nothing computed
            for zeros.
        train_macs: Multiply-adds of the training.
        ms: Median latency of one image by model and runtime: "dense, pytorch", …
        spread: Interquartile range of that, as a share of it.
    """

    method: str
    seed: int
    val: float
    test: float
    nonzero: float
    macs: float
    train_macs: float
    ms: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)


class StayZero(Callback):
    """Sets weights that are 0 at the start to 0 after every step."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [*weights(model).values()]
        self.masks = [weight.detach() != 0 for weight in self.weights]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Set them."""
        with torch.no_grad():
            for weight, mask in zip(self.weights, self.masks, strict=True):
                weight.mul_(mask)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weight of each layer of a model, by the layer's path."""
    layers = ((name, each) for name, each in model.named_modules() if isinstance(each, LAYERS))
    return {name: each.weight for name, each in layers}


def masks_of(model: nn.Module, macs: Mapping[str, float], share: float) -> nn.Module:
    """Return a copy with masks, with as many weights as its multiply-adds allow."""
    return _largest(
        partial(masked, model), partial(macs_with_masks, macs), share * sum(macs.values())
    )


def gates_of(model: nn.Module, macs: Mapping[str, float], share: float) -> nn.Module:
    """Return a copy with gates, as wide as its multiply-adds allow."""
    return _largest(
        partial(gated, model), partial(macs_with_gates, macs), share * sum(macs.values())
    )


def _largest(
    make: Callable[[float], nn.Module], count: Callable[[nn.Module], float], most: float
) -> nn.Module:
    """Return what the largest share makes that needs at most so many multiply-adds."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if count(make(middle)) <= most else (low, middle)
    return make(low)


def macs_with_masks(macs: Mapping[str, float], model: nn.Module) -> float:
    """Return the multiply-adds that are left without those of weights that are 0."""
    parts = {name: float((each != 0).double().mean()) for name, each in weights(model).items()}
    return sum(macs[name] * part for name, part in parts.items())


def masked(model: nn.Module, share: float) -> nn.Module:
    """Return a copy of which the weights of least magnitude are 0.

    Args:
        model: The model.
        share: Share of the weights of all its layers together that stay.
    """
    found = copied(model)
    layers = [(each, "weight") for each in found.modules() if isinstance(each, LAYERS)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=1 - share)
    for layer, name in layers:
        prune.remove(layer, name)
    return found


def macs_by_layer(model: nn.Module, example: Tensor) -> dict[str, float]:
    """Return the multiply-adds of each layer of a model, by its path."""
    found: dict[str, float] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(layer: nn.Module, _: Any, output: Tensor) -> None:
            positions = output[0].numel() / output.shape[1]
            weight = layer.weight
            assert isinstance(weight, Tensor)
            found[name] = weight.numel() * positions

        return hook

    copy = copied(model).eval()
    for name, layer in copy.named_modules():
        if isinstance(layer, LAYERS):
            layer.register_forward_hook(note(name))
    with torch.no_grad():
        copy(example)
    return found


def main(args: Sequence[str] | None = None) -> int:
    """Train, judge and time each, print a line, and write the result."""
    parser = options_parser("masks_and_gates.py", Options, description=__doc__.split("\n", 1)[0])
    options = Options(**vars(parser.parse_args(args)))
    torch.set_num_threads(options.threads)
    quiet_libraries()
    rows = RecordedRows(
        "masks_and_gates.json",
        options,
        ("share", "keep", "epochs", "threads"),
        ("method", "seed"),
    )
    for seed in options.seeds:
        for method in (MASKS, GATES):
            with TemporaryDirectory() as folder:
                row = measured(method, seed, options, Path(folder))
            rows.add(asdict(row))
            print(json.dumps(asdict(row)), flush=True)
    return 0


def measured(method: str, seed: int, options: Options, folder: Path) -> Row:
    """Train, judge and time a method.

    Args:
        method: "masks" or "gates".
        seed: Of the training.
        options: Those of the script.
        folder: Where to train; it is empty.
    """
    output = ["--seed", str(seed), "--output", str(folder / "run")]
    begun = ["--dense.epochs", "0", "--dense.checkpoint", str(options.dense)]
    names = ["l1"] if options.variant is None else [options.variant, "l1"]
    chosen = [part for name in names for part in ("--variant", name)]
    config = parse([str(options.methods), *chosen, *output, *begun])
    stages = Stages(config, Console(quiet=True))
    pruning, _ = check(config, stages)
    example, dense = pruning.example, config.model
    macs = macs_by_layer(dense, example)
    seed_everything(seed, workers=True, verbose=False)
    if method == MASKS:
        model, callbacks = masks_of(dense, macs, options.share), list[Callback]()
        callbacks.append(StayZero(model))
    else:
        model, callbacks = gates_of(dense, macs, options.share), []
    task = config.prune_task(model)
    stages.fit(method, task, options.epochs, *callbacks)
    scores = stages.pick(stages.judge(task))
    stay = [weight != 0 for weight in weights(model).values()]
    count = macs_with_masks if method == MASKS else macs_with_gates
    row = Row(
        method,
        seed,
        scores["val"],
        scores["test"],
        sum(int(each.sum()) for each in stay) / sum(map(torch.numel, stay)),
        count(macs, model) / sum(macs.values()),
        stages.records[method]["train_macs"],
    )
    time_beside(row, config, model.cpu().eval(), example, options)
    return row


def time_beside(
    row: Row, config: RunConfig, model: nn.Module, example: Tensor, options: Options
) -> None:
    """Time a model in turns with the dense and the narrow one; add what was found to its row."""
    dense = config.model.cpu().eval()
    blended = bp.attach(dense, bp.plan(dense, example, options.keep), "l1")
    blended.alpha = 0.0
    models = {"dense": dense, "narrow": bp.collapse(blended).eval(), row.method: model}
    runtimes: dict[str, Runtime] = {"pytorch": bp.PyTorch(options.threads)}
    for gate in (each for each in model.modules() if isinstance(each, GatedConv)):
        gate.skips = True
    if row.method == MASKS:
        runtimes["onnxruntime"] = bp.OnnxRuntime(options.threads)
    for name, runtime in runtimes.items():
        steps = [runtime.prepared(each, example) for each in models.values()]
        times = step_latencies(steps, 1, options.seconds)
        for kind, found in zip(models, times, strict=True):
            row.ms[f"{kind}, {name}"] = 1e3 * found.median_s
            row.spread[f"{kind}, {name}"] = (found.iqr_s or 0.0) / found.median_s


if __name__ == "__main__":
    sys.exit(main())
