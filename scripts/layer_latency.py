"""Where is the rest of the speed-up? VGG-16, dense and small, layer by layer in ONNX Runtime.

```
python scripts/layer_latency.py --output runs/layer_latency.json
```

If each multiply-add took as long in the small model as in the dense one, it would be as many times
as fast as it has fewer. How much of that it is, is timed in turns; it can be more, where layers of
the dense model wait for their weights. Where the rest goes, is read from the profiler of ONNX
Runtime, the least time of each node of the graph in many runs: `lost` is what a layer takes more
than its multiply-adds would at the dense layer's rate. Nodes without weights are summed up by what
they do. On a machine that others use, times are of no account.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from recorded_rows import RecordedRows
from torch import Tensor, nn

from branchprune.benchmarks.beside_dense import beside_dense, size_of
from branchprune.benchmarks.options import options_parser
from branchprune.cli.bench import cut
from branchprune.errors import PruneError
from branchprune.models import VGG
from branchprune.runtimes.onnx_model import onnx_model
from branchprune.runtimes.onnx_runtime import OnnxRuntime

WITH_WEIGHTS = ("Conv", "Gemm", "MatMul")
"""What is in the names of operators that layers become."""
KERNEL = "_kernel_time"
"""How the profiler names the time that a node computes."""
TURNS = 5
"""So often both models are profiled, in turns."""


@dataclass
class Options:
    """Options of the script.

    Args:
        multiples: What kept widths are rounded to, one after the other.
        batches: Images a batch.
        threads: Numbers of threads within an operator, one after the other.
        keep: Fraction of the channels to keep.
        image_size: Height and width of an image.
        runs: Runs of each model that are profiled.
        seconds: How long both models are timed in turns, without the profiler.
        seed: Of weights and images.
        output: File for the result as JSON; rows that it holds are kept.
        record: Write it to the committed results instead.
    """

    multiples: list[int] = field(default_factory=lambda: [1, 8, 16])
    batches: list[int] = field(default_factory=lambda: [1, 64])
    threads: list[int] = field(default_factory=lambda: [1, 2])
    keep: float = 22 / 64
    image_size: int = 32
    runs: int = 50
    seconds: float = 5.0
    seed: int = 0
    output: Path | None = None
    record: bool = False


@dataclass
class Line:
    """A layer, or all nodes without weights that do the same.

    Attributes:
        what: Name of the layer, or of the operator.
        dense_us: Microseconds that the dense model takes for it.
        small_us: Those of the small one.
        dense_macs: Multiply-adds of the dense layer; 0: it has no weights.
        small_macs: Those of the small one.
    """

    what: str
    dense_us: float
    small_us: float
    dense_macs: int = 0
    small_macs: int = 0

    @property
    def lost_us(self) -> float:
        """Microseconds that the small layer takes more than at the rate of the dense one.

        Of nodes without weights, all that they take.
        """
        return self.small_us - self.dense_us * self.small_macs / max(1, self.dense_macs)


def main(args: Sequence[str] | None = None) -> int:
    """Measure, print a line for each width and batch, and write the result."""
    parser = options_parser("layer_latency.py", Options, description=__doc__.split("\n", 1)[0])
    options = Options(**vars(parser.parse_args(args)))
    torch.set_num_threads(1)
    fixed, keys = ("keep", "image_size", "runs", "seed"), ("threads", "multiple_of", "batch")
    rows = RecordedRows("layer_latency.json", options, fixed, keys)
    for threads, multiple, batch in product(options.threads, options.multiples, options.batches):
        row = measure(options, threads, multiple, batch)
        rows.add(row)
        shown = {key: value for key, value in row.items() if key not in ("layers", "widths")}
        print(json.dumps(shown), flush=True)
    return 0


def measure(options: Options, threads: int, multiple_of: int, batch: int) -> dict[str, Any]:
    """Return what was found of threads, a rounding and a batch: models as a whole, and layers."""
    torch.manual_seed(options.seed)
    dense, x = VGG().eval(), torch.randn(2, 3, options.image_size, options.image_size)
    small = cut(dense, x, options.keep, multiple_of)
    images = torch.randn(batch, *x.shape[1:])
    runtime = OnnxRuntime(threads)
    steps = (runtime.prepared(dense, images), runtime.prepared(small, images))
    sizes = (size_of(dense, images), size_of(small, images))
    found = beside_dense(steps, sizes, batch, options.seconds)
    lines = layers(dense, small, images, threads, options.runs)
    return {
        "threads": threads,
        "multiple_of": multiple_of,
        "batch": batch,
        "widths": [each.out_channels for each in small.modules() if isinstance(each, nn.Conv2d)],
        "dense_ms": 1e3 * found.dense.median_s,
        "small_ms": 1e3 * found.small.median_s,
        "faster": [found.faster.low, found.faster.median, found.faster.high],
        "fewer": found.fewer,
        "of_limit": found.of_limit,
        "onnxruntime": runtime.version(),
        "layers": [asdict(line) | {"lost_us": line.lost_us} for line in lines],
    }


def layers(
    dense: nn.Module, small: nn.Module, images: Tensor, threads: int, runs: int
) -> list[Line]:
    """Return how long both models take for each layer, and for all else by its operator.

    Args:
        dense: A model.
        small: The model made small.
        images: Inputs of both.
        threads: Threads, within an operator.
        runs: Runs of each.

    Raises:
        PruneError: ONNX Runtime has made other nodes of the layers, so that none is known again.
    """
    counts = [layer_macs(model, images) for model in (dense, small)]
    with TemporaryDirectory() as folder:
        profiled = [Profiled(model, images, Path(folder), threads) for model in (dense, small)]
        for turn in range(TURNS):
            for each in profiled[:: -1 if turn % 2 else 1]:
                each.run(max(1, runs // TURNS))
        nodes = [least_times(each.events()) for each in profiled]
    heavy = [[n for n in each if n.has_weights] for each in nodes]
    if {len(each) for each in heavy} != {len(counts[0])}:
        raise PruneError(f"there are {len(counts[0])} layers, and nodes of {[*map(len, heavy)]}")
    lines = [
        Line(name, wide.us, narrow.us, counts[0][name], counts[1][name])
        for name, wide, narrow in zip(counts[0], *heavy, strict=True)
    ]
    others = [[n for n in each if not n.has_weights] for each in nodes]
    names = dict.fromkeys(n.operator for each in others for n in each)
    for name in names:
        wide, narrow = (sum(n.us for n in each if n.operator == name) for each in others)
        lines.append(Line(name, wide, narrow))
    return lines


def layer_macs(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Return the multiply-adds of each layer with weights, in the order of their calls."""
    found: dict[str, int] = {}

    def note(name: str, layer: nn.Module, args: Any, output: Tensor) -> None:
        weight = layer.get_parameter("weight")
        found[name] = weight.numel() * output.numel() // len(weight)

    kinds = (nn.Conv2d, nn.Linear)
    named = {name: each for name, each in model.named_modules() if isinstance(each, kinds)}
    hooks = [each.register_forward_hook(partial(note, name)) for name, each in named.items()]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found


class Profiled:
    """A model in ONNX Runtime, with its profiler.

    Args:
        model: The model.
        images: Its inputs.
        folder: Where the profiler may write.
        threads: Threads, within an operator.
    """

    def __init__(self, model: nn.Module, images: Tensor, folder: Path, threads: int) -> None:
        package = OnnxRuntime(threads).package
        settings = package.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        settings.enable_profiling = True
        settings.profile_file_prefix = str(folder / f"profile_{id(self)}")
        content = onnx_model(model, images)
        self.session = package.InferenceSession(
            content, settings, providers=["CPUExecutionProvider"]
        )
        self.feeds = {self.session.get_inputs()[0].name: images.numpy()}

    def run(self, count: int) -> None:
        """Run it some times."""
        for _ in range(count):
            self.session.run(None, self.feeds)

    def events(self) -> list[dict[str, Any]]:
        """End the profiler, and return what it noted."""
        found: list[dict[str, Any]] = json.loads(Path(self.session.end_profiling()).read_text())
        return found


@dataclass(frozen=True)
class Node:
    """A node of the graph that ONNX Runtime runs.

    Attributes:
        operator: What it does.
        us: The least microseconds that it took.
    """

    operator: str
    us: float

    @property
    def has_weights(self) -> bool:
        """Whether a layer has become this."""
        return any(name in self.operator for name in WITH_WEIGHTS)


def least_times(events: Iterable[Mapping[str, Any]]) -> list[Node]:
    """Return the nodes in the order in which they first ran, each with its least time.

    Args:
        events: What the profiler noted.
    """
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(KERNEL):
            key = (event["name"], event["args"]["op_name"])
            times.setdefault(key, []).append(float(event["dur"]))
    return [Node(operator, min(each)) for (_, operator), each in times.items()]


if __name__ == "__main__":
    sys.exit(main())
